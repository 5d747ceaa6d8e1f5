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

// The layer, as the kernel is told of it.
struct OuterProblem {
    Operand g;
    Operand a;
    Pairs pairs;
    int kernel_w;
    int group_channels;  // input channels of one convolution group
    int pad_h;
    int pad_w;
    int dilation_h;
    int dilation_w;
    Divisor by_kernel_w;
    Divisor by_channels;  // of a group
    float* workspace;
    float* sums;  // of g's rows, or null
    int64_t sums_stride;
    int64_t rows_per_group;
    int proj_dim;
    Divisor by_bucket_rows;
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
    Divisor by_segments;
    Divisor by_spans;
};

inline bool fits_int(int64_t size) { return size >= 0 && size < (int64_t{1} << 29); }

// Zero tiles stand for what does not fit.
inline Tiling make_tiling(const SketchOuterArgs& args) {
    const auto [depth, kernel_h, kernel_w] = args.kernel;
    if (args.conv_groups < 1 || depth != 1 || kernel_h < 1 || kernel_w < 1) return Tiling{};
    const int64_t group_rows = args.c_out / args.conv_groups, group_channels = args.c_in / args.conv_groups;
    const int64_t cols = group_channels * kernel_h * kernel_w;
    const int64_t segments = ceil_div(group_rows, kTileRows), spans = ceil_div(cols, kTileCols);
    if (!fits_int(args.c_out) || !fits_int(cols) || !fits_int(args.conv_groups * segments * spans)) return Tiling{};
    const auto as_int = [](int64_t size) { return static_cast<int>(size); };
    return Tiling{
        as_int(cols),
        as_int(num_chunks(cols)),
        as_int(group_rows),
        as_int(group_channels),
        as_int(segments),
        as_int(spans),
        as_int(args.conv_groups * segments * spans),
        make_divisor(segments),
        make_divisor(spans)};
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
    const int segment = divide(tile, tiling.by_spans), col = (tile - segment * tiling.spans) * kTileCols;
    const int conv_group = divide(segment, tiling.by_segments);
    const int row = (segment - conv_group * tiling.segments_per_group) * kTileRows;
    const int rows_left = tiling.group_rows - row, cols_left = tiling.cols - col;
    return TileAt{
        conv_group * tiling.group_rows + row, col, conv_group * tiling.group_channels,
        rows_left < kTileRows ? rows_left : kTileRows, cols_left < kTileCols ? cols_left : kTileCols};
}

// Where the tile's rows are in g and its columns in a.
__device__ __forceinline__ void decode_lines(
    const OuterProblem& problem, const TileAt& at, Offset* rows, Offset* columns) {
    const int thread = static_cast<int>(threadIdx.x);
    rows[thread] = thread < at.num_rows ? Offset{int64_t{at.row_begin + thread} * problem.g.strides.channel, 0, 0}
                                        : Offset{0, kOutside, kOutside};
    if (thread >= kTileCols) return;
    Offset column{0, kOutside, kOutside};
    if (thread < at.num_cols) {
        const int col = at.col_begin + thread, kernel_position = divide(col, problem.by_channels);
        const int i = col - kernel_position * problem.group_channels;
        const int ky = divide(kernel_position, problem.by_kernel_w), kx = kernel_position - ky * problem.kernel_w;
        const Strides& strides = problem.a.strides;
        column.y = ky * problem.dilation_h - problem.pad_h;
        column.x = kx * problem.dilation_w - problem.pad_w;
        column.bytes = int64_t{at.first_channel + i} * strides.channel + column.y * strides.y + column.x * strides.x;
    }
    columns[thread] = column;
}

// Whether the arguments make sense, in two dimensions, and every coordinate and count fits.
inline bool is_valid(const SketchOuterArgs& args) {
    if (args.kernel[0] != 1 || args.in_size[0] != 1 || args.out_size[0] != 1) return false;
    for (int i = 1; i < 3; ++i) {
        const int64_t reach = args.in_size[i] + 2 * args.padding[i] + args.kernel[i] * args.dilation[i];
        if (args.kernel[i] < 1 || !fits_int(reach) || !fits_int(args.out_size[i] * args.stride[i])) return false;
    }
    return args.proj_dim % kLanes == 0 && fits_int(args.proj_dim) && args.nnz >= 1 && fits_int(args.nnz) &&
           args.conv_groups >= 1 && args.c_in % args.conv_groups == 0 && args.c_out % args.conv_groups == 0 &&
           fits_int(args.rows_per_group * args.out_size[1] * args.out_size[2]) && fits_int(args.c_in) &&
           fits_int(args.c_out);
}

template <typename input_t>
OuterProblem make_problem(const SketchOuterArgs& args, float* workspace) {
    const auto as_int = [](int64_t size) { return static_cast<int>(size); };
    const auto as_strides = [](const Strides4& elements) {
        constexpr int64_t kBytes = sizeof(input_t);
        return Strides{elements[0] * kBytes, elements[1] * kBytes, elements[2] * kBytes, elements[3] * kBytes};
    };
    OuterProblem problem{};
    problem.kernel_w = as_int(args.kernel[2]), problem.group_channels = as_int(args.c_in / args.conv_groups);
    problem.pad_h = as_int(args.padding[1]), problem.pad_w = as_int(args.padding[2]);
    problem.dilation_h = as_int(args.dilation[1]), problem.dilation_w = as_int(args.dilation[2]);
    problem.pairs.positions = as_int(args.out_size[1] * args.out_size[2]);
    problem.pairs.count = as_int(args.rows_per_group) * problem.pairs.positions;
    problem.pairs.out_width = as_int(args.out_size[2]);
    problem.pairs.by_positions = make_divisor(problem.pairs.positions);
    problem.pairs.by_width = make_divisor(problem.pairs.out_width);
    problem.by_kernel_w = make_divisor(problem.kernel_w), problem.by_channels = make_divisor(problem.group_channels);
    problem.by_bucket_rows = make_divisor(args.proj_dim / kLanes);
    problem.g = Operand{static_cast<const char*>(args.g), as_strides(args.g_strides), 1, 1,
                        as_int(args.out_size[1]),         as_int(args.out_size[2])};
    problem.a = Operand{static_cast<const char*>(args.a), as_strides(args.a_strides), as_int(args.stride[1]),
                        as_int(args.stride[2]),           as_int(args.in_size[1]),    as_int(args.in_size[2])};
    problem.workspace = workspace;
    problem.sums = args.sums, problem.sums_stride = args.sums_stride;
    problem.rows_per_group = args.rows_per_group;
    problem.proj_dim = as_int(args.proj_dim);
    problem.key = args.key;
    problem.nnz = static_cast<uint32_t>(args.nnz);
    return problem;
}

struct Layouts {
    Layout g;
    Layout a;
};

template <typename input_t>
Layouts choose_layouts(const SketchOuterArgs& args, const Pairs& pairs, const Tiling& tiling) {
    const bool pointwise = args.kernel[1] == 1 && args.kernel[2] == 1 && args.padding[1] == 0 && args.padding[2] == 0;
    const bool same_image = args.stride[1] == 1 && args.stride[2] == 1 && args.in_size[1] == args.out_size[1] &&
                            args.in_size[2] == args.out_size[2];
    return Layouts{
        choose_layout<input_t>(args.g, args.g_strides, pairs, true, true, tiling.group_rows),
        choose_layout<input_t>(args.a, args.a_strides, pairs, pointwise, same_image, tiling.group_channels)};
}

}  // namespace journey::cuda
