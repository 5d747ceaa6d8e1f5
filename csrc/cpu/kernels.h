// The CPU operations: what common/args.h describes in, no torch, no Python, no exceptions.
//
// Each kernel is compiled once per instruction set (see isa.h) and works on a range of rows, columns or samples;
// the drivers declared here choose the instruction set at run time and split the work over threads in a way that
// never changes the result. They return false when memory could not be had.
#pragma once

#include "../common/args.h"

namespace journey::cpu {

[[nodiscard]] bool philox_words(const PhiloxWordsArgs& args, int num_threads);
[[nodiscard]] bool philox_normal(const PhiloxNormalArgs& args, int num_threads);
[[nodiscard]] bool sketch(const SketchArgs& args, int num_threads);
[[nodiscard]] bool sketch_many(const SketchManyArgs& args, int num_threads);
[[nodiscard]] bool sketch_outer(const SketchOuterArgs& args, int num_threads);
[[nodiscard]] bool sketch_outer_many(const SketchOuterManyArgs& args, int num_threads);
[[nodiscard]] bool project(const ProjectArgs& args, int num_threads);
[[nodiscard]] bool accumulate_gram(const GramArgs& args, int num_threads);
[[nodiscard]] bool pack_rows(const PackRowsArgs& args, int num_threads);
[[nodiscard]] bool packed_products(const PackedProductsArgs& args, int num_threads);

// The instruction set chosen at run time: "amx" (AVX-512 and the matrix unit), "avx512", "avx2" or "baseline".
const char* isa_name();

// Chooses another one, for tests and benches; false if this machine or build lacks it.
bool set_isa(const char* name);

}  // namespace journey::cpu
