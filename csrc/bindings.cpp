// What Python can call: pointers, sizes and a thread count in, nothing decided here. Arguments are validated in
// journey/ops.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace py = pybind11;

#ifdef JOURNEY_WITH_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

using journey::cpu::Dense;
using journey::cpu::DType;

template <typename pointer_t>
pointer_t* as(uintptr_t address) {
    return reinterpret_cast<pointer_t*>(address);
}

void check_memory(bool allocated) {
    if (!allocated) throw std::bad_alloc();
}

void sketch(
    uintptr_t grads,
    uintptr_t features,
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
    int num_threads) {
    journey::cpu::SketchArgs args{};
    args.grads = as<const void>(grads);
    args.features = as<float>(features);
    args.dtype = static_cast<DType>(dtype);
    args.batch = batch;
    args.rows = rows;
    args.cols = cols;
    args.grads_batch_stride = grads_batch_stride;
    args.features_stride = features_stride;
    args.row_begin = row_begin;
    args.proj_dim = proj_dim;
    args.key = key;
    args.nnz = nnz;
    check_memory(journey::cpu::sketch(args, num_threads));
}

using Size3 = std::array<int64_t, 3>;

void sketch_outer(
    uintptr_t a,
    uintptr_t g,
    uintptr_t features,
    int dtype,
    bool channels_last,
    int64_t num_groups,
    int64_t rows_per_group,
    int64_t c_in,
    int64_t c_out,
    int64_t conv_groups,
    Size3 in_size,
    Size3 out_size,
    Size3 kernel,
    Size3 stride,
    Size3 padding,
    Size3 dilation,
    int64_t features_stride,
    int64_t proj_dim,
    uint64_t key,
    int64_t nnz,
    int num_threads) {
    journey::cpu::OuterArgs args{};
    args.a = as<const void>(a);
    args.g = as<const void>(g);
    args.features = as<float>(features);
    args.dtype = static_cast<DType>(dtype);
    args.channels_last = channels_last;
    args.num_groups = num_groups;
    args.rows_per_group = rows_per_group;
    args.c_in = c_in;
    args.c_out = c_out;
    args.conv_groups = conv_groups;
    std::copy(in_size.begin(), in_size.end(), args.in_size);
    std::copy(out_size.begin(), out_size.end(), args.out_size);
    std::copy(kernel.begin(), kernel.end(), args.kernel);
    std::copy(stride.begin(), stride.end(), args.stride);
    std::copy(padding.begin(), padding.end(), args.padding);
    std::copy(dilation.begin(), dilation.end(), args.dilation);
    args.features_stride = features_stride;
    args.proj_dim = proj_dim;
    args.key = key;
    args.nnz = nnz;
    check_memory(journey::cpu::sketch_outer(args, num_threads));
}

void project(
    uintptr_t grads,
    uintptr_t features,
    int dtype,
    int kind,
    int64_t batch,
    int64_t grad_dim,
    int64_t proj_dim,
    int64_t grads_stride,
    int64_t features_stride,
    int64_t row_begin,
    uint64_t key,
    int num_threads) {
    journey::cpu::ProjectArgs args{};
    args.grads = as<const void>(grads);
    args.features = as<float>(features);
    args.dtype = static_cast<DType>(dtype);
    args.kind = static_cast<Dense>(kind);
    args.batch = batch;
    args.grad_dim = grad_dim;
    args.proj_dim = proj_dim;
    args.grads_stride = grads_stride;
    args.features_stride = features_stride;
    args.row_begin = row_begin;
    args.key = key;
    check_memory(journey::cpu::project(args, num_threads));
}

void accumulate_gram(
    uintptr_t features,
    uintptr_t gram,
    int dtype,
    int64_t num_samples,
    int64_t proj_dim,
    int64_t features_stride,
    int64_t gram_stride,
    int num_threads) {
    journey::cpu::GramArgs args{};
    args.features = as<const void>(features);
    args.gram = as<double>(gram);
    args.dtype = static_cast<DType>(dtype);
    args.num_samples = num_samples;
    args.proj_dim = proj_dim;
    args.features_stride = features_stride;
    args.gram_stride = gram_stride;
    check_memory(journey::cpu::accumulate_gram(args, num_threads));
}

void philox_words(uintptr_t keys, uintptr_t indices, uintptr_t minors, uint32_t stream, int64_t n, uintptr_t out) {
    journey::cpu::philox_words(
        as<const uint64_t>(keys), as<const uint64_t>(indices), as<const uint32_t>(minors), stream, n, as<int64_t>(out));
}

void philox_normal(uintptr_t keys, uintptr_t minors, int64_t n, int64_t numel, uintptr_t out, int num_threads) {
    journey::cpu::philox_normal(
        as<const uint64_t>(keys), as<const uint32_t>(minors), n, numel, as<float>(out), num_threads);
}

py::dict build_info() {
    py::dict info;
    info["version"] = JOURNEY_VERSION;
    info["compiler"] = JOURNEY_COMPILER;
    info["isa"] = journey::cpu::isa_name();
#ifdef JOURNEY_WITH_CUDA
    info["cuda"] = true;
    info["cuda_compiler"] = JOURNEY_CUDA_COMPILER;
    info["cuda_architectures"] = JOURNEY_CUDA_ARCHITECTURES;
    info["cuda_off_reason"] = py::none();
#else
    info["cuda"] = false;
    info["cuda_compiler"] = py::none();
    info["cuda_architectures"] = py::none();
    info["cuda_off_reason"] = JOURNEY_CUDA_OFF_REASON;
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Compiled kernels of journey. Call them through journey.ops, which validates.";
    m.def("build_info", &build_info, "Version, compilers and options of this build.");

    py::module_ cpu = m.def_submodule("cpu", "Kernels for host memory.");
    const auto release = py::call_guard<py::gil_scoped_release>();
    cpu.def(
        "sketch", &sketch, py::arg("grads"), py::arg("features"), py::arg("dtype"), py::arg("batch"), py::arg("rows"),
        py::arg("cols"), py::arg("grads_batch_stride"), py::arg("features_stride"), py::arg("row_begin"),
        py::arg("proj_dim"), py::arg("key"), py::arg("nnz"), py::arg("num_threads"), release);
    cpu.def(
        "sketch_outer", &sketch_outer, py::arg("a"), py::arg("g"), py::arg("features"), py::arg("dtype"),
        py::arg("channels_last"), py::arg("num_groups"), py::arg("rows_per_group"), py::arg("c_in"), py::arg("c_out"),
        py::arg("conv_groups"), py::arg("in_size"), py::arg("out_size"), py::arg("kernel"), py::arg("stride"),
        py::arg("padding"), py::arg("dilation"), py::arg("features_stride"), py::arg("proj_dim"), py::arg("key"),
        py::arg("nnz"), py::arg("num_threads"), release);
    cpu.def(
        "project", &project, py::arg("grads"), py::arg("features"), py::arg("dtype"), py::arg("kind"), py::arg("batch"),
        py::arg("grad_dim"), py::arg("proj_dim"), py::arg("grads_stride"), py::arg("features_stride"),
        py::arg("row_begin"), py::arg("key"), py::arg("num_threads"), release);
    cpu.def(
        "accumulate_gram", &accumulate_gram, py::arg("features"), py::arg("gram"), py::arg("dtype"),
        py::arg("num_samples"), py::arg("proj_dim"), py::arg("features_stride"), py::arg("gram_stride"),
        py::arg("num_threads"), release);
    cpu.def(
        "philox_words", &philox_words, py::arg("keys"), py::arg("indices"), py::arg("minors"), py::arg("stream"),
        py::arg("n"), py::arg("out"), release);
    cpu.def(
        "philox_normal", &philox_normal, py::arg("keys"), py::arg("minors"), py::arg("n"), py::arg("numel"),
        py::arg("out"), py::arg("num_threads"), release);
    cpu.def("isa", &journey::cpu::isa_name, "The instruction set in use: amx, avx512, avx2 or baseline.");
    cpu.def(
        "set_isa",
        [](const std::string& name) {
            if (!journey::cpu::set_isa(name.c_str()))
                throw std::invalid_argument(
                    "isa must be one that this build and processor have (amx, avx512, avx2, baseline), got " + name);
        },
        py::arg("name"), "Use another instruction set, for tests and benches.");

#ifdef JOURNEY_WITH_CUDA
    bind_cuda(m);
#endif
}
