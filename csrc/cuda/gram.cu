// Gram matrix of the columns of a batch of features, upper triangle, added to a running sum.
//
//     gram[i, j] += sum_n features[n, i] * features[n, j]      j >= i
//
// Tiles of 128 x 64 entries on tensor cores (tile_matmul.h), tiles below the diagonal left out. Products are summed in
// fp32 over 512 samples and these sums in fp64 in memory, so the error does not grow with the number of samples beyond
// that of a dot product of 512: at most 48 units of 2^-23 of the sum of magnitudes (64 on tensor cores that would cut
// every addend to the bits of a float, which the tests emulate too).
//
// Two numbers, for 4096 samples and proj_dim 4096 in float32: 69 GFLOP in the triangle, and 1.1 GB of fp64 sums, read
// and written once per 512 samples, beside 67 MB of features. On an H200 (4.8 TB/s; about 400 TFLOP/s TF32, so about
// 130 as 3xTF32): 0.53 ms of arithmetic, 0.23 ms of memory, which overlap.
// Predicted on 30 November 2026, not yet measured on a GPU: no load is waited for before the products of its stage, of
// which a warp issues 8 instructions each in bf16 and 7 in float32 (docs/results/machine-code.md). Tested by emulation.
//
// Runs side by side: proj_dim 1024 has 72 tiles, and an H200 has room for 264 blocks. Below about 4096 a block is
// therefore one tile and one run of 512 samples; it leaves its fp32 sums in a workspace, and a second kernel adds the
// runs to gram in fp64, in their order. One block per tile makes the same additions, so neither the split nor the
// device shows in the result's bits. Passes of at most 2048 tiles times runs, 8 waves of blocks, bound the workspace
// to 64 MiB.
// For 50,000 samples and proj_dim 1024 in float32: 98 runs in 4 passes, 59 GFLOP, 0.45 ms; 0.46 GB of fp32 sums written
// and read, half of them in L2, 0.1 ms. Not split, 72 multiprocessors hold one warp per scheduler: 1.4 ms.
// Reference: journey/ops/reference.py::gram. BLAS calls this update SYRK.
#include "stage_operand.h"

namespace journey::cuda {
namespace {

constexpr int kBlocks = 2;  // per multiprocessor, so at most 255 registers per thread
constexpr int kWarpColumns = 2;
constexpr int kMTiles = 4, kNTiles = 4;  // a warp owns 64 x 32 entries
constexpr int kTileRows = 128;
constexpr int kTileCols = 64;
constexpr int64_t kRunSamples = 512;  // summed in fp32
constexpr int64_t kTileFloats = kTileRows * kTileCols;
constexpr int64_t kMaxPartials = 2048;  // tiles times runs of a pass
constexpr int kSumThreads = 256;
static_assert(kTileRows == 2 * kTileCols, "each row of tiles in the triangle has two less than the row before");
static_assert(kTileFloats % kSumThreads == 0, "whole blocks add a tile");
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
    const Features<input_t>& features, int64_t n, int64_t column, uint32_t (&words)[kFetched<input_t, kRows>]) {
    const int64_t sample = n + fetched_depth<input_t>();
    const input_t* from = features.data + sample * features.stride + column;
    const int64_t samples_left = features.num_samples - sample, columns_left = features.proj_dim - column;
    if (features.aligned) {
        fetch_across<input_t, kRows>(words, [&](int row, int half) {
            return Place{from + half * features.stride + row, half < samples_left && row < columns_left};
        });
    } else {
        fetch_words<input_t, kRows>(words, 0, [&](int row, int half) -> uint32_t {
            return half < samples_left && row < columns_left ? bits_of(from + half * features.stride + row) : 0u;
        });
    }
}

template <typename input_t, int kRows>
__device__ __forceinline__ void store(
    bool aligned, uint32_t* stage, const uint32_t (&words)[kFetched<input_t, kRows>]) {
    if (aligned)
        store_across<input_t, kRows>(stage, words);
    else
        store_words<input_t, kRows>(stage, words, 0);
}

// Tiles of the triangle in the rows before row y: row y of `across` tiles begins on the diagonal, at tile 2 y.
JOURNEY_HOST_DEVICE int64_t tiles_before(int64_t y, int64_t across) { return y * (across - y + 1); }

// This block's tile in the triangle, -1 below the diagonal, where there is nothing to do.
__device__ __forceinline__ int64_t tile_index() {
    const int64_t x = blockIdx.x, y = blockIdx.y;
    return x < 2 * y ? -1 : tiles_before(y, gridDim.x) + x - 2 * y;
}

// Leaves this warp's entries in the workspace, or adds them to gram, and zeroes them. Where they go is computed here,
// to save registers.
template <bool kInPasses>
__device__ __forceinline__ void flush(
    float* workspace,
    double* gram,
    int64_t gram_stride,
    int64_t proj_dim,
    int warp_row,
    int warp_column,
    float (&entries)[kMTiles][kNTiles][4]) {
    const int group = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2 * kMTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
            float* pair = &entries[i / 2][j][i % 2 * 2];
            const int in_row = warp_row + i * 8 + group, in_column = warp_column + j * 8 + 2 * t;
            if (kInPasses) {
                float* tile =
                    workspace + (blockIdx.z * tiles_before(gridDim.y, gridDim.x) + tile_index()) * kTileFloats;
                *reinterpret_cast<Float2*>(tile + in_row * kTileCols + in_column) = Float2{{pair[0], pair[1]}};
            } else {
                const int64_t row = int64_t{blockIdx.y} * kTileRows + in_row;
                const int64_t column = int64_t{blockIdx.x} * kTileCols + in_column;
                double* at = gram + row * gram_stride + column;
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (row <= column + e && column + e < proj_dim) at[e] += static_cast<double>(pair[e]);
            }
            pair[0] = pair[1] = 0.0f;
        }
    }
}

// Parallel over [tiles of j, tiles of i] and in passes [runs]: a block is 128 x 64 entries and a run or all samples, a
// warp owns 64 x 32 of the entries.
template <typename input_t, bool kSplit, bool kInPasses>
__global__ void __launch_bounds__(kTileThreads, kBlocks) accumulate_gram_kernel(
    const Features<input_t> features,
    double* __restrict__ gram,      // [proj_dim, proj_dim]
    float* __restrict__ workspace,  // [runs, tiles, 128, 64], in passes
    const int64_t gram_stride) {
    if (tile_index() < 0) return;
    constexpr int kDepth = kStageDepth<input_t>;
    alignas(16) __shared__ uint32_t stages[2][(kTileRows + kTileCols) * kStageWords];
    const int64_t first_row = int64_t{blockIdx.y} * kTileRows, first_column = int64_t{blockIdx.x} * kTileCols;
    const int left_row = warp_id() / kWarpColumns * kMTiles * 16;
    const int right_row = warp_id() % kWarpColumns * kNTiles * 8;
    const int64_t rows_left = features.proj_dim - first_row - left_row;
    const int m_tiles = rows_left < kMTiles * 16 ? static_cast<int>((rows_left + 15) / 16) : kMTiles;
    const int64_t begin = kInPasses ? blockIdx.z * kRunSamples : 0;
    const int64_t end =
        kInPasses && begin + kRunSamples < features.num_samples ? begin + kRunSamples : features.num_samples;

    uint32_t left[kFetched<input_t, kTileRows>], right[kFetched<input_t, kTileCols>];
    fetch<input_t, kTileRows>(features, begin, first_row, left);
    fetch<input_t, kTileCols>(features, begin, first_column, right);
    float entries[kMTiles][kNTiles][4] = {};
    int stage = 0, in_run = 0;
    for (int64_t n = begin; n < end; n += kDepth, stage ^= 1) {
        // The other stage may still be in use, this one is not since the barrier before.
        store<input_t, kTileRows>(features.aligned, stages[stage], left);
        store<input_t, kTileCols>(features.aligned, stages[stage] + kTileRows * kStageWords, right);
        // The stage is written.
        __syncthreads();
        const int64_t samples_left = end - n;
        if (samples_left > kDepth) {
            fetch<input_t, kTileRows>(features, n + kDepth, first_row, left);
            fetch<input_t, kTileCols>(features, n + kDepth, first_column, right);
        }
        multiply_stage<input_t, kSplit>(
            stages[stage], left_row, stages[stage], kTileRows + right_row, m_tiles, entries);
        in_run += kDepth;
        if (in_run == kRunSamples || samples_left <= kDepth) {
            in_run = 0;
            flush<kInPasses>(workspace, gram, gram_stride, features.proj_dim, left_row, right_row, entries);
        }
    }
}

// Parallel over [tiles of j, tiles of i, parts of a tile]: a thread owns one entry and adds its runs in their order.
__global__ void __launch_bounds__(kSumThreads) sum_runs_kernel(
    const float* __restrict__ workspace,  // [num_runs, tiles, 128, 64]
    double* __restrict__ gram,            // [proj_dim, proj_dim]
    const int64_t num_runs,
    const int64_t proj_dim,
    const int64_t gram_stride) {
    const int64_t tile_at = tile_index(), run_floats = tiles_before(gridDim.y, gridDim.x) * kTileFloats;
    const int in_tile = static_cast<int>(blockIdx.z) * kSumThreads + static_cast<int>(threadIdx.x);
    const int64_t row = int64_t{blockIdx.y} * kTileRows + in_tile / kTileCols;
    const int64_t column = int64_t{blockIdx.x} * kTileCols + in_tile % kTileCols;
    if (tile_at < 0 || row > column || column >= proj_dim) return;

    const float* partial = workspace + tile_at * kTileFloats + in_tile;
    double& entry = gram[row * gram_stride + column];
    double sum = entry;
#pragma unroll 4
    for (int64_t run = 0; run < num_runs; ++run) sum += static_cast<double>(partial[run * run_floats]);
    entry = sum;
}

Grid tiles_of(int64_t proj_dim, int64_t slices) {
    return Grid{ceil_div(proj_dim, kTileCols), ceil_div(proj_dim, kTileRows), slices};
}

int64_t count_tiles(int64_t proj_dim) {
    const Grid grid = tiles_of(proj_dim, 1);
    return tiles_before(grid.y, grid.x);
}

}  // namespace

int64_t accumulate_gram_workspace_floats(const GramArgs& args) {
    if (args.proj_dim < 1) return 0;
    const int64_t tiles = count_tiles(args.proj_dim);
    const int64_t runs = std::min(ceil_div(args.num_samples, kRunSamples), kMaxPartials / tiles);
    return runs > 1 ? runs * tiles * kTileFloats : 0;
}

cudaError_t accumulate_gram(const GramArgs& args, Workspace workspace, cudaStream_t stream) {
    if (args.num_samples == 0 || args.proj_dim == 0) return cudaSuccess;
    // Runs side by side in a pass; with room for one, each block goes through all of them instead.
    const int64_t runs = workspace.floats / (count_tiles(args.proj_dim) * kTileFloats);
    const bool in_passes = runs > 1;
    if (in_passes && workspace.data == nullptr) return cudaErrorInvalidValue;

    return dispatch(args.dtype, args.precision, [&](auto type, auto split) {
        using input_t = typename decltype(type)::type;
        Features<input_t> features{};
        features.proj_dim = args.proj_dim, features.stride = args.features_stride;
        features.aligned =
            has_aligned_rows<input_t>(args.features, args.features_stride) && args.proj_dim % kVector<input_t> == 0;
        const int64_t pass_samples = in_passes ? runs * kRunSamples : args.num_samples;
        for (int64_t begin = 0; begin < args.num_samples; begin += pass_samples) {
            features.data = static_cast<const input_t*>(args.features) + begin * args.features_stride;
            features.num_samples = std::min(pass_samples, args.num_samples - begin);
            const int64_t slices = in_passes ? ceil_div(features.num_samples, kRunSamples) : 1;
            const auto kernel = in_passes ? &accumulate_gram_kernel<input_t, decltype(split)::value, true>
                                          : &accumulate_gram_kernel<input_t, decltype(split)::value, false>;
            cudaError_t status = launch(
                kernel, tiles_of(args.proj_dim, slices), kTileThreads, 0, stream, features, args.gram, workspace.data,
                args.gram_stride);
            if (status == cudaSuccess && in_passes)
                status = launch(
                    sum_runs_kernel, tiles_of(args.proj_dim, kTileFloats / kSumThreads), kSumThreads, 0, stream,
                    workspace.data, args.gram, slices, args.proj_dim, args.gram_stride);
            if (status != cudaSuccess) return status;
        }
        return cudaSuccess;
    });
}

}  // namespace journey::cuda
