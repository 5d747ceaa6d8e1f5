// What Python can call: an operation's arguments by their names and a thread count in, nothing decided here. Arguments
// are validated in journey/ops.
#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "read_args.h"

namespace py = pybind11;

#ifdef JOURNEY_WITH_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

template <typename args_t>
void bind(py::module_& cpu, const char* op, bool (*run)(const args_t&, int)) {
    const auto call = [op, run](const py::dict& given, int num_threads) {
        const auto args = journey::read_args<args_t>(given);
        const py::gil_scoped_release release;
        if (!run(args, num_threads)) throw std::bad_alloc();
    };
    cpu.def(op, call, py::arg("args"), py::arg("num_threads"), args_t::field_names());
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

    py::module_ cpu = m.def_submodule("cpu", "Kernels for host memory, each of a dict of what its docstring lists.");
    bind(cpu, "philox_words", &journey::cpu::philox_words);
    bind(cpu, "philox_normal", &journey::cpu::philox_normal);
    bind(cpu, "sketch", &journey::cpu::sketch);
    bind(cpu, "sketch_many", &journey::cpu::sketch_many);
    bind(cpu, "sketch_outer", &journey::cpu::sketch_outer);
    bind(cpu, "sketch_outer_many", &journey::cpu::sketch_outer_many);
    bind(cpu, "project", &journey::cpu::project);
    bind(cpu, "accumulate_gram", &journey::cpu::accumulate_gram);
    bind(cpu, "pack_rows", &journey::cpu::pack_rows);
    bind(cpu, "packed_products", &journey::cpu::packed_products);
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
