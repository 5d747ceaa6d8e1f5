// The first half of `sketch_outer`, whose second half is a sum that several layers share (sketch_outer_many.cu).
#pragma once

#include "launch.h"

namespace journey::cuda {

// Whether the arguments make sense and fit.
bool is_valid_layer(const SketchOuterArgs& args);

// Partial sketches of each group; 0 for a layer of nothing.
int64_t count_outer_slices(const SketchOuterArgs& args);

// Writes them. [num_groups, count, proj_dim]
[[nodiscard]] cudaError_t write_outer_partials(const SketchOuterArgs& args, float* partials, cudaStream_t stream);

}  // namespace journey::cuda
