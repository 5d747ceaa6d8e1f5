// The CUDA launchers for Python, as the submodule `cuda`: an operation's arguments by their names, an allocator of its
// workspace, the tensors' device and a stream in, nothing decided here. Arguments are validated in journey/ops.
// Compiled by the host compiler: it needs the CUDA headers, no nvcc.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/kernels.h"
#include "read_args.h"

namespace py = pybind11;

namespace {

namespace cuda = journey::cuda;

void check(cudaError_t status, const char* op) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // or the next launch would report this error as its own
    throw std::runtime_error(
        std::string(op) + " failed on the CUDA device: " + cudaGetErrorName(status) + ", " +
        cudaGetErrorString(status));
}

template <typename args_t>
int64_t no_workspace(const args_t&) {
    return 0;
}

// Makes a device current for this thread, and the one before again at its end.
class OnDevice {
public:
    explicit OnDevice(int device) {
        status = cudaGetDevice(&before_);
        if (status == cudaSuccess && before_ != device) status = cudaSetDevice(device), changed_ = true;
    }
    ~OnDevice() {
        if (changed_) (void)cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    cudaError_t status;

private:
    int before_ = 0;
    bool changed_ = false;
};

// The launcher as `op`. `allocate` takes the floats that it asks for, if any, and returns address and number of those
// that it gets, which live until the call returns.
template <typename args_t>
void bind(
    py::module_& module,
    const char* op,
    cudaError_t (*run)(const args_t&, cuda::Workspace, cudaStream_t),
    int64_t (*workspace_floats)(const args_t&)) {
    const auto call = [=](const py::dict& given, const py::function& allocate, int device, uintptr_t stream) {
        const auto args = journey::read_args<args_t>(given);
        cuda::Workspace space{nullptr, 0};
        if (const int64_t floats = workspace_floats(args)) {
            const auto [address, count] = allocate(floats).template cast<std::pair<uintptr_t, int64_t>>();
            space = {reinterpret_cast<float*>(address), count};
        }
        const py::gil_scoped_release release;
        const OnDevice on_device(device);
        check(on_device.status, op);
        check(run(args, space, reinterpret_cast<cudaStream_t>(stream)), op);
    };
    module.def(
        op, call, py::arg("args"), py::arg("allocate"), py::arg("device"), py::arg("stream"), args_t::field_names());
}

// No driver, a driver that is too old and no device all mean that there is none to use.
int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();
    return 0;
}

int runtime_version() {
    int version = 0;
    return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int driver_version() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace

void bind_cuda(py::module_& m) {
    py::module_ module =
        m.def_submodule("cuda", "Kernels for device memory, each of a dict of what its docstring lists.");
    bind(module, "philox_words", &cuda::philox_words, &no_workspace<journey::PhiloxWordsArgs>);
    bind(module, "philox_normal", &cuda::philox_normal, &no_workspace<journey::PhiloxNormalArgs>);
    bind(module, "sketch", &cuda::sketch, &cuda::sketch_workspace_floats);
    bind(module, "sketch_many", &cuda::sketch_many, &cuda::sketch_many_workspace_floats);
    bind(module, "project", &cuda::project, &cuda::project_workspace_floats);
    bind(module, "sketch_outer", &cuda::sketch_outer, &cuda::sketch_outer_workspace_floats);
    bind(module, "sketch_outer_many", &cuda::sketch_outer_many, &cuda::sketch_outer_many_workspace_floats);
    bind(module, "norm_grads", &cuda::norm_grads, &cuda::norm_grads_workspace_floats);
    bind(module, "accumulate_gram", &cuda::accumulate_gram, &cuda::accumulate_gram_workspace_floats);
    bind(module, "pack_rows", &cuda::pack_rows, &no_workspace<journey::PackRowsArgs>);
    bind(module, "packed_products", &cuda::packed_products, &no_workspace<journey::PackedProductsArgs>);
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.def("device_count", &device_count, "Devices that can be used; 0 where there is no driver.", release);
    module.def("runtime_version", &runtime_version, "CUDA runtime of this build, 1000 * major + 10 * minor.");
    module.def("driver_version", &driver_version, "Newest CUDA that the driver supports; 0 where there is no driver.");
}
