// The bindings over the emulated kernels as a Python module, in the library that ctypes opens too.
#include <pybind11/pybind11.h>

void bind_cuda(pybind11::module_& m);

PYBIND11_MODULE(emulated, m) { bind_cuda(m); }
