// Per-sample weight gradient of a Linear or convolution layer and its sketch, in one kernel.
//
//     grad[o, col] = sum_{n, y, x} g[n, o, y, x] * a[n, channel, y * stride_h + ky * dilation_h - pad_h, ...]
//     features[group, bucket(o, col)] += sign(o, col) * grad[o, col] / sqrt(nnz)         common/sketch_map.h
//
// with col = (i * kernel_h + ky) * kernel_w + kx, channel = i + the first input channel of o's convolution group, and n
// over the rows of a group (the draws of one sample): they are contracted inside the product, so projecting costs the
// same for any number of draws. A block forms 64 x 32 tiles of the gradient in registers and adds each to its own
// proj_dim sums, in shared memory where they fit; the gradient itself is never in memory.
// Floor: the 2 * rows * positions * out_channels * cols FLOPs of a plain weight gradient (here in fp32).
// Layers with few output channels per convolution group (depthwise) fill little of a tile and are far from it.
// Reference: journey/reference.py::sketch_outer.
#include <cmath>

#include "../common/sketch_map.h"
#include "launch.h"

namespace journey::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 4;                // per multiprocessor at least, so at most 128 registers per thread
constexpr int kTileRows = 64;             // output channels per tile, 4 per thread
constexpr int kTileCols = kLanes;         // one chunk of columns, 4 per thread
constexpr int kDepth = 16;                // (row, position) pairs staged at once
constexpr int kRunDepth = 128;            // pairs decoded at once and summed before they join the total
constexpr int64_t kMaxSharedSums = 8192;  // 32 KiB beside 11 KiB of staging stay below the 48 KiB of every device
constexpr int64_t kMinTilesPerSlice = 4;  // the sums of a slice cost as much memory traffic as two tiles
constexpr int64_t kMaxSlices = 64;
static_assert(kThreads == kTileRows / 4 * (kTileCols / 4), "a thread owns 4 x 4 entries");
static_assert(kRunDepth == kThreads, "each thread decodes one pair of a run");

struct Shared {
    Float4 g[kDepth][kTileRows / 4 + 1];  // padded against bank conflicts of the staging stores
    Float4 a[kDepth][kTileCols / 4 + 1];
    // Of each pair of a run: where it is in g and in a (without the kernel's offset), and its input coordinates.
    int64_t pair_g[kRunDepth];
    int64_t pair_a[kRunDepth];
    int pair_y[kRunDepth];
    int pair_x[kRunDepth];
    // Of each column of a tile: where it is in a, and its offset in input coordinates.
    int64_t column_a[kTileCols];
    int column_y[kTileCols];
    int column_x[kTileCols];
    uint32_t signs[kTileRows];
};

// The gradient matrix [out_channels, cols] in tiles: segments of rows that do not cross a convolution group, times
// chunks of columns.
struct Tiling {
    int64_t cols;
    int64_t chunks;
    int64_t group_rows;          // output channels of one convolution group
    int64_t group_channels;      // input channels of one convolution group
    int64_t segments_per_group;  // of rows
    int64_t num_tiles;
};

Tiling make_tiling(const SketchOuterArgs& args) {
    Tiling tiling{};
    if (args.conv_groups < 1) return tiling;
    tiling.group_rows = args.out_channels / args.conv_groups;
    tiling.group_channels = args.in_channels / args.conv_groups;
    tiling.cols = tiling.group_channels * args.kernel_h * args.kernel_w;
    tiling.chunks = num_chunks(tiling.cols);
    tiling.segments_per_group = ceil_div(tiling.group_rows, kTileRows);
    tiling.num_tiles = args.conv_groups * tiling.segments_per_group * tiling.chunks;
    return tiling;
}

Slices outer_slices(const Tiling& tiling) { return make_slices(tiling.num_tiles, kMinTilesPerSlice, kMaxSlices); }

// One tile: rows [row_begin, row_end) of the gradient matrix and columns [chunk * 32, chunk * 32 + num_cols).
struct TileAt {
    int64_t row_begin;
    int64_t row_end;
    int64_t chunk;
    int num_cols;
    int64_t first_channel;  // of the convolution group, in a
};

__device__ __forceinline__ TileAt locate(const Tiling& tiling, int64_t tile) {
    const int64_t segment = tile / tiling.chunks, chunk = tile - segment * tiling.chunks;
    const int64_t conv_group = segment / tiling.segments_per_group;
    const int64_t row = (segment - conv_group * tiling.segments_per_group) * kTileRows;
    const int64_t rows_left = tiling.group_rows - row, cols_left = tiling.cols - chunk * kTileCols;
    const int64_t row_begin = conv_group * tiling.group_rows + row;
    return TileAt{
        row_begin, row_begin + (rows_left < kTileRows ? rows_left : kTileRows), chunk,
        static_cast<int>(cols_left < kTileCols ? cols_left : kTileCols), conv_group * tiling.group_channels};
}

__device__ __forceinline__ void decode_column(const SketchOuterArgs& args, const TileAt& at, Shared& shared) {
    const int c = static_cast<int>(threadIdx.x);
    if (c >= at.num_cols) return;
    const int64_t col = at.chunk * kTileCols + c, kernel_row = col / args.kernel_w, i = kernel_row / args.kernel_h;
    const int64_t y = (kernel_row - i * args.kernel_h) * args.dilation_h - args.pad_h;
    const int64_t x = (col - kernel_row * args.kernel_w) * args.dilation_w - args.pad_w;
    shared.column_a[c] = (at.first_channel + i) * args.a_strides.channel + y * args.a_strides.y + x * args.a_strides.x;
    shared.column_y[c] = static_cast<int>(y);
    shared.column_x[c] = static_cast<int>(x);
}

__device__ __forceinline__ void decode_pair(
    const SketchOuterArgs& args, int64_t first_row, int64_t pair, int64_t num_pairs, Shared& shared) {
    if (pair >= num_pairs) return;
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t line = pair / args.out_width, x = pair - line * args.out_width;
    const int64_t row = line / args.out_height, y = line - row * args.out_height, n = first_row + row;
    shared.pair_g[thread] = n * args.g_strides.row + y * args.g_strides.y + x * args.g_strides.x;
    shared.pair_a[thread] =
        n * args.a_strides.row + y * args.stride_h * args.a_strides.y + x * args.stride_w * args.a_strides.x;
    shared.pair_y[thread] = static_cast<int>(y * args.stride_h);
    shared.pair_x[thread] = static_cast<int>(x * args.stride_w);
}

// Pair and row or column that load `i` of this thread brings. Neighbouring threads take neighbouring channels where
// these are neighbours in memory (Linear, channels_last), else neighbouring positions.
template <int kWidth>
__device__ __forceinline__ void load_position(bool channels_first, int i, int* depth, int* at) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads;
    *depth = channels_first ? index / kWidth : index % kDepth;
    *at = channels_first ? index % kWidth : index / kDepth;
}

// Brings pairs [begin, begin + 16) of the run into shared memory, zeros for what lies outside the tile or the image.
template <typename input_t>
__device__ __forceinline__ void stage(
    const SketchOuterArgs& args, const TileAt& at, int begin, int run_depth, Shared& shared) {
    const input_t* a = static_cast<const input_t*>(args.a);
    const input_t* g = static_cast<const input_t*>(args.g);
    int depth, r, c;
#pragma unroll
    for (int i = 0; i < kDepth * kTileRows / kThreads; ++i) {
        load_position<kTileRows>(args.g_strides.channel == 1, i, &depth, &r);
        const bool inside = begin + depth < run_depth && at.row_begin + r < at.row_end;
        shared.g[depth][r / 4].value[r % 4] =
            inside ? to_float(g[shared.pair_g[begin + depth] + (at.row_begin + r) * args.g_strides.channel]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kDepth * kTileCols / kThreads; ++i) {
        load_position<kTileCols>(args.a_strides.channel == 1, i, &depth, &c);
        float value = 0.0f;
        if (begin + depth < run_depth && c < at.num_cols) {
            const int y = shared.pair_y[begin + depth] + shared.column_y[c];
            const int x = shared.pair_x[begin + depth] + shared.column_x[c];
            if (y >= 0 && y < args.in_height && x >= 0 && x < args.in_width)
                value = to_float(a[shared.pair_a[begin + depth] + shared.column_a[c]]);
        }
        shared.a[depth][c / 4].value[c % 4] = value;
    }
}

// total[i][j] = gradient entry of the tile's row 4 * row_group + i and column 4 * column_group + j.
template <typename input_t>
__device__ __forceinline__ void form_tile(
    const SketchOuterArgs& args,
    const TileAt& at,
    int row_group,
    int column_group,
    Shared& shared,
    float (&total)[4][4]) {
    const int64_t num_pairs = args.rows_per_group * args.out_height * args.out_width;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * args.rows_per_group;
    // Decoding needs no barrier before it: columns and pairs are read while staging, and every thread has passed the
    // barrier after the last staging.
    decode_column(args, at, shared);
    for (int64_t pair = 0; pair < num_pairs; pair += kRunDepth) {
        const int run_depth = static_cast<int>(num_pairs - pair < kRunDepth ? num_pairs - pair : kRunDepth);
        decode_pair(args, first_row, pair + threadIdx.x, num_pairs, shared);
        float run[4][4] = {};
        for (int begin = 0; begin < run_depth; begin += kDepth) {
            // The decoded pairs and columns are written; the staged values of the step before have been used.
            __syncthreads();
            stage<input_t>(args, at, begin, run_depth, shared);
            // The staged values are written.
            __syncthreads();
#pragma unroll 4
            for (int depth = 0; depth < kDepth; ++depth) {
                const Float4 g = shared.g[depth][row_group], a = shared.a[depth][column_group];
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < 4; ++j) run[i][j] = fmaf(g.value[i], a.value[j], run[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) total[i][j] += run[i][j];
    }
}

// Adds the tile to the block's sums. Entries of one sketch tile never collide, so threads need no atomics as long as
// only one sketch tile is added between two barriers.
__device__ __forceinline__ void sketch_tile_entries(
    const SketchOuterArgs& args,
    const Tiling& tiling,
    const TileAt& at,
    int row_group,
    int column_group,
    const float (&total)[4][4],
    Shared& shared,
    float* sums) {
    const int64_t bucket_rows = args.proj_dim / kLanes;
    const int thread = static_cast<int>(threadIdx.x);
    for (int64_t repetition = 0; repetition < args.nnz; ++repetition) {
        const uint32_t minor = static_cast<uint32_t>(repetition);
        // The signs of the round before have been used; those of the tile before were before form_tile's barriers.
        if (repetition > 0) __syncthreads();
        if (thread < at.row_end - at.row_begin)
            shared.signs[thread] = sketch_signs(args.key, minor, (at.row_begin + thread) * tiling.chunks + at.chunk);
        for (int64_t block = at.row_begin / bucket_rows; block * bucket_rows < at.row_end; ++block) {
            const Tile tile = sketch_tile(args.key, minor, block * tiling.chunks + at.chunk, bucket_rows);
            // The signs are written; the sketch tile before has been added.
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int r = row_group * 4 + i;
                const int64_t row = at.row_begin + r, in_block = row - block * bucket_rows;
                if (row >= at.row_end || in_block < 0 || in_block >= bucket_rows) continue;
                int64_t bucket_row = in_block + tile.rotation;
                if (bucket_row >= bucket_rows) bucket_row -= bucket_rows;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int c = column_group * 4 + j;
                    if (c >= at.num_cols) continue;
                    const uint32_t sign = shared.signs[r] >> c << 31;
                    sums[bucket_row * kLanes + (c ^ static_cast<int>(tile.lane_mask))] +=
                        bits_float(float_bits(total[i][j]) ^ sign);
                }
            }
        }
    }
}

// Parallel over [groups, slices of tiles]: a block is one group and slice and owns proj_dim sums, a thread owns 4 x 4
// entries of each tile. With kSharedSums the sums live in shared memory, else in the block's part of the workspace.
template <typename input_t, bool kSharedSums>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sketch_outer_kernel(const SketchOuterArgs args, const Tiling tiling, const Slices slices) {
    __shared__ Shared shared;
    const int thread = static_cast<int>(threadIdx.x);
    const int row_group = thread / (kTileCols / 4), column_group = thread % (kTileCols / 4);
    const int64_t slice = blockIdx.y;
    float* partial = args.workspace + (static_cast<int64_t>(blockIdx.x) * slices.count + slice) * args.proj_dim;
    float* sums = kSharedSums ? dynamic_shared() : partial;
    for (int64_t k = thread; k < args.proj_dim; k += kThreads) sums[k] = 0.0f;

    const int64_t slice_end = (slice + 1) * slices.length;
    const int64_t tile_end = slice_end < tiling.num_tiles ? slice_end : tiling.num_tiles;
    for (int64_t tile = slice * slices.length; tile < tile_end; ++tile) {
        const TileAt at = locate(tiling, tile);
        float total[4][4] = {};
        // Its barriers also separate the zeros above, and the sketch tiles of the tile before, from what follows.
        form_tile<input_t>(args, at, row_group, column_group, shared, total);
        sketch_tile_entries(args, tiling, at, row_group, column_group, total, shared, sums);
    }

    if (kSharedSums) {
        // All sketch tiles have been added.
        __syncthreads();
        for (int64_t k = thread; k < args.proj_dim; k += kThreads) partial[k] = sums[k];
    }
}

bool fits_int(int64_t size) { return size >= 0 && size < (int64_t{1} << 29); }

// Coordinates are 32-bit inside the kernel.
bool is_valid(const SketchOuterArgs& args) {
    const int64_t reach_y = args.in_height + 2 * args.pad_h + args.kernel_h * args.dilation_h;
    const int64_t reach_x = args.in_width + 2 * args.pad_w + args.kernel_w * args.dilation_w;
    return args.proj_dim % kLanes == 0 && args.nnz >= 1 && args.conv_groups >= 1 && args.kernel_h >= 1 &&
           args.kernel_w >= 1 && args.in_channels % args.conv_groups == 0 &&
           args.out_channels % args.conv_groups == 0 && fits_int(reach_y) && fits_int(reach_x) &&
           fits_int(args.out_height * args.stride_h) && fits_int(args.out_width * args.stride_w);
}

}  // namespace

int64_t sketch_outer_workspace_floats(const SketchOuterArgs& args) {
    return args.num_groups * outer_slices(make_tiling(args)).count * args.proj_dim;
}

cudaError_t sketch_outer(const SketchOuterArgs& args, cudaStream_t stream) {
    if (!is_valid(args)) return cudaErrorInvalidValue;
    const Tiling tiling = make_tiling(args);
    const int64_t num_pairs = args.rows_per_group * args.out_height * args.out_width;
    if (args.num_groups == 0 || tiling.num_tiles == 0 || num_pairs == 0 || args.proj_dim == 0) return cudaSuccess;
    if (args.workspace == nullptr) return cudaErrorInvalidValue;

    const Slices slices = outer_slices(tiling);
    const Grid grid{args.num_groups, slices.count};
    const bool shared_sums = args.proj_dim <= kMaxSharedSums;
    const int64_t shared_bytes = shared_sums ? args.proj_dim * static_cast<int64_t>(sizeof(float)) : 0;
    const cudaError_t status = dispatch(args.dtype, [&](auto type) {
        using input_t = typename decltype(type)::type;
        if (shared_sums)
            return launch(
                sketch_outer_kernel<input_t, true>, grid, kThreads, shared_bytes, stream, args, tiling, slices);
        return launch(sketch_outer_kernel<input_t, false>, grid, kThreads, 0, stream, args, tiling, slices);
    });
    if (status != cudaSuccess) return status;
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.nnz)));
    return sum_slices(
        args.workspace, args.features, args.num_groups, slices.count, args.proj_dim, args.features_stride, scale,
        stream);
}

}  // namespace journey::cuda
