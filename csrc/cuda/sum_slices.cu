// Ordered sum of partial features, the second step of every kernel that splits one sample over several blocks.
//
//     features[b, k] += scale * sum_s partials[b, s, k]        of one operation after the other
//
// Several operations cost one launch, and each feature is read and written once; the bits are those of one by one.
//
// Two numbers, for 32 samples in 64 slices and proj_dim 4096: 34 MB read once, mostly from L2, where they have just
// been written, and one addition for each of 8.4 M partials. On an H200 (4.8 TB/s): 7 us, were they in memory.
// Status, November 2026: tested on the CPU by emulation, not measured on a GPU yet (docs/development/kernels.md).
#include "launch.h"

namespace journey::cuda {
namespace {

constexpr int kThreads = 256;

// Parallel over [batch, proj_dim]: a block is 256 features of one sample, a thread owns one.
__global__ void __launch_bounds__(kThreads) add_slice_sums_kernel(
    const SliceSums sums,
    float* __restrict__ features,  // [batch, proj_dim]
    const int64_t proj_dim,
    const int64_t features_stride) {
    const int64_t b = blockIdx.x;
    const int64_t k = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
    if (k >= proj_dim) return;

    float feature = features[b * features_stride + k];
    for (int i = 0; i < sums.count; ++i) {
        const int64_t num_slices = sums.sum[i].num_slices;
        const float* partial = sums.sum[i].partials + b * num_slices * proj_dim + k;
        float sum = 0.0f;
        for (int64_t s = 0; s < num_slices; ++s) sum += partial[s * proj_dim];
        feature += mul_rn(sums.sum[i].scale, sum);
    }
    features[b * features_stride + k] = feature;
}

}  // namespace

cudaError_t add_slice_sums(
    const SliceSums& sums,
    float* features,
    int64_t batch,
    int64_t proj_dim,
    int64_t features_stride,
    cudaStream_t stream) {
    if (sums.count == 0) return cudaSuccess;
    const Grid grid{batch, ceil_div(proj_dim, kThreads)};
    return launch(add_slice_sums_kernel, grid, kThreads, 0, stream, sums, features, proj_dim, features_stride);
}

}  // namespace journey::cuda
