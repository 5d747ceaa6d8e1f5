// A layer's input or output gradient as one operand of the weight gradient: lines of pairs.
//
// The weight gradient is a product over pairs (row n, output position): grad[o, col] = sum_pair g[o, pair] * a[col,
// pair]. A line is an output channel of g, or a column (channel, kernel position) of a's unfolded input, which is never
// in memory. Where element (line, pair) lies is a sum of a part of the line and a part of the pair, and whether it is
// inside the image is decided by two sums of coordinates. Lines are decoded once per tile, into shared memory, pairs
// once per stage and thread.
#pragma once

#include "stage_operand.h"

namespace journey::cuda {

// Where element (row, channel, y, x) lies, in elements.
struct Strides {
    int64_t row;
    int64_t channel;
    int64_t y;
    int64_t x;
};

enum class Layout : int { kPairsContiguous, kLinesContiguous, kAnyStrides };

struct Operand {
    const void* data;
    Strides strides;
    int step_y;  // from one output position to the next, in rows of the operand's image
    int step_x;
    int height;  // of the operand's image
    int width;
    Layout layout;
};

struct Pairs {
    int count;  // rows_per_group * positions
    int positions;
    int out_width;
};

// Coordinates of lines and pairs that do not exist: no sum of two makes them valid, nor overflows.
constexpr int kOutside = -(1 << 30);

// What a line or a pair adds to where an element lies, and to its coordinates in the image.
struct alignas(16) Offset {
    int64_t elements;
    int y;
    int x;
};

// Lines of any strides whose words may wait in registers; of larger operands, where such strides are rare (g of an odd
// number of positions), they are stored at once, or registers would spill.
constexpr int kLinesInFlight = 64;

// How an operand is read. `lines` of a convolution group are consecutive channels where it is pointwise.
template <typename input_t>
Layout choose_layout(
    const void* data, const Strides& strides, const Pairs& pairs, bool pointwise, bool unit_steps, int64_t lines) {
    const int64_t vector = kVector<input_t>, out_height = pairs.positions / pairs.out_width;
    if (!pointwise || !is_aligned(data) || strides.row % vector != 0) return Layout::kAnyStrides;
    const bool dense_x = pairs.out_width == 1 || strides.x == 1;
    const bool dense_y = out_height == 1 || strides.y == pairs.out_width;
    if (unit_steps && dense_x && dense_y && strides.channel % vector == 0 && pairs.positions % vector == 0)
        return Layout::kPairsContiguous;
    const bool aligned_x = pairs.out_width == 1 || strides.x % vector == 0;
    const bool aligned_y = out_height == 1 || strides.y % vector == 0;
    if (strides.channel == 1 && aligned_x && aligned_y && lines % vector == 0) return Layout::kLinesContiguous;
    return Layout::kAnyStrides;
}

__device__ __forceinline__ Offset decode_pair(const Operand& operand, const Pairs& pairs, int64_t first_row, int pair) {
    if (pair >= pairs.count) return Offset{0, kOutside, kOutside};
    const uint32_t row = static_cast<uint32_t>(pair) / static_cast<uint32_t>(pairs.positions);
    const uint32_t position = static_cast<uint32_t>(pair) - row * static_cast<uint32_t>(pairs.positions);
    const uint32_t line = position / static_cast<uint32_t>(pairs.out_width);
    const int y = static_cast<int>(line) * operand.step_y;
    const int x = static_cast<int>(position - line * static_cast<uint32_t>(pairs.out_width)) * operand.step_x;
    return Offset{(first_row + row) * operand.strides.row + y * operand.strides.y + x * operand.strides.x, y, x};
}

// Starts to bring pairs [begin, begin + kStageDepth) of kLines lines; finish_operand completes it.
template <typename input_t, int kLines>
__device__ __forceinline__ void begin_operand(
    const Operand& operand,
    const Pairs& pairs,
    int64_t first_row,
    int begin,
    const Offset* lines,
    uint32_t* stage,
    uint32_t (&words)[kLines / 8]) {
    const input_t* data = static_cast<const input_t*>(operand.data);
    if (operand.layout == Layout::kPairsContiguous) {
        const Offset pair = decode_pair(operand, pairs, first_row, begin + copied_depth<input_t>());
        copy_rows<kLines>(stage, data, 16, [&](int line) -> const void* {
            return (pair.y | lines[line].y) < 0 ? nullptr : data + pair.elements + lines[line].elements;
        });
        return;
    }
    Offset at[kPerWord<input_t>];
#pragma unroll
    for (int half = 0; half < kPerWord<input_t>; ++half)
        at[half] = decode_pair(operand, pairs, first_row, begin + fetched_depth<input_t>() + half);
    if (operand.layout == Layout::kLinesContiguous) {
        fetch_across<input_t, kLines>(words, [&](int line, int half) -> const void* {
            return (at[half].y | lines[line].y) < 0 ? nullptr : data + at[half].elements + lines[line].elements;
        });
        return;
    }
    const auto read = [&](int index, int half) -> uint32_t {
        const Offset line = lines[index];
        const uint32_t y = static_cast<uint32_t>(at[half].y + line.y), x = static_cast<uint32_t>(at[half].x + line.x);
        const bool inside = y < static_cast<uint32_t>(operand.height) && x < static_cast<uint32_t>(operand.width);
        return inside ? bits_of(data + at[half].elements + line.elements) : 0u;
    };
    if constexpr (kLines <= kLinesInFlight) {
        fetch_words<input_t, kLines>(words, 0, read);
    } else {
#pragma unroll 1
        for (int first = 0; first < kLines; first += kLinesInFlight) {
            uint32_t part[kLinesInFlight / 8];
            fetch_words<input_t, kLinesInFlight>(part, first, read);
            store_words<kLinesInFlight>(stage, part, first);
        }
    }
}

template <typename input_t, int kLines>
__device__ __forceinline__ void finish_operand(Layout layout, uint32_t* stage, const uint32_t (&words)[kLines / 8]) {
    if (layout == Layout::kLinesContiguous)
        store_across<input_t, kLines>(stage, words);
    else if (layout == Layout::kAnyStrides && kLines <= kLinesInFlight)
        store_words<kLines>(stage, words, 0);
}

}  // namespace journey::cuda
