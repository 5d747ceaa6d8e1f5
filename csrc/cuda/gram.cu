// Gram matrix of the columns of a batch of features, upper triangle, added to a running sum.
//
//     gram[i, j] += sum_n features[n, i] * features[n, j]      j >= i
//
// Tiles of 128 x 64 entries on tensor cores (tile_matmul.h), tiles below the diagonal left out. Products are summed in
// fp32 over 512 samples and these sums in fp64 in memory, so the error does not grow with the number of samples beyond
// that of a dot product of 512: at most 48 units of 2^-23 of the sum of magnitudes.
//
// Two numbers, for 4096 samples and proj_dim 4096 in float32: 69 GFLOP in the triangle, and 1.1 GB of fp64 sums, read
// and written once per 512 samples, beside 67 MB of features. On an H200 (4.8 TB/s; about 400 TFLOP/s TF32, so about
// 130 as 3xTF32): 0.53 ms of arithmetic, 0.23 ms of memory, which overlap.
// Ladder, each effect predicted and NOT YET MEASURED on a device:
//   1. FMAs, 64 x 64 tiles, fp64 sums in registers every 32 samples    45 TFLOP/s at most
//   2. 3xTF32, 128 x 64 tiles, fp64 sums in memory every 512 samples   2.5x in float32, 8x in bf16
//   3. copies of the next samples in flight while these are multiplied  1.3x
// Few features (proj_dim below 1024) leave multiprocessors idle; there the whole update is under 0.1 ms.
// Reference: journey/reference.py::gram. BLAS calls this update SYRK.
#include "stage_operand.h"

namespace journey::cuda {
namespace {

constexpr int kBlocks = 2;  // per multiprocessor, so at most 255 registers per thread
constexpr int kWarpColumns = 2;
constexpr int kMTiles = 4, kNTiles = 4;  // a warp owns 64 x 32 entries
constexpr int kTileRows = 128;
constexpr int kTileCols = 64;
constexpr int64_t kRunSamples = 512;  // summed in fp32
static_assert(kTileRows / (kMTiles * 16) * kWarpColumns * kWarpLanes == kTileThreads, "four warps");
static_assert(kTileCols == kWarpColumns * kNTiles * 8, "two warp columns");
static_assert(kRunSamples % kStageDepth<float> == 0 && kRunSamples % kStageDepth<__half> == 0, "whole stages");

template <typename input_t>
struct Features {
    const input_t* data;  // [num_samples, proj_dim]
    int64_t num_samples;
    int64_t proj_dim;
    int64_t stride;
    bool aligned;  // to 16 bytes, every row and its end
};

// Brings samples [n, n + kStageDepth) of kRows columns from `column` into registers; zeros beyond the matrix.
template <typename input_t, int kRows>
__device__ __forceinline__ void fetch(
    const Features<input_t>& features, int64_t n, int64_t column, uint32_t (&words)[kRows / 8]) {
    const int64_t sample = n + fetched_depth<input_t>();
    const input_t* from = features.data + sample * features.stride + column;
    const int64_t samples_left = features.num_samples - sample, columns_left = features.proj_dim - column;
    if (features.aligned) {
        fetch_across<input_t, kRows>(words, [&](int row, int half) -> const void* {
            return half < samples_left && row < columns_left ? from + half * features.stride + row : nullptr;
        });
    } else {
        fetch_words<input_t, kRows>(words, 0, [&](int row, int half) -> uint32_t {
            return half < samples_left && row < columns_left ? bits_of(from + half * features.stride + row) : 0u;
        });
    }
}

template <typename input_t, int kRows>
__device__ __forceinline__ void store(bool aligned, uint32_t* stage, const uint32_t (&words)[kRows / 8]) {
    if (aligned)
        store_across<input_t, kRows>(stage, words);
    else
        store_words<kRows>(stage, words, 0);
}

// Adds the entries of this warp's rows and columns to gram and zeroes them.
__device__ __forceinline__ void flush(
    double* gram,
    int64_t gram_stride,
    int64_t proj_dim,
    int64_t first_row,
    int64_t first_column,
    float (&entries)[kMTiles][kNTiles][4]) {
    const int group = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < kMTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int64_t row = first_row + i * 16 + e / 2 * 8 + group,
                              column = first_column + j * 8 + 2 * t + e % 2;
                if (row <= column && column < proj_dim)
                    gram[row * gram_stride + column] += static_cast<double>(entries[i][j][e]);
                entries[i][j][e] = 0.0f;
            }
        }
    }
}

// Parallel over [tiles of j, tiles of i]: a block is 128 x 64 entries and all samples, a warp owns 64 x 32 of them.
template <typename input_t, bool kSplit>
__global__ void __launch_bounds__(kTileThreads, kBlocks) accumulate_gram_kernel(
    const Features<input_t> features,
    double* __restrict__ gram,  // [proj_dim, proj_dim]
    const int64_t gram_stride) {
    const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
    const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kTileCols;
    // Tiles below the diagonal have nothing to do.
    if (first_column + kTileCols <= first_row) return;
    constexpr int kDepth = kStageDepth<input_t>;
    alignas(16) __shared__ uint32_t stages[2][(kTileRows + kTileCols) * kStageWords];
    const int left_row = warp_id() / kWarpColumns * kMTiles * 16;
    const int right_row = warp_id() % kWarpColumns * kNTiles * 8;

    uint32_t left[kTileRows / 8], right[kTileCols / 8];
    fetch<input_t, kTileRows>(features, 0, first_row, left);
    fetch<input_t, kTileCols>(features, 0, first_column, right);
    float entries[kMTiles][kNTiles][4] = {};
    int stage = 0, in_run = 0;
    for (int64_t n = 0; n < features.num_samples; n += kDepth, stage ^= 1) {
        // The other stage may still be in use, this one is not since the barrier before.
        store<input_t, kTileRows>(features.aligned, stages[stage], left);
        store<input_t, kTileCols>(features.aligned, stages[stage] + kTileRows * kStageWords, right);
        // The stage is written.
        __syncthreads();
        const int64_t samples_left = features.num_samples - n;
        if (samples_left > kDepth) {
            fetch<input_t, kTileRows>(features, n + kDepth, first_row, left);
            fetch<input_t, kTileCols>(features, n + kDepth, first_column, right);
        }
        const int depth = samples_left < kDepth ? static_cast<int>(samples_left) : kDepth;
        multiply_stage<input_t, kSplit>(
            stages[stage], left_row, stages[stage], kTileRows + right_row, kMTiles,
            (depth + kPerWord<input_t> - 1) / kPerWord<input_t>, entries);
        in_run += kDepth;
        if (in_run == kRunSamples || samples_left <= kDepth) {
            in_run = 0;
            flush(gram, gram_stride, features.proj_dim, first_row + left_row, first_column + right_row, entries);
        }
    }
}

}  // namespace

cudaError_t accumulate_gram(
    const void* features,
    double* gram,
    DType dtype,
    Precision precision,
    int64_t num_samples,
    int64_t proj_dim,
    int64_t features_stride,
    int64_t gram_stride,
    cudaStream_t stream) {
    if (num_samples == 0) return cudaSuccess;
    return dispatch(dtype, precision, [&](auto type, auto split) {
        using input_t = typename decltype(type)::type;
        const bool aligned = has_aligned_rows<input_t>(features, features_stride) && proj_dim % kVector<input_t> == 0;
        return launch(
            accumulate_gram_kernel<input_t, decltype(split)::value>,
            Grid{ceil_div(proj_dim, kTileCols), ceil_div(proj_dim, kTileRows)}, kTileThreads, 0, stream,
            Features<input_t>{static_cast<const input_t*>(features), num_samples, proj_dim, features_stride, aligned},
            gram, gram_stride);
    });
}

}  // namespace journey::cuda
