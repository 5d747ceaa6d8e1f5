// The CUDA launchers for Python, as the submodule `cuda`: device pointers, sizes and a stream in, nothing decided here.
// Arguments are validated in journey/ops.py, which also makes the tensors' device current. Compiled by the host
// compiler: it needs the CUDA headers, no nvcc.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/kernels.h"

namespace py = pybind11;

namespace {

namespace cuda = journey::cuda;

template <typename pointer_t>
pointer_t* as(uintptr_t address) {
    return reinterpret_cast<pointer_t*>(address);
}

cudaStream_t as_stream(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

void check(cudaError_t status, const char* op) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // or the next launch would report this error as its own
    throw std::runtime_error(
        std::string(op) + " failed on the CUDA device: " + cudaGetErrorName(status) + ", " +
        cudaGetErrorString(status));
}

void philox_words(
    uintptr_t keys,
    uintptr_t indices,
    uintptr_t minors,
    uint32_t stream,
    int64_t n,
    uintptr_t out,
    uintptr_t cuda_stream) {
    check(
        cuda::philox_words(
            as<const uint64_t>(keys), as<const uint64_t>(indices), as<const uint32_t>(minors), as<int64_t>(out), n,
            stream, as_stream(cuda_stream)),
        "philox_words");
}

void philox_normal(uintptr_t keys, uintptr_t minors, int64_t n, int64_t numel, uintptr_t out, uintptr_t cuda_stream) {
    check(
        cuda::philox_normal(
            as<const uint64_t>(keys), as<const uint32_t>(minors), as<float>(out), n, numel, as_stream(cuda_stream)),
        "philox_normal");
}

void sketch(
    uintptr_t grads,
    uintptr_t features,
    uintptr_t workspace,
    int dtype,
    int64_t batch,
    int64_t rows,
    int64_t cols,
    int64_t grads_batch_stride,
    int64_t features_stride,
    int64_t row_begin,
    int64_t proj_dim,
    uint64_t key,
    int64_t nnz,
    uintptr_t cuda_stream) {
    cuda::SketchArgs args{};
    args.grads = as<const void>(grads);
    args.features = as<float>(features);
    args.workspace = as<float>(workspace);
    args.dtype = static_cast<cuda::DType>(dtype);
    args.batch = batch;
    args.rows = rows;
    args.cols = cols;
    args.grads_batch_stride = grads_batch_stride;
    args.features_stride = features_stride;
    args.row_begin = row_begin;
    args.proj_dim = proj_dim;
    args.key = key;
    args.nnz = nnz;
    check(cuda::sketch(args, as_stream(cuda_stream)), "sketch");
}

int64_t sketch_workspace_floats(int64_t batch, int64_t rows, int64_t cols, int64_t row_begin, int64_t proj_dim) {
    cuda::SketchArgs args{};
    args.batch = batch;
    args.rows = rows;
    args.cols = cols;
    args.row_begin = row_begin;
    args.proj_dim = proj_dim;
    return cuda::sketch_workspace_floats(args);
}

// Fields of cuda::SmallParameter in their order.
using SmallParameter = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t, int64_t, uint64_t>;

std::vector<cuda::SmallParameter> small_parameters(const std::vector<SmallParameter>& given) {
    std::vector<cuda::SmallParameter> parameters;
    parameters.reserve(given.size());
    for (const auto& [grads, dtype, rows, cols, grads_batch_stride, row_begin, key] : given)
        parameters.push_back(
            {as<const void>(grads), static_cast<cuda::DType>(dtype), rows, cols, grads_batch_stride, row_begin, key});
    return parameters;
}

void sketch_many(
    const std::vector<SmallParameter>& parameters,
    uintptr_t features,
    uintptr_t workspace,
    int64_t batch,
    int64_t features_stride,
    int64_t proj_dim,
    int64_t nnz,
    uintptr_t cuda_stream) {
    const std::vector<cuda::SmallParameter> list = small_parameters(parameters);
    cuda::SketchManyArgs args{};
    args.parameters = list.data();
    args.num_parameters = static_cast<int64_t>(list.size());
    args.features = as<float>(features);
    args.workspace = as<float>(workspace);
    args.batch = batch;
    args.features_stride = features_stride;
    args.proj_dim = proj_dim;
    args.nnz = nnz;
    check(cuda::sketch_many(args, as_stream(cuda_stream)), "sketch_many");
}

int64_t sketch_many_workspace_floats(const std::vector<SmallParameter>& parameters, int64_t batch, int64_t proj_dim) {
    const std::vector<cuda::SmallParameter> list = small_parameters(parameters);
    cuda::SketchManyArgs args{};
    args.parameters = list.data();
    args.num_parameters = static_cast<int64_t>(list.size());
    args.batch = batch;
    args.proj_dim = proj_dim;
    return cuda::sketch_many_workspace_floats(args);
}

void project(
    uintptr_t grads,
    uintptr_t features,
    uintptr_t workspace,
    int dtype,
    int kind,
    int64_t batch,
    int64_t grad_dim,
    int64_t proj_dim,
    int64_t grads_stride,
    int64_t features_stride,
    int64_t row_begin,
    uint64_t key,
    uintptr_t cuda_stream) {
    cuda::ProjectArgs args{};
    args.grads = as<const void>(grads);
    args.features = as<float>(features);
    args.workspace = as<float>(workspace);
    args.dtype = static_cast<cuda::DType>(dtype);
    args.kind = static_cast<cuda::Dense>(kind);
    args.batch = batch;
    args.grad_dim = grad_dim;
    args.proj_dim = proj_dim;
    args.grads_stride = grads_stride;
    args.features_stride = features_stride;
    args.row_begin = row_begin;
    args.key = key;
    check(cuda::project(args, as_stream(cuda_stream)), "project");
}

int64_t project_workspace_floats(int64_t batch, int64_t grad_dim, int64_t proj_dim) {
    cuda::ProjectArgs args{};
    args.batch = batch;
    args.grad_dim = grad_dim;
    args.proj_dim = proj_dim;
    return cuda::project_workspace_floats(args);
}

void sketch_outer(
    uintptr_t a,
    uintptr_t g,
    uintptr_t features,
    uintptr_t workspace,
    int dtype,
    int precision,
    int64_t a_row_stride,
    int64_t a_channel_stride,
    int64_t a_y_stride,
    int64_t a_x_stride,
    int64_t g_row_stride,
    int64_t g_channel_stride,
    int64_t g_y_stride,
    int64_t g_x_stride,
    int64_t num_groups,
    int64_t rows_per_group,
    int64_t in_channels,
    int64_t in_height,
    int64_t in_width,
    int64_t out_channels,
    int64_t out_height,
    int64_t out_width,
    int64_t kernel_h,
    int64_t kernel_w,
    int64_t stride_h,
    int64_t stride_w,
    int64_t pad_h,
    int64_t pad_w,
    int64_t dilation_h,
    int64_t dilation_w,
    int64_t conv_groups,
    int64_t features_stride,
    int64_t proj_dim,
    uint64_t key,
    int64_t nnz,
    uintptr_t cuda_stream) {
    cuda::SketchOuterArgs args{};
    args.a = as<const void>(a);
    args.g = as<const void>(g);
    args.features = as<float>(features);
    args.workspace = as<float>(workspace);
    args.dtype = static_cast<cuda::DType>(dtype);
    args.precision = static_cast<cuda::Precision>(precision);
    args.a_strides = cuda::Strides{a_row_stride, a_channel_stride, a_y_stride, a_x_stride};
    args.g_strides = cuda::Strides{g_row_stride, g_channel_stride, g_y_stride, g_x_stride};
    args.num_groups = num_groups;
    args.rows_per_group = rows_per_group;
    args.in_channels = in_channels;
    args.in_height = in_height;
    args.in_width = in_width;
    args.out_channels = out_channels;
    args.out_height = out_height;
    args.out_width = out_width;
    args.kernel_h = kernel_h;
    args.kernel_w = kernel_w;
    args.stride_h = stride_h;
    args.stride_w = stride_w;
    args.pad_h = pad_h;
    args.pad_w = pad_w;
    args.dilation_h = dilation_h;
    args.dilation_w = dilation_w;
    args.conv_groups = conv_groups;
    args.features_stride = features_stride;
    args.proj_dim = proj_dim;
    args.key = key;
    args.nnz = nnz;
    check(cuda::sketch_outer(args, as_stream(cuda_stream)), "sketch_outer");
}

int64_t sketch_outer_workspace_floats(
    int64_t num_groups,
    int64_t in_channels,
    int64_t out_channels,
    int64_t kernel_h,
    int64_t kernel_w,
    int64_t conv_groups,
    int64_t proj_dim) {
    cuda::SketchOuterArgs args{};
    args.num_groups = num_groups;
    args.in_channels = in_channels;
    args.out_channels = out_channels;
    args.kernel_h = kernel_h;
    args.kernel_w = kernel_w;
    args.conv_groups = conv_groups;
    args.proj_dim = proj_dim;
    return cuda::sketch_outer_workspace_floats(args);
}

void accumulate_gram(
    uintptr_t features,
    uintptr_t gram,
    uintptr_t workspace,
    int64_t workspace_floats,
    int dtype,
    int precision,
    int64_t num_samples,
    int64_t proj_dim,
    int64_t features_stride,
    int64_t gram_stride,
    uintptr_t cuda_stream) {
    cuda::GramArgs args{};
    args.features = as<const void>(features);
    args.gram = as<double>(gram);
    args.workspace = as<float>(workspace);
    args.workspace_floats = workspace_floats;
    args.dtype = static_cast<cuda::DType>(dtype);
    args.precision = static_cast<cuda::Precision>(precision);
    args.num_samples = num_samples;
    args.proj_dim = proj_dim;
    args.features_stride = features_stride;
    args.gram_stride = gram_stride;
    check(cuda::accumulate_gram(args, as_stream(cuda_stream)), "accumulate_gram");
}

int64_t gram_workspace_floats(int64_t num_samples, int64_t proj_dim) {
    cuda::GramArgs args{};
    args.num_samples = num_samples;
    args.proj_dim = proj_dim;
    return cuda::gram_workspace_floats(args);
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
    py::module_ cuda = m.def_submodule("cuda", "Kernels for device memory, on the current device and a given stream.");
    const auto release = py::call_guard<py::gil_scoped_release>();
    cuda.def(
        "philox_words", &philox_words, py::arg("keys"), py::arg("indices"), py::arg("minors"), py::arg("stream"),
        py::arg("n"), py::arg("out"), py::arg("cuda_stream"), release);
    cuda.def(
        "philox_normal", &philox_normal, py::arg("keys"), py::arg("minors"), py::arg("n"), py::arg("numel"),
        py::arg("out"), py::arg("cuda_stream"), release);
    cuda.def(
        "sketch", &sketch, py::arg("grads"), py::arg("features"), py::arg("workspace"), py::arg("dtype"),
        py::arg("batch"), py::arg("rows"), py::arg("cols"), py::arg("grads_batch_stride"), py::arg("features_stride"),
        py::arg("row_begin"), py::arg("proj_dim"), py::arg("key"), py::arg("nnz"), py::arg("cuda_stream"), release);
    cuda.def(
        "sketch_workspace_floats", &sketch_workspace_floats, py::arg("batch"), py::arg("rows"), py::arg("cols"),
        py::arg("row_begin"), py::arg("proj_dim"),
        "Floats of workspace that sketch needs; 0 means that it may be null.");
    cuda.def(
        "sketch_many", &sketch_many, py::arg("parameters"), py::arg("features"), py::arg("workspace"), py::arg("batch"),
        py::arg("features_stride"), py::arg("proj_dim"), py::arg("nnz"), py::arg("cuda_stream"),
        "Each parameter is (grads, dtype, rows, cols, grads_batch_stride, row_begin, key).", release);
    cuda.def(
        "sketch_many_workspace_floats", &sketch_many_workspace_floats, py::arg("parameters"), py::arg("batch"),
        py::arg("proj_dim"), "Floats of workspace that sketch_many needs; 0 means that it may be null.");
    cuda.def(
        "project", &project, py::arg("grads"), py::arg("features"), py::arg("workspace"), py::arg("dtype"),
        py::arg("kind"), py::arg("batch"), py::arg("grad_dim"), py::arg("proj_dim"), py::arg("grads_stride"),
        py::arg("features_stride"), py::arg("row_begin"), py::arg("key"), py::arg("cuda_stream"), release);
    cuda.def(
        "project_workspace_floats", &project_workspace_floats, py::arg("batch"), py::arg("grad_dim"),
        py::arg("proj_dim"), "Floats of workspace that project needs; 0 means that it may be null.");
    cuda.def(
        "sketch_outer", &sketch_outer, py::arg("a"), py::arg("g"), py::arg("features"), py::arg("workspace"),
        py::arg("dtype"), py::arg("precision"), py::arg("a_row_stride"), py::arg("a_channel_stride"),
        py::arg("a_y_stride"), py::arg("a_x_stride"), py::arg("g_row_stride"), py::arg("g_channel_stride"),
        py::arg("g_y_stride"), py::arg("g_x_stride"), py::arg("num_groups"), py::arg("rows_per_group"),
        py::arg("in_channels"), py::arg("in_height"), py::arg("in_width"), py::arg("out_channels"),
        py::arg("out_height"), py::arg("out_width"), py::arg("kernel_h"), py::arg("kernel_w"), py::arg("stride_h"),
        py::arg("stride_w"), py::arg("pad_h"), py::arg("pad_w"), py::arg("dilation_h"), py::arg("dilation_w"),
        py::arg("conv_groups"), py::arg("features_stride"), py::arg("proj_dim"), py::arg("key"), py::arg("nnz"),
        py::arg("cuda_stream"), release);
    cuda.def(
        "sketch_outer_workspace_floats", &sketch_outer_workspace_floats, py::arg("num_groups"), py::arg("in_channels"),
        py::arg("out_channels"), py::arg("kernel_h"), py::arg("kernel_w"), py::arg("conv_groups"), py::arg("proj_dim"),
        "Floats of workspace that sketch_outer needs; 0 means that it may be null.");
    cuda.def(
        "accumulate_gram", &accumulate_gram, py::arg("features"), py::arg("gram"), py::arg("workspace"),
        py::arg("workspace_floats"), py::arg("dtype"), py::arg("precision"), py::arg("num_samples"),
        py::arg("proj_dim"), py::arg("features_stride"), py::arg("gram_stride"), py::arg("cuda_stream"), release);
    cuda.def(
        "gram_workspace_floats", &gram_workspace_floats, py::arg("num_samples"), py::arg("proj_dim"),
        "Floats of workspace with which accumulate_gram is fastest; it takes any number and gives the same bits.");
    cuda.def("device_count", &device_count, "Devices that can be used; 0 where there is no driver.", release);
    cuda.def("runtime_version", &runtime_version, "CUDA runtime of this build, 1000 * major + 10 * minor.");
    cuda.def("driver_version", &driver_version, "Newest CUDA that the driver supports; 0 where there is no driver.");
}
