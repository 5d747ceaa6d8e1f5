// The CUDA launchers for Python, as the submodule `cuda`: an operation's arguments by their names, a workspace and a
// stream in, nothing decided here. Arguments are validated in journey/ops; whoever calls makes the tensors' device
// current. Compiled by the host compiler: it needs the CUDA headers, no nvcc.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

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

// The launcher as `op`, and beside it `op_workspace_floats`.
template <typename args_t>
void bind(
    py::module_& module,
    const char* op,
    cudaError_t (*run)(const args_t&, cuda::Workspace, cudaStream_t),
    int64_t (*workspace_floats)(const args_t&)) {
    const auto call = [=](const py::dict& given, uintptr_t workspace, int64_t floats, uintptr_t stream) {
        const auto args = journey::read_args<args_t>(given);
        const py::gil_scoped_release release;
        const cuda::Workspace space{reinterpret_cast<float*>(workspace), floats};
        check(run(args, space, reinterpret_cast<cudaStream_t>(stream)), op);
    };
    module.def(
        op, call, py::arg("args"), py::arg("workspace"), py::arg("workspace_floats"), py::arg("stream"),
        args_t::field_names());
    module.def(
        (std::string(op) + "_workspace_floats").c_str(),
        [=](const py::dict& given) { return workspace_floats(journey::read_args<args_t>(given)); }, py::arg("args"),
        "Floats of workspace for these arguments; 0 means that it may be null.");
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
    py::module_ module = m.def_submodule(
        "cuda", "Kernels for device memory, each of a dict of what its docstring lists, on the current device.");
    bind(module, "philox_words", &cuda::philox_words, &no_workspace<journey::PhiloxWordsArgs>);
    bind(module, "philox_normal", &cuda::philox_normal, &no_workspace<journey::PhiloxNormalArgs>);
    bind(module, "sketch", &cuda::sketch, &cuda::sketch_workspace_floats);
    bind(module, "sketch_many", &cuda::sketch_many, &cuda::sketch_many_workspace_floats);
    bind(module, "project", &cuda::project, &cuda::project_workspace_floats);
    bind(module, "sketch_outer", &cuda::sketch_outer, &cuda::sketch_outer_workspace_floats);
    bind(module, "accumulate_gram", &cuda::accumulate_gram, &cuda::accumulate_gram_workspace_floats);
    bind(module, "pack_rows", &cuda::pack_rows, &no_workspace<journey::PackRowsArgs>);
    bind(module, "packed_products", &cuda::packed_products, &no_workspace<journey::PackedProductsArgs>);
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.def("device_count", &device_count, "Devices that can be used; 0 where there is no driver.", release);
    module.def("runtime_version", &runtime_version, "CUDA runtime of this build, 1000 * major + 10 * minor.");
    module.def("driver_version", &driver_version, "Newest CUDA that the driver supports; 0 where there is no driver.");
}
