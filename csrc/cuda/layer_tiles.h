// The weight gradient of a layer as a matrix [out_channels, cols] in tiles of 128 x 64 entries, and what the fused
// kernel is told about the layer. Everything is 32-bit here but offsets in memory: the launcher checks that it fits.
#pragma once

#include "../common/sketch_map.h"
#include "layer_operand.h"

namespace journey::cuda {

constexpr int kTileRows = 128;  // output channels
constexpr int kTileCols = 64;   // columns: two chunks of the sketch
static_assert(kTileRows == kTileThreads && kTileCols <= kTileThreads, "a thread decodes a row and at most a column");
static_assert(kTileCols % kLanes == 0, "tiles are whole chunks");

// What the kernel is told.
struct Problem {
    Operand g;
    Operand a;
    Pairs pairs;
    int kernel_h;
    int kernel_w;
    int pad_h;
    int pad_w;
    int dilation_h;
    int dilation_w;
    float* workspace;
    int64_t rows_per_group;
    int proj_dim;
    uint64_t key;
    uint32_t nnz;
};

// The gradient matrix [out_channels, cols] in tiles: segments of rows that do not cross a convolution group, times
// pairs of chunks of columns.
struct Tiling {
    int cols;
    int chunks;
    int group_rows;          // output channels of one convolution group
    int group_channels;      // input channels of one convolution group
    int segments_per_group;  // of rows
    int spans;               // of columns
    int num_tiles;
};

inline bool fits_int(int64_t size) { return size >= 0 && size < (int64_t{1} << 29); }

// Zero tiles stand for what does not fit.
inline Tiling make_tiling(const SketchOuterArgs& args) {
    if (args.conv_groups < 1 || args.kernel_h < 1 || args.kernel_w < 1) return Tiling{};
    const int64_t group_rows = args.out_channels / args.conv_groups,
                  group_channels = args.in_channels / args.conv_groups;
    const int64_t cols = group_channels * args.kernel_h * args.kernel_w;
    const int64_t segments = ceil_div(group_rows, kTileRows), spans = ceil_div(cols, kTileCols);
    if (!fits_int(args.out_channels) || !fits_int(cols) || !fits_int(args.conv_groups * segments * spans))
        return Tiling{};
    const auto as_int = [](int64_t size) { return static_cast<int>(size); };
    return Tiling{
        as_int(cols),
        as_int(num_chunks(cols)),
        as_int(group_rows),
        as_int(group_channels),
        as_int(segments),
        as_int(spans),
        as_int(args.conv_groups * segments * spans)};
}

// One tile: rows [row_begin, row_begin + num_rows) of the gradient matrix and columns [col_begin, col_begin +
// num_cols).
struct TileAt {
    int row_begin;
    int col_begin;
    int first_channel;  // of the convolution group, in a
    int num_rows;
    int num_cols;
};

__device__ __forceinline__ TileAt locate(const Tiling& tiling, int tile) {
    const int segment = tile / tiling.spans, col = (tile - segment * tiling.spans) * kTileCols;
    const int conv_group = segment / tiling.segments_per_group;
    const int row = (segment - conv_group * tiling.segments_per_group) * kTileRows;
    const int rows_left = tiling.group_rows - row, cols_left = tiling.cols - col;
    return TileAt{
        conv_group * tiling.group_rows + row, col, conv_group * tiling.group_channels,
        rows_left < kTileRows ? rows_left : kTileRows, cols_left < kTileCols ? cols_left : kTileCols};
}

// Where the tile's rows are in g and its columns in a.
__device__ __forceinline__ void decode_lines(const Problem& problem, const TileAt& at, Line* rows, Line* columns) {
    const int thread = static_cast<int>(threadIdx.x);
    rows[thread] = thread < at.num_rows ? Line{int64_t{at.row_begin + thread} * problem.g.strides.channel, 0, 0}
                                        : Line{0, kOutside, kOutside};
    if (thread >= kTileCols) return;
    Line column{0, kOutside, kOutside};
    if (thread < at.num_cols) {
        const uint32_t col = static_cast<uint32_t>(at.col_begin) + static_cast<uint32_t>(thread);
        const uint32_t kernel_row = col / static_cast<uint32_t>(problem.kernel_w);
        const uint32_t i = kernel_row / static_cast<uint32_t>(problem.kernel_h);
        const Strides& strides = problem.a.strides;
        column.y = static_cast<int>(kernel_row - i * static_cast<uint32_t>(problem.kernel_h)) * problem.dilation_h -
                   problem.pad_h;
        column.x = static_cast<int>(col - kernel_row * static_cast<uint32_t>(problem.kernel_w)) * problem.dilation_w -
                   problem.pad_w;
        column.offset = int64_t{at.first_channel + static_cast<int>(i)} * strides.channel + column.y * strides.y +
                        column.x * strides.x;
    }
    columns[thread] = column;
}

// Whether the arguments make sense and every coordinate and count fits.
inline bool is_valid(const SketchOuterArgs& args) {
    const int64_t reach_y = args.in_height + 2 * args.pad_h + args.kernel_h * args.dilation_h;
    const int64_t reach_x = args.in_width + 2 * args.pad_w + args.kernel_w * args.dilation_w;
    return args.proj_dim % kLanes == 0 && fits_int(args.proj_dim) && args.nnz >= 1 && fits_int(args.nnz) &&
           args.conv_groups >= 1 && args.kernel_h >= 1 && args.kernel_w >= 1 &&
           args.in_channels % args.conv_groups == 0 && args.out_channels % args.conv_groups == 0 && fits_int(reach_y) &&
           fits_int(reach_x) && fits_int(args.out_height * args.stride_h) && fits_int(args.out_width * args.stride_w) &&
           fits_int(args.rows_per_group * args.out_height * args.out_width) && fits_int(args.in_channels) &&
           fits_int(args.out_channels);
}

template <typename input_t>
Problem make_problem(const SketchOuterArgs& args, const Tiling& tiling) {
    const auto as_int = [](int64_t size) { return static_cast<int>(size); };
    Problem problem{};
    problem.pairs.positions = as_int(args.out_height * args.out_width);
    problem.pairs.count = as_int(args.rows_per_group) * problem.pairs.positions;
    problem.pairs.out_width = as_int(args.out_width);
    const bool pointwise = args.kernel_h == 1 && args.kernel_w == 1 && args.pad_h == 0 && args.pad_w == 0;
    const bool same_image = args.stride_h == 1 && args.stride_w == 1 && args.in_height == args.out_height &&
                            args.in_width == args.out_width;
    problem.g = Operand{
        args.g,
        args.g_strides,
        1,
        1,
        as_int(args.out_height),
        as_int(args.out_width),
        choose_layout<input_t>(args.g, args.g_strides, problem.pairs, true, true, tiling.group_rows)};
    problem.a = Operand{
        args.a,
        args.a_strides,
        as_int(args.stride_h),
        as_int(args.stride_w),
        as_int(args.in_height),
        as_int(args.in_width),
        choose_layout<input_t>(args.a, args.a_strides, problem.pairs, pointwise, same_image, tiling.cols)};
    problem.kernel_h = as_int(args.kernel_h), problem.kernel_w = as_int(args.kernel_w);
    problem.pad_h = as_int(args.pad_h), problem.pad_w = as_int(args.pad_w);
    problem.dilation_h = as_int(args.dilation_h), problem.dilation_w = as_int(args.dilation_w);
    problem.workspace = args.workspace;
    problem.rows_per_group = args.rows_per_group;
    problem.proj_dim = as_int(args.proj_dim);
    problem.key = args.key;
    problem.nnz = static_cast<uint32_t>(args.nnz);
    return problem;
}

}  // namespace journey::cuda
