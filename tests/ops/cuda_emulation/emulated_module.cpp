// The bindings over the emulated kernels as a Python module, in the library that ctypes opens too.
#include "../../csrc/bindings_cuda.cpp"

PYBIND11_MODULE(emulated, m) { bind_cuda(m); }
