// Gram matrix of the columns of a batch of features, upper triangle, added to a running sum.
//
//     gram[i, j] += sum_n features[n, i] * features[n, j]      j >= i
//
// Products are summed in fp32 over 32 samples and these sums in fp64, so the error does not grow with the number of
// samples beyond that of a dot product of 32. Floor: num_samples * proj_dim^2 FLOPs in fp32, one fp64 add per 32 of
// them, and reading and writing 8 bytes for each entry of the triangle.
// Reference: journey/reference.py::gram. BLAS calls this update SYRK.
#include "launch.h"

namespace journey::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64;     // entries of gram per block and side: 4 x 4 per thread
constexpr int kSamples = 32;  // summed in fp32; two operands of this depth are 16 KiB of shared memory

// Reads samples [n, n + 32) of columns [column, column + 64); zeros stand for what lies outside the matrix.
template <typename input_t>
__device__ __forceinline__ void load_columns(
    const input_t* features,
    int64_t n,
    int64_t column,
    int64_t num_samples,
    int64_t proj_dim,
    int64_t features_stride,
    Float4 (&tile)[kSamples][kTile / 4]) {
    const int c = static_cast<int>(threadIdx.x) % kTile;
#pragma unroll
    for (int s = static_cast<int>(threadIdx.x) / kTile; s < kSamples; s += kThreads / kTile) {
        const bool inside = n + s < num_samples && column + c < proj_dim;
        tile[s][c / 4].value[c % 4] = inside ? to_float(features[(n + s) * features_stride + column + c]) : 0.0f;
    }
}

// Parallel over [tiles of i, tiles of j]: a block is 64 x 64 entries and all samples, a thread owns 4 x 4 entries.
template <typename input_t>
__global__ void __launch_bounds__(kThreads) accumulate_gram_kernel(
    const input_t* __restrict__ features,  // [num_samples, proj_dim]
    double* __restrict__ gram,             // [proj_dim, proj_dim]
    const int64_t num_samples,
    const int64_t proj_dim,
    const int64_t features_stride,
    const int64_t gram_stride) {
    // Blocks below the diagonal have nothing to do.
    if (blockIdx.y > blockIdx.x) return;
    __shared__ Float4 left[kSamples][kTile / 4], right[kSamples][kTile / 4];
    const int row_group = static_cast<int>(threadIdx.x) / 16, column_group = static_cast<int>(threadIdx.x) % 16;
    const int64_t first_i = static_cast<int64_t>(blockIdx.y) * kTile,
                  first_j = static_cast<int64_t>(blockIdx.x) * kTile;

    double total[4][4] = {};
    for (int64_t n = 0; n < num_samples; n += kSamples) {
        // The samples before have been used.
        __syncthreads();
        load_columns(features, n, first_i, num_samples, proj_dim, features_stride, left);
        load_columns(features, n, first_j, num_samples, proj_dim, features_stride, right);
        // These samples are written.
        __syncthreads();
        float sum[4][4] = {};
#pragma unroll 8
        for (int s = 0; s < kSamples; ++s) {
            const Float4 a = left[s][row_group], b = right[s][column_group];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(a.value[i], b.value[j], sum[i][j]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) total[i][j] += static_cast<double>(sum[i][j]);
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t row = first_i + row_group * 4 + i, column = first_j + column_group * 4 + j;
            if (row <= column && column < proj_dim) gram[row * gram_stride + column] += total[i][j];
        }
    }
}

}  // namespace

cudaError_t accumulate_gram(
    const void* features,
    double* gram,
    DType dtype,
    Precision,
    int64_t num_samples,
    int64_t proj_dim,
    int64_t features_stride,
    int64_t gram_stride,
    cudaStream_t stream) {
    if (num_samples == 0) return cudaSuccess;
    const int64_t tiles = ceil_div(proj_dim, kTile);
    return dispatch(dtype, [&](auto type) {
        using input_t = typename decltype(type)::type;
        return launch(
            accumulate_gram_kernel<input_t>, Grid{tiles, tiles}, kThreads, 0, stream,
            static_cast<const input_t*>(features), gram, num_samples, proj_dim, features_stride, gram_stride);
    });
}

}  // namespace journey::cuda
