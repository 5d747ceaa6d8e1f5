// A layer's input or output gradient as one operand of the weight gradient: lines of pairs.
//
// The weight gradient is a product over pairs (row n, output position): grad[o, col] = sum_pair g[o, pair] * a[col,
// pair]. A line is an output channel of g, or a column (kernel position, channel) of a's unfolded input, which is never
// in memory. Where element (line, pair) lies is a sum of a part of the line and a part of the pair, and whether it is
// inside the image is decided by two sums of coordinates. Lines are decoded once per tile, into shared memory, pairs
// once per stage and thread. The layouts are template parameters of all that runs in a stage: a branch on them there
// would cost as much as the loads.
#pragma once

#include "stage_operand.h"

namespace journey::cuda {

// Division by a number that the launch knows, as a product and a shift: exact for 0 <= n < 2^31, which all counts here
// are. A run-time division is 20 instructions, this is two.
struct Divisor {
    uint32_t multiplier;  // 2^shift / divisor, rounded up
    int shift;            // 31 + the bits of divisor - 1
};

inline Divisor make_divisor(int64_t divisor) {
    int bits = 0;
    while ((int64_t{1} << bits) < divisor) ++bits;
    const int64_t quotient = ceil_div(int64_t{1} << (31 + bits), divisor);
    return Divisor{static_cast<uint32_t>(quotient), 31 + bits};
}

__device__ __forceinline__ int divide(int n, const Divisor& by) {
    return static_cast<int>(uint64_t{static_cast<uint32_t>(n)} * by.multiplier >> by.shift);
}

// Where element (row, channel, y, x) lies, in bytes.
struct Strides {
    int64_t row;
    int64_t channel;
    int64_t y;
    int64_t x;
};

// How an operand is read: 16 bytes of consecutive pairs, 16 bytes of consecutive lines, element by element, or 16 bytes
// of consecutive channels at one kernel position, which are consecutive lines and may lie outside of the image.
enum class Layout : int { kPairsContiguous, kLinesContiguous, kAnyStrides, kChannelsContiguous };

struct Operand {
    const char* data;
    Strides strides;
    int step_y;  // from one output position to the next, in rows of the operand's image
    int step_x;
    int height;  // of the operand's image
    int width;
};

struct Pairs {
    int count;  // rows_per_group * positions
    int positions;
    int out_width;
    Divisor by_positions;
    Divisor by_width;
};

// Coordinates of lines and pairs that do not exist: no sum of two makes them valid, nor overflows.
constexpr int kOutside = -(1 << 30);

// What a line or a pair adds to where an element lies, and to its coordinates in the image.
struct alignas(16) Offset {
    int64_t bytes;
    int y;
    int x;
};

// Lines of any strides whose words may wait in registers; of larger operands, where such strides are rare (g of an odd
// number of positions), they are stored at once, or registers would spill.
constexpr int kLinesInFlight = 64;

// How an operand may be read. `channels` of a convolution group are consecutive lines, at one kernel position where it
// is not pointwise; strides are in elements.
template <typename input_t>
Layout choose_layout(
    const void* data, const Strides4& strides, const Pairs& pairs, bool pointwise, bool unit_steps, int64_t channels) {
    const auto [row, channel, y, x] = strides;
    const int64_t vector = kVector<input_t>, out_height = pairs.positions / pairs.out_width;
    if (!is_aligned(data) || row % vector != 0) return Layout::kAnyStrides;
    if (!pointwise)
        return channel == 1 && x % vector == 0 && y % vector == 0 && channels % vector == 0
                   ? Layout::kChannelsContiguous
                   : Layout::kAnyStrides;
    const bool dense_x = pairs.out_width == 1 || x == 1, dense_y = out_height == 1 || y == pairs.out_width;
    if (unit_steps && dense_x && dense_y && channel % vector == 0 && pairs.positions % vector == 0)
        return Layout::kPairsContiguous;
    const bool aligned_x = pairs.out_width == 1 || x % vector == 0, aligned_y = out_height == 1 || y % vector == 0;
    if (channel == 1 && aligned_x && aligned_y && channels % vector == 0) return Layout::kLinesContiguous;
    return Layout::kAnyStrides;
}

// From the first row of the group on. Beyond the last pair only the coordinates count.
__device__ __forceinline__ Offset decode_pair(const Operand& operand, const Pairs& pairs, int pair) {
    const int row = divide(pair, pairs.by_positions), position = pair - row * pairs.positions;
    const int line = divide(position, pairs.by_width);
    const int y = line * operand.step_y, x = (position - line * pairs.out_width) * operand.step_x;
    const Strides& strides = operand.strides;
    return Offset{row * strides.row + y * strides.y + x * strides.x, pair < pairs.count ? y : kOutside, x};
}

// What a thread loads of kLines lines.
template <typename input_t, int kLines>
using Fetched = uint32_t[kFetched<input_t, kLines>];

// Starts to bring pairs [begin, begin + kStageDepth) of kLines lines; finish_operand completes it. `data` is the
// operand from the group's first row on.
template <typename input_t, int kLines, Layout kLayout>
__device__ __forceinline__ void begin_operand(
    const Operand& operand,
    const Pairs& pairs,
    const char* data,
    int begin,
    const Offset* lines,
    uint32_t* stage,
    Fetched<input_t, kLines>& fetched) {
    if constexpr (kLayout == Layout::kPairsContiguous) {
        const Offset pair = decode_pair(operand, pairs, begin + copied_depth<input_t>());
        const char* from = data + pair.bytes;
        copy_rows<kLines>(
            stage, [&](int line) { return Bytes{from + lines[line].bytes, (pair.y | lines[line].y) < 0 ? 0 : 16}; });
    } else {
        Offset at[kPerWord<input_t>];
        const char* from[kPerWord<input_t>];
#pragma unroll
        for (int half = 0; half < kPerWord<input_t>; ++half) {
            at[half] = decode_pair(operand, pairs, begin + fetched_depth<input_t>() + half);
            from[half] = computed(data + at[half].bytes);
        }
        const auto place = [&](int index, int half) {
            const Offset line = load_vector(lines + index);
            if (kLayout == Layout::kLinesContiguous) return Place{from[half] + line.bytes, (at[half].y | line.y) >= 0};
            const uint32_t y = static_cast<uint32_t>(at[half].y + line.y);
            const uint32_t x = static_cast<uint32_t>(at[half].x + line.x);
            const bool inside = y < static_cast<uint32_t>(operand.height) && x < static_cast<uint32_t>(operand.width);
            return Place{from[half] + line.bytes, inside};
        };
        if constexpr (kLayout != Layout::kAnyStrides) {
            fetch_across<input_t, kLines>(fetched, place);
        } else {
            const auto read = [&](int index, int half) -> uint32_t {
                const Place element = place(index, half);
                return element.inside ? bits_of(static_cast<const input_t*>(element.at)) : 0u;
            };
            if constexpr (kLines <= kLinesInFlight) {
                fetch_words<input_t, kLines>(fetched, 0, read);
            } else {
#pragma unroll 1
                for (int first = 0; first < kLines; first += kLinesInFlight) {
                    Fetched<input_t, kLinesInFlight> part;
                    fetch_words<input_t, kLinesInFlight>(part, first, read);
                    store_words<input_t, kLinesInFlight>(stage, part, first);
                }
            }
        }
    }
}

template <typename input_t, int kLines, Layout kLayout>
__device__ __forceinline__ void finish_operand(uint32_t* stage, const Fetched<input_t, kLines>& fetched) {
    if constexpr (kLayout == Layout::kLinesContiguous || kLayout == Layout::kChannelsContiguous)
        store_across<input_t, kLines>(stage, fetched);
    else if constexpr (kLayout == Layout::kAnyStrides && kLines <= kLinesInFlight)
        store_words<input_t, kLines>(stage, fetched, 0);
}

}  // namespace journey::cuda
