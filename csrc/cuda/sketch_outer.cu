// Per-sample weight gradient of a Linear or convolution layer and its sketch, in one kernel.
//
//     grad[o, col] = sum_{n, y, x} g[n, o, y, x] * a[n, channel, y * stride_h + ky * dilation_h - pad_h, ...]
//     features[group, bucket(o, col)] += sign(o, col) * grad[o, col] / sqrt(nnz)         common/sketch_map.h
//
// with col = (ky * kernel_w + kx) * channels + i, channel = i + the first of o's convolution group's `channels`, and n
// over the rows of a group (the draws of one sample): they are contracted inside the product, so projecting costs the
// same for any number of draws. A block forms 128 x 64 tiles of the gradient in registers, on tensor cores (see
// tile_matmul.h for types and precision), and adds each to proj_dim sums of its own in shared memory. Each warp column
// owns one chunk of 32 columns and one copy of the sums: warps of different columns never meet. Stages of all tiles of
// a block form one sequence, loaded two ahead, so the first stages of a tile travel while the tile before is added:
// layers of 16 positions, which are one stage per tile, are not starved. Where the gradient of a bias is asked for, the
// blocks of the first columns also sum the rows of g that they stage, as products with a column of ones; sketch_many.cu
// sketches the sums.
//
// Two numbers, for 256 channels, 3x3, 16x16 positions, 4 draws, bf16, one sample: 2 * 1024 * 256 * 2304 = 1.21 GFLOP
// and 1.0 MB of a and g. On an H200 (4.8 TB/s; 790 TFLOP/s bf16 as a large product measures, about 400 TF32): 1.5 us
// of arithmetic, 0.2 us of memory; adding to the sums, 16 bytes of shared memory per entry at 128 bytes a cycle on
// 132 multiprocessors, adds 0.3 us. At 4x4 positions the sums cost more than the product: they are then the bound.
// Predicted on 30 November 2026, not yet measured on a GPU: a stage issues 391 instructions for 32 products of a 3x3
// layer in bf16, 333 of a Linear and 204 of a 1x1 (docs/results/machine-code.md). At one a cycle and scheduler, 1.75
// GHz: at most 310, 365 and 595 TFLOP/s, so that the example takes 4 us. Sums of g cost 20 more in one of 36 stages,
// and no launch. Tested on the CPU by emulation. Layers with few output channels (the last of a UNet, LoRA, depthwise)
// stage and, in half types, multiply rows that they do not have, and are far from the floor. Chips with 100 KiB of
// shared memory hold one block at a time. Reference: journey/ops/reference.py::sketch_outer.
#include "layer_tiles.h"
#include "outer_partials.h"

namespace journey::cuda {
namespace {

constexpr int kBlocks = 2;  // per multiprocessor: 255 registers per thread, and 78 KiB of shared memory at 4096
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
    // Of consecutive tiles, because the loads run ahead: tile t at t % kStages.
    Offset rows[kStages][kTileRows];
    Offset columns[kStages][kTileCols];
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
        for (int block = divide(at.row_begin, problem.by_bucket_rows); block * bucket_rows < at.row_begin + at.num_rows;
             ++block) {
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

// Rows of g whose sums a warp keeps, in runs of 16: warps of the first column those with even numbers, warps of the
// second the others.
constexpr int kSumTiles = kMTiles / kWarpColumns;
static_assert(kWarpColumns == 2 && kMTiles % kWarpColumns == 0, "two warps share the rows of one");

__device__ __forceinline__ int sums_row(int i) {
    return (warp_id() / kWarpColumns * kMTiles + i * kWarpColumns + warp_id() % kWarpColumns) * 16;
}

// Writes the sums over all pairs of the tile's rows of g: the gradient of a bias.
__device__ __forceinline__ void write_sums(
    const OuterProblem& problem, const TileAt& at, const float (&sums)[kSumTiles][2]) {
    float* to = problem.sums + static_cast<int64_t>(blockIdx.x) * problem.sums_stride + at.row_begin;
    if (lane_id() % 4 != 0) return;
#pragma unroll
    for (int i = 0; i < 2 * kSumTiles; ++i) {
        const int row = sums_row(i / 2) + lane_id() / 4 + i % 2 * 8;
        if (row < at.num_rows) to[row] = sums[i / 2][i % 2];
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

// Decodes the lines of a tile, if there is one.
__device__ __forceinline__ void decode_tile(
    const OuterProblem& problem, const Tiling& tiling, int tile, int tile_end, Shared& shared) {
    if (tile < tile_end)
        decode_lines(problem, locate(tiling, tile), shared.rows[tile % kStages], shared.columns[tile % kStages]);
}

// How both operands lie, and what a thread has loaded of them on its way into a stage.
template <typename input_t, Layout kG, Layout kA>
struct Loader {
    const char* g_data;  // from the group's first row on
    const char* a_data;
    Fetched<input_t, kTileRows> g;
    Fetched<input_t, kTileCols> a;

    __device__ __forceinline__ explicit Loader(const OuterProblem& problem) {
        const int64_t first_row = static_cast<int64_t>(blockIdx.x) * problem.rows_per_group;
        g_data = computed(problem.g.data + first_row * problem.g.strides.row);
        a_data = computed(problem.a.data + first_row * problem.a.strides.row);
    }

    __device__ __forceinline__ void begin(const OuterProblem& problem, const Cursor& at, int stage, Shared& shared) {
        uint32_t* words = shared.stages[stage];
        const Offset *rows = shared.rows[at.tile % kStages], *columns = shared.columns[at.tile % kStages];
        begin_operand<input_t, kTileRows, kG>(problem.g, problem.pairs, g_data, at.pair, rows, words, g);
        words += kTileRows * kStageWords;
        begin_operand<input_t, kTileCols, kA>(problem.a, problem.pairs, a_data, at.pair, columns, words, a);
    }

    __device__ __forceinline__ void finish(int stage, Shared& shared) const {
        uint32_t* words = shared.stages[stage];
        finish_operand<input_t, kTileRows, kG>(words, g);
        finish_operand<input_t, kTileCols, kA>(words + kTileRows * kStageWords, a);
    }
};

// Parallel over [groups, slices of tiles]: a block is one group and slice and owns proj_dim sums, in shared memory or,
// without kSharedSums, in its part of the workspace. A warp owns 64 x 32 entries of each tile.
template <typename input_t, bool kSplit, bool kSharedSums, Layout kG, Layout kA>
__global__ void __launch_bounds__(kTileThreads, kBlocks)
    sketch_outer_kernel(const OuterProblem problem, const Tiling tiling, const int tiles_per_slice) {
    constexpr int kDepth = kStageDepth<input_t>;
    Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared());
    const int thread = static_cast<int>(threadIdx.x);
    const int warp_row = warp_id() / kWarpColumns, warp_column = warp_id() % kWarpColumns;
    const int left_row = warp_row * kMTiles * 16, right_row = kTileRows + warp_column * kLanes;
    const int tile_begin = static_cast<int>(blockIdx.y) * tiles_per_slice;
    const int tile_end =
        tile_begin + tiles_per_slice < tiling.num_tiles ? tile_begin + tiles_per_slice : tiling.num_tiles;

    // Zero the sums, and decode the lines of the tiles that the first stages may be of.
    float* sums = block_sums<kSharedSums>(problem);
    for (int k = thread; k < (kSharedSums ? kWarpColumns : 1) * problem.proj_dim; k += kTileThreads) sums[k] = 0.0f;
    for (int ahead = 0; ahead < kStages - 1; ++ahead)
        decode_tile(problem, tiling, tile_begin + ahead, tile_end, shared);
    // The lines are decoded.
    __syncthreads();

    // Fill the pipeline: bring the first two stages.
    Cursor loading{tile_begin, 0};
    Loader<input_t, kG, kA> loader(problem);
    for (int stage = 0; stage < kStages - 1; ++stage) {
        if (loading.tile < tile_end) {
            loader.begin(problem, loading, stage, shared);
            loader.finish(stage, shared);
            loading.advance<kDepth>(problem.pairs.count);
        }
        commit_copies();
    }

    int stage = 0, free_stage = kStages - 1;
    for (int tile = tile_begin; tile < tile_end; ++tile) {
        const TileAt at = locate(tiling, tile);
        const bool multiplies = left_row < at.num_rows && warp_column * kLanes < at.num_cols;
        const int m_tiles = (at.num_rows - left_row + 15) / 16;
        const bool sums_rows = problem.sums != nullptr && at.col_begin == 0 && left_row < at.num_rows;
        // Decode the lines of the last tile that loads reach during this one. Those of the tile before lay there, whose
        // last load began two barriers ago.
        decode_tile(problem, tiling, tile + kStages - 1, tile_end, shared);

        // For every stage: load, multiply.
        float entries[kMTiles][kNTiles][4] = {}, row_sums[kSumTiles][2] = {};
#pragma unroll 1
        for (int pair = 0; pair < problem.pairs.count; pair += kDepth) {
            wait_for_copies<kStages - 2>();
            // This stage is written, with the lines of the next to load, and the stage before has been used.
            __syncthreads();

            // Start the stage that is two ahead.
            const bool loads = loading.tile < tile_end;
            if (loads) loader.begin(problem, loading, free_stage, shared);
            commit_copies();

            if (multiplies)
                multiply_stage<input_t, kSplit>(
                    shared.stages[stage], left_row, shared.stages[stage], right_row, m_tiles, entries);
            if (sums_rows) {
#pragma unroll
                for (int i = 0; i < kSumTiles; ++i) sum_stage<input_t>(shared.stages[stage], sums_row(i), row_sums[i]);
            }

            if (loads) loader.finish(free_stage, shared);
            loading.advance<kDepth>(problem.pairs.count);
            free_stage = stage;
            stage = stage + 1 == kStages ? 0 : stage + 1;
        }

        if (sums_rows) write_sums(problem, at, row_sums);
        // Add the finished tile to the sums.
        sketch_entries<kSharedSums>(problem, tiling, at, entries, shared);
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

using OuterKernel = void (*)(OuterProblem, Tiling, int);

// The kernels that are compiled: the layouts that a Linear or a convolution of aligned channels or images comes in, and
// one for anything else.
template <typename input_t, bool kSplit>
OuterKernel choose_kernel(const Layouts& layouts, bool shared_sums) {
    constexpr Layout kPairs = Layout::kPairsContiguous, kLines = Layout::kLinesContiguous, kAny = Layout::kAnyStrides;
    constexpr Layout kChannels = Layout::kChannelsContiguous;
    if (!shared_sums) return &sketch_outer_kernel<input_t, kSplit, false, kAny, kAny>;
    if (layouts.g == kPairs)
        return layouts.a == kPairs ? &sketch_outer_kernel<input_t, kSplit, true, kPairs, kPairs>
                                   : &sketch_outer_kernel<input_t, kSplit, true, kPairs, kAny>;
    if (layouts.g == kLines && layouts.a == kLines) return &sketch_outer_kernel<input_t, kSplit, true, kLines, kLines>;
    if (layouts.g == kLines && layouts.a == kChannels)
        return &sketch_outer_kernel<input_t, kSplit, true, kLines, kChannels>;
    if (layouts.g == kLines) return &sketch_outer_kernel<input_t, kSplit, true, kLines, kAny>;
    return &sketch_outer_kernel<input_t, kSplit, true, kAny, kAny>;
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
    const OuterProblem problem = make_problem<input_t>(args, workspace);
    const Layouts layouts = choose_layouts<input_t>(args, problem.pairs, tiling);
    return launch(
        choose_kernel<input_t, kSplit>(layouts, shared_sums), Grid{args.num_groups, slices.count}, kTileThreads,
        stage_bytes + (shared_sums ? sums_bytes : 0), stream, problem, tiling, static_cast<int>(slices.length));
}

}  // namespace

bool is_valid_layer(const SketchOuterArgs& args) { return is_valid(args); }

int64_t count_outer_slices(const SketchOuterArgs& args) {
    const int64_t num_pairs = args.rows_per_group * args.out_size[1] * args.out_size[2];
    const bool nothing = args.c_out == 0 || args.c_in == 0 || num_pairs == 0;
    return nothing ? 0 : outer_slices(make_tiling(args)).count;
}

cudaError_t write_outer_partials(const SketchOuterArgs& args, float* partials, cudaStream_t stream) {
    const Tiling tiling = make_tiling(args);
    if (tiling.num_tiles == 0) return cudaErrorInvalidValue;
    const Slices slices = outer_slices(tiling);
    return dispatch(args.dtype, args.precision, [&](auto type, auto split) {
        return launch_outer<typename decltype(type)::type, decltype(split)::value>(
            args, tiling, slices, partials, stream);
    });
}

}  // namespace journey::cuda
