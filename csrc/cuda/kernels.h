// Launchers of the CUDA kernels: what common/args.h describes, a workspace and a stream in, status out. No torch, no
// Python.
//
// No launcher allocates, synchronises or copies to the host, so all can be captured in a CUDA graph. Results are
// bitwise equal from run to run and do not depend on the number of multiprocessors: no float atomics, and work is split
// by the shape alone. What a sample's features are does not depend on the batch it came in.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/args.h"

namespace journey::cuda {

// Uninitialised memory of the caller's on the device, of as many floats as the function beside the launcher says; null
// where that is 0.
struct Workspace {
    float* data;
    int64_t floats;
};

[[nodiscard]] cudaError_t philox_words(const PhiloxWordsArgs& args, Workspace, cudaStream_t stream);
[[nodiscard]] cudaError_t philox_normal(const PhiloxNormalArgs& args, Workspace, cudaStream_t stream);

[[nodiscard]] cudaError_t sketch(const SketchArgs& args, Workspace workspace, cudaStream_t stream);
int64_t sketch_workspace_floats(const SketchArgs& args);

// In one launch for each 64 parameters and one more; a block needs 4 * proj_dim bytes of shared memory.
[[nodiscard]] cudaError_t sketch_many(const SketchManyArgs& args, Workspace workspace, cudaStream_t stream);
int64_t sketch_many_workspace_floats(const SketchManyArgs& args);

[[nodiscard]] cudaError_t project(const ProjectArgs& args, Workspace workspace, cudaStream_t stream);
int64_t project_workspace_floats(const ProjectArgs& args);

// The gradient is never in memory. Of Conv1d, Conv2d and Linear.
[[nodiscard]] cudaError_t sketch_outer(const SketchOuterArgs& args, Workspace workspace, cudaStream_t stream);
int64_t sketch_outer_workspace_floats(const SketchOuterArgs& args);

// One launch for each layer, and one for each 64 of them or 64 MiB of workspace.
[[nodiscard]] cudaError_t sketch_outer_many(const SketchOuterManyArgs& args, Workspace workspace, cudaStream_t stream);
int64_t sketch_outer_many_workspace_floats(const SketchOuterManyArgs& args);

// In one launch, or two where a layer norm has many positions.
[[nodiscard]] cudaError_t norm_grads(const NormGradsArgs& args, Workspace workspace, cudaStream_t stream);
int64_t norm_grads_workspace_floats(const NormGradsArgs& args);

// Takes any number of floats and gives the same bits. The function says the most that helps, at most 2^24.
[[nodiscard]] cudaError_t accumulate_gram(const GramArgs& args, Workspace workspace, cudaStream_t stream);
int64_t accumulate_gram_workspace_floats(const GramArgs& args);

// Both read vectors of 16 bytes: every row must begin at a multiple of that.
[[nodiscard]] cudaError_t pack_rows(const PackRowsArgs& args, Workspace, cudaStream_t stream);
[[nodiscard]] cudaError_t packed_products(const PackedProductsArgs& args, Workspace, cudaStream_t stream);

}  // namespace journey::cuda
