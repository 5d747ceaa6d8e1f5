// Per-sample weight gradient of a Linear or convolution layer and its sketch, in one kernel.
//
//     grad[o, col] = sum_{n, y, x} g[n, o, y, x] * a[n, channel, y * stride_h + ky * dilation_h - pad_h, ...]
//     features[group, bucket(o, col)] += sign(o, col) * grad[o, col] / sqrt(nnz)         common/sketch_map.h
//
// with col = (i * kernel_h + ky) * kernel_w + kx, channel = i + the first input channel of o's convolution group, and n
// over the rows of a group (the draws of one sample): they are contracted inside the product, so projecting costs the
// same for any number of draws. A block forms 128 x 64 tiles of the gradient in registers, on tensor cores (see
// tile_matmul.h for types and precision), and adds each to proj_dim sums of its own in shared memory. Each warp column
// owns one chunk of 32 columns and one copy of the sums: warps of different columns never meet. Stages of all tiles of
// a block form one sequence, loaded two ahead, so the first stages of a tile travel while the tile before is added:
// layers of 16 positions, which are one stage per tile, are not starved.
//
// Two numbers, for 256 channels, 3x3, 16x16 positions, 4 draws, bf16, one sample: 2 * 1024 * 256 * 2304 = 1.21 GFLOP
// and 1.0 MB of a and g. On an H200 (4.8 TB/s; 790 TFLOP/s bf16 as a large product measures, about 400 TF32): 1.5 us
// of arithmetic, 0.2 us of memory; adding to the sums, 16 bytes of shared memory per entry at 128 bytes a cycle on
// 132 multiprocessors, adds 0.3 us. At 4x4 positions the sums cost more than the product: they are then the bound.
// Status, November 2026: tested on the CPU by emulation, not measured on a GPU yet (docs/development/kernels.md).
// Layers with few output channels (the last of a UNet, LoRA, depthwise) skip what they do not have by 16 rows in warps
// of 64, but stage all 128 and are far from the floor. Chips with 100 KiB of shared memory hold one block at a time.
// Reference: journey/ops/reference.py::sketch_outer.
#include <cmath>

#include "layer_tiles.h"

namespace journey::cuda {
namespace {

constexpr int kBlocks = 2;  // per multiprocessor: 255 registers per thread, and 77 KiB of shared memory at 4096
constexpr int kWarpColumns = 2;
constexpr int kWarpRows = 2;
constexpr int kMTiles = 4;  // of 16 rows, per warp
constexpr int kNTiles = 4;  // of 8 columns, per warp: one chunk
constexpr int kStages = 3;
constexpr int kStageRows = kTileRows + kTileCols;
constexpr int64_t kMinTilesPerSlice = 4;  // the sums of a slice cost as much memory traffic as one tile
constexpr int64_t kMaxSlices = 64;
static_assert(kNTiles * 8 == kLanes, "a warp column is one chunk");
static_assert(kWarpRows * kWarpColumns * kWarpLanes == kTileThreads, "four warps");
static_assert(kTileRows == kWarpRows * kMTiles * 16 && kTileCols == kWarpColumns * kLanes, "warps cover a tile");

// Dynamic shared memory; the sums follow it.
struct Shared {
    uint32_t stages[kStages][kStageRows * kStageWords];  // rows of g, then columns of a
    // Of two consecutive tiles, because the loads run ahead.
    Offset rows[2][kTileRows];
    Offset columns[2][kTileCols];
    uint32_t signs[kWarpColumns][kTileRows];
};

Slices outer_slices(const Tiling& tiling) { return make_slices(tiling.num_tiles, kMinTilesPerSlice, kMaxSlices); }

// Where sum k of the sketch lies: groups of 8 lanes are swapped by the bucket row, so that the four rows that half a
// warp adds to at once lie in different banks.
__device__ __forceinline__ int sum_at(int bucket_row, int lane) {
    return bucket_row * kLanes + (lane ^ ((bucket_row & 3) << 3));
}

// Adds those of this warp's 64 x 32 entries to `sums` that lie in one row block of the sketch, the tile's row r at row
// `offset` + r of the block. Two entries of one sketch tile never collide, so threads need no atomics as long as one
// sketch tile is added between two barriers.
__device__ __forceinline__ void add_entries(
    const TileAt& at,
    int offset,
    const Placement& placement,
    int bucket_rows,
    const uint32_t* signs,
    const float (&entries)[kMTiles][kNTiles][4],
    float* sums) {
    const int warp_row = warp_id() / kWarpColumns, warp_column = warp_id() % kWarpColumns;
    const int group = lane_id() / 4, first_column = lane_id() % 4 * 2;
    const int columns_left = at.num_cols - warp_column * kLanes;
    const bool swap = (placement.lane_mask & 1u) != 0u;
    const int lane_mask = static_cast<int>(placement.lane_mask & ~1u);
#pragma unroll
    for (int i = 0; i < 2 * kMTiles; ++i) {
        const int row = warp_row * kMTiles * 16 + i * 8 + group;
        const int in_block = offset + row;
        if (row >= at.num_rows || in_block < 0 || in_block >= bucket_rows) continue;
        int bucket_row = in_block + static_cast<int>(placement.rotation);
        if (bucket_row >= bucket_rows) bucket_row -= bucket_rows;
        const uint32_t row_signs = signs[row];
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
            const int c = j * 8 + first_column;
            const float* pair = &entries[i / 2][j][i % 2 * 2];
            float even = c < columns_left ? bits_float(float_bits(pair[0]) ^ (row_signs >> c << 31)) : 0.0f;
            float odd = c + 1 < columns_left ? bits_float(float_bits(pair[1]) ^ (row_signs >> (c + 1) << 31)) : 0.0f;
            Float2* at_pair = reinterpret_cast<Float2*>(sums + sum_at(bucket_row, c ^ lane_mask));
            Float2 sum = *at_pair;
            sum.value[0] += swap ? odd : even;
            sum.value[1] += swap ? even : odd;
            *at_pair = sum;
        }
    }
}

// The block's sums, in shared memory or in its part of the workspace; computed where they are used, to save registers.
template <bool kSharedSums>
__device__ __forceinline__ float* block_sums(const OuterProblem& problem) {
    if (kSharedSums) return dynamic_shared() + sizeof(Shared) / sizeof(float);
    return problem.workspace + (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * problem.proj_dim;
}

// Adds the tile's entries to the sums, sketch tile by sketch tile. With kSharedSums each warp column has a copy of the
// sums, else they take turns.
template <bool kSharedSums>
__device__ __forceinline__ void sketch_entries(
    const OuterProblem& problem,
    const Tiling& tiling,
    const TileAt& at,
    const float (&entries)[kMTiles][kNTiles][4],
    Shared& shared) {
    float* sums = block_sums<kSharedSums>(problem);
    const int bucket_rows = problem.proj_dim / kLanes, first_chunk = at.col_begin / kLanes;
    const int thread = static_cast<int>(threadIdx.x), warp_column = warp_id() % kWarpColumns;
    for (uint32_t repetition = 0; repetition < problem.nnz; ++repetition) {
        // The signs of the round before have been used; those of the tile before were before the stage's barrier.
        if (repetition > 0) __syncthreads();
#pragma unroll
        for (int c = 0; c < kWarpColumns; ++c)
            if (thread < at.num_rows && c * kLanes < at.num_cols)
                shared.signs[c][thread] = sketch_signs(
                    problem.key, repetition, int64_t{at.row_begin + thread} * tiling.chunks + first_chunk + c);
        for (int block = at.row_begin / bucket_rows; block * bucket_rows < at.row_begin + at.num_rows; ++block) {
            const Placement placement = sketch_placement(
                problem.key, repetition, int64_t{block} * tiling.chunks + first_chunk + warp_column, bucket_rows);
            for (int turn = 0; turn < (kSharedSums ? 1 : kWarpColumns); ++turn) {
                // The signs are written; the sketch tile before has been added.
                __syncthreads();
                if ((kSharedSums || turn == warp_column) && warp_column * kLanes < at.num_cols)
                    add_entries(
                        at, at.row_begin - block * bucket_rows, placement, bucket_rows, shared.signs[warp_column],
                        entries, sums + (kSharedSums ? warp_column * problem.proj_dim : 0));
            }
        }
    }
}

// A stage of a tile, in the order in which a block goes through them.
struct Cursor {
    int tile;
    int pair;  // first of the stage

    template <int kDepth>
    __device__ __forceinline__ void advance(int num_pairs) {
        pair += kDepth;
        if (pair >= num_pairs) pair = 0, ++tile;
    }
};

// Words of both operands on their way into a stage.
struct InFlight {
    uint32_t g[kTileRows / 8];
    uint32_t a[kTileCols / 8];
};

template <typename input_t>
__device__ __forceinline__ void begin_stage(
    const OuterProblem& problem, const Cursor& at, int stage, Shared& shared, InFlight& words) {
    uint32_t* g = shared.stages[stage];
    const int buffer = at.tile & 1;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * problem.rows_per_group;
    begin_operand<input_t, kTileRows>(problem.g, problem.pairs, first_row, at.pair, shared.rows[buffer], g, words.g);
    begin_operand<input_t, kTileCols>(
        problem.a, problem.pairs, first_row, at.pair, shared.columns[buffer], g + kTileRows * kStageWords, words.a);
}

template <typename input_t>
__device__ __forceinline__ void finish_stage(
    const OuterProblem& problem, int stage, Shared& shared, const InFlight& words) {
    uint32_t* g = shared.stages[stage];
    finish_operand<input_t, kTileRows>(problem.g.layout, g, words.g);
    finish_operand<input_t, kTileCols>(problem.a.layout, g + kTileRows * kStageWords, words.a);
}

// Parallel over [groups, slices of tiles]: a block is one group and slice and owns proj_dim sums, in shared memory or,
// without kSharedSums, in its part of the workspace. A warp owns 64 x 32 entries of each tile.
template <typename input_t, bool kSplit, bool kSharedSums>
__global__ void __launch_bounds__(kTileThreads, kBlocks)
    sketch_outer_kernel(const OuterProblem problem, const Tiling tiling, const int tiles_per_slice) {
    constexpr int kDepth = kStageDepth<input_t>;
    Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared());
    const int thread = static_cast<int>(threadIdx.x);
    const int warp_row = warp_id() / kWarpColumns, warp_column = warp_id() % kWarpColumns;
    const int tile_begin = static_cast<int>(blockIdx.y) * tiles_per_slice;
    const int tile_end =
        tile_begin + tiles_per_slice < tiling.num_tiles ? tile_begin + tiles_per_slice : tiling.num_tiles;

    // Zero the sums.
    float* sums = block_sums<kSharedSums>(problem);
    for (int k = thread; k < (kSharedSums ? kWarpColumns : 1) * problem.proj_dim; k += kTileThreads) sums[k] = 0.0f;

    // Fill the pipeline: bring the first two stages.
    Cursor loading{tile_begin, 0}, using_stage = loading;
    InFlight words;
    for (int stage = 0; stage < kStages - 1; ++stage) {
        if (loading.tile < tile_end) {
            if (loading.pair == 0)
                decode_lines(
                    problem, locate(tiling, loading.tile), shared.rows[loading.tile & 1],
                    shared.columns[loading.tile & 1]);
            // The lines are decoded.
            __syncthreads();
            begin_stage<input_t>(problem, loading, stage, shared, words);
            finish_stage<input_t>(problem, stage, shared, words);
            loading.advance<kDepth>(problem.pairs.count);
        }
        commit_copies();
    }
    // Decode the lines of a tile that begins with the third stage.
    if (loading.pair == 0 && loading.tile < tile_end)
        decode_lines(
            problem, locate(tiling, loading.tile), shared.rows[loading.tile & 1], shared.columns[loading.tile & 1]);

    // For every stage of every tile: load, multiply, add.
    int stage = 0;
    float entries[kMTiles][kNTiles][4] = {};
    while (using_stage.tile < tile_end) {
        wait_for_copies<kStages - 2>();
        // This stage is written, with the lines of the next to load, and the stage before has been used.
        __syncthreads();

        // Load: start the stage that is two ahead.
        const bool loads = loading.tile < tile_end;
        const int free_stage = stage == 0 ? kStages - 1 : stage - 1;
        if (loads) begin_stage<input_t>(problem, loading, free_stage, shared, words);
        commit_copies();

        // Multiply this stage into the tile's entries.
        const TileAt at = locate(tiling, using_stage.tile);
        const int left_row = warp_row * kMTiles * 16, pairs_left = problem.pairs.count - using_stage.pair;
        if (left_row < at.num_rows && warp_column * kLanes < at.num_cols)
            multiply_stage<input_t, kSplit>(
                shared.stages[stage], left_row, shared.stages[stage], kTileRows + warp_column * kLanes,
                (at.num_rows - left_row + 15) / 16, (pairs_left + kPerWord<input_t> - 1) / kPerWord<input_t>, entries);

        // Complete the load, and decode the lines of the next tile.
        if (loads) {
            finish_stage<input_t>(problem, free_stage, shared, words);
            loading.advance<kDepth>(problem.pairs.count);
            // The other of the two buffers may still be read by begin_stage of other threads, this one no more.
            if (loading.pair == 0 && loading.tile < tile_end)
                decode_lines(
                    problem, locate(tiling, loading.tile), shared.rows[loading.tile & 1],
                    shared.columns[loading.tile & 1]);
        }

        // Add a finished tile to the sums.
        if (pairs_left <= kDepth) {
            sketch_entries<kSharedSums>(problem, tiling, at, entries, shared);
#pragma unroll
            for (int i = 0; i < kMTiles * kNTiles * 4; ++i) entries[i / (kNTiles * 4)][i / 4 % kNTiles][i % 4] = 0.0f;
        }
        using_stage.advance<kDepth>(problem.pairs.count);
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }

    // Write the partial sums, once all sketch tiles have been added.
    __syncthreads();
    float* partial = block_sums<false>(problem);
    for (int row = warp_id(); row < problem.proj_dim / kLanes; row += kTileThreads / kWarpLanes) {
        const int from = sum_at(row, lane_id());
        float sum = sums[from];
        if (kSharedSums) sum += sums[problem.proj_dim + from];
        // In memory the lanes of a row are put in order where they are: all have read.
        __syncwarp();
        partial[row * kLanes + lane_id()] = sum;
    }
}

template <typename input_t, bool kSplit>
cudaError_t launch_outer(
    const SketchOuterArgs& args, const Tiling& tiling, const Slices& slices, float* workspace, cudaStream_t stream) {
    int most_shared = 0;
    const cudaError_t status = max_shared_bytes(&most_shared);
    if (status != cudaSuccess) return status;
    const int64_t stage_bytes = static_cast<int64_t>(sizeof(Shared));
    const int64_t sums_bytes = kWarpColumns * args.proj_dim * static_cast<int64_t>(sizeof(float));
    const bool shared_sums = stage_bytes + sums_bytes <= most_shared;
    const auto kernel =
        shared_sums ? &sketch_outer_kernel<input_t, kSplit, true> : &sketch_outer_kernel<input_t, kSplit, false>;
    return launch(
        kernel, Grid{args.num_groups, slices.count}, kTileThreads, stage_bytes + (shared_sums ? sums_bytes : 0), stream,
        make_problem<input_t>(args, tiling, workspace), tiling, static_cast<int>(slices.length));
}

}  // namespace

int64_t sketch_outer_workspace_floats(const SketchOuterArgs& args) {
    return args.num_groups * outer_slices(make_tiling(args)).count * args.proj_dim;
}

cudaError_t sketch_outer(const SketchOuterArgs& args, Workspace workspace, cudaStream_t stream) {
    if (!is_valid(args)) return cudaErrorInvalidValue;
    const Tiling tiling = make_tiling(args);
    const int64_t num_pairs = args.rows_per_group * args.out_size[1] * args.out_size[2];
    if (args.num_groups == 0 || args.c_out == 0 || args.c_in == 0 || num_pairs == 0 || args.proj_dim == 0)
        return cudaSuccess;
    if (tiling.num_tiles == 0 || workspace.data == nullptr) return cudaErrorInvalidValue;

    const Slices slices = outer_slices(tiling);
    const cudaError_t status = dispatch(args.dtype, args.precision, [&](auto type, auto split) {
        return launch_outer<typename decltype(type)::type, decltype(split)::value>(
            args, tiling, slices, workspace.data, stream);
    });
    if (status != cudaSuccess) return status;
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.nnz)));
    return sum_slices(
        workspace.data, args.features, args.num_groups, slices.count, args.proj_dim, args.features_stride, scale,
        stream);
}

}  // namespace journey::cuda
