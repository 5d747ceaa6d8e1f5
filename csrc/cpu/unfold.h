// The input of a convolution, a window of output positions at a time, so that the values of one column of the weight
// gradient at consecutive output positions are consecutive in memory.
//
// A window is some segments of output lines; their input lines are copied with their padding and with the phases of the
// stride apart: [channel][segment][kernel plane][input line][phase of the stride][position].
#pragma once

#include "simd.h"

namespace journey::cpu::JOURNEY_ISA {

constexpr int kWidth = 16;  // of a vector

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

// Copies entries, as floats or as they are. May write up to the next multiple of 16; never reads from `limit` on.
template <typename input_t>
inline void copy_entries(const input_t* from, const input_t* limit, int64_t count, float* to) {
    int64_t i = 0;
    for (; i < count && limit - (from + i) >= kWidth; i += kWidth) store16(to + i, load_input16(from + i));
    if (i >= count) return;
    input_t padded[kWidth] = {};
    for (int64_t j = i; j < count; ++j) padded[j - i] = from[j];
    float tail[kWidth];
    store16(tail, load_input16(padded));
    for (int64_t j = i; j < count; ++j) to[j] = tail[j - i];
}

inline void copy_entries(const BFloat* from, const BFloat* limit, int64_t count, BFloat* to) {
    int64_t i = 0;
    for (; i < count && limit - (from + i) >= kWidth; i += kWidth) __builtin_memcpy(to + i, from + i, kWidth * 2);
    for (; i < count; ++i) to[i] = from[i];
}

// The columns of a layer's weight gradient, and the steps in which its chunks are formed. Columns are (kernel position,
// channel). Chunks of the same 32 channels are formed one after the other, so that a few steps need a few channels of a
// convolution's input; where chunks are not of one kernel position, they come in the order of columns and need them
// all.
struct ColumnPlan {
    explicit ColumnPlan(const SketchOuterArgs& args) : channels(args.c_in / args.conv_groups) {
        const int64_t kernel_positions = args.kernel[0] * args.kernel[1] * args.kernel[2];
        cols = channels * kernel_positions;
        chunks = num_chunks(cols);
        by_channel = kernel_positions == 1 || channels % kLanes == 0;
        in_turn = by_channel ? kernel_positions : 1;
    }

    // The chunk that a step forms.
    int64_t chunk_at(int64_t step) const { return step % in_turn * (chunks / in_turn) + step / in_turn; }

    // The channels that steps [begin, end) need, and how many at most, where begin is a multiple of their number.
    int64_t first_channel(int64_t begin) const { return by_channel ? begin / in_turn * kLanes : 0; }
    int64_t end_channel(int64_t end) const {
        return by_channel ? smaller(channels, ((end - 1) / in_turn + 1) * kLanes) : channels;
    }
    int64_t most_channels(int64_t steps) const {
        const int64_t blocks = steps % in_turn == 0 ? steps / in_turn : (steps + in_turn - 2) / in_turn + 1;
        return by_channel ? smaller(channels, blocks * kLanes) : channels;
    }

    int64_t channels, cols, chunks;
    bool by_channel;
    int64_t in_turn;  // chunks of the same channels
};

// Sizes of a window, fixed by the layer.
struct WindowPlan {
    int64_t lines;        // output lines of a segment, at most: a whole plane if it is small
    int64_t segments;     // at most
    int64_t input_lines;  // of a segment and kernel plane
    int64_t positions;    // of one phase of a line
    int64_t line;         // values of all phases
    int64_t segment;      // values
};

inline WindowPlan plan_window(const SketchOuterArgs& args) {
    // Lines at the border of two windows are copied twice: the larger the window, the less of that. 64 channels at 32 x
    // 32 are 0.3 MiB.
    constexpr int64_t kWindowPositions = 1024;
    const int64_t width = args.out_size[2], plane = args.out_size[1] * width;
    WindowPlan plan{};
    plan.lines = plane <= kWindowPositions ? args.out_size[1] : larger(1, kWindowPositions / width);
    plan.segments = larger(1, smaller(kWindowPositions / plane, args.rows_per_group * args.out_size[0]));
    plan.input_lines = (plan.lines - 1) * args.stride[1] + (args.kernel[1] - 1) * args.dilation[1] + 1;
    plan.positions = width + (args.kernel[2] - 1) * args.dilation[2] / args.stride[2] + 1;
    plan.line = plan.positions * args.stride[2];
    plan.segment = args.kernel[0] * plan.input_lines * plan.line;
    return plan;
}

inline int64_t window_values(const SketchOuterArgs& args, int64_t channels) {
    const WindowPlan plan = plan_window(args);
    return channels * plan.segments * plan.segment + 2 * kWidth;  // room for a whole last vector of either type
}

// Consecutive output lines of one plane of one row of the batch.
struct Segment {
    int64_t row;
    int64_t z;
    int64_t y;
    int64_t lines;
};

// Copies the input as `value_t`: floats, or what it is.
template <typename input_t, typename value_t>
class Window {
public:
    // Channels [first_channel, end_channel) of the input's `group_channel` on, of the rows of one group.
    Window(
        const SketchOuterArgs& args,
        int64_t group,
        int64_t group_channel,
        int64_t first_channel,
        int64_t end_channel,
        value_t* copied)
        : args_(args),
          plan_(plan_window(args)),
          group_(group),
          group_channel_(group_channel),
          first_channel_(first_channel),
          end_channel_(end_channel),
          copied_(copied) {}

    // Goes to the next window and copies its input; false when there is none.
    bool next() {
        num_segments = 0;
        const int64_t planes = args_.rows_per_group * args_.out_size[0];
        while (plane_ < planes && num_segments < plan_.segments) {
            const int64_t row = group_ * args_.rows_per_group + plane_ / args_.out_size[0];
            const int64_t lines = smaller(plan_.lines, args_.out_size[1] - y_);
            segments[num_segments++] = {row, plane_ % args_.out_size[0], y_, lines};
            y_ += lines;
            if (y_ == args_.out_size[1]) y_ = 0, ++plane_;
        }
        if (num_segments > 0) copy();
        return num_segments > 0;
    }

    // Where the value of an output position is, relative to that of the column at the window's first position.
    int64_t offset(int64_t segment, int64_t line, int64_t x) const {
        return segment * plan_.segment + line * args_.stride[1] * plan_.line + x;
    }

    // The value of each column of a chunk at the window's first position; columns beyond `cols` are left out.
    void find_columns(int64_t chunk, int64_t cols, const value_t** columns) const {
        const int64_t channels = args_.c_in / args_.conv_groups, channel_values = plan_.segments * plan_.segment;
        const int64_t stride = args_.stride[2], kernel_position = chunk * kLanes / channels;
        int64_t channel = chunk * kLanes % channels, x = kernel_position % args_.kernel[2];
        int64_t y = kernel_position / args_.kernel[2] % args_.kernel[1];
        int64_t z = kernel_position / args_.kernel[2] / args_.kernel[1];
        for (int64_t lane = 0; lane < kLanes && chunk * kLanes + lane < cols; channel = 0) {
            const int64_t shift = x * args_.dilation[2], line = z * plan_.input_lines + y * args_.dilation[1];
            const int64_t position = stride == 1 ? shift : shift % stride * plan_.positions + shift / stride;
            const value_t* from = copied_ + line * plan_.line + position;
            for (; channel < channels && lane < kLanes; ++channel, ++lane)
                columns[lane] = from + (channel - first_channel_) * channel_values;
            if (++x == args_.kernel[2]) x = 0, ++y;
            if (y == args_.kernel[1]) y = 0, ++z;
        }
    }

    int64_t num_segments = 0;
    Segment segments[1024];

private:
    void copy() {
        const input_t* a = static_cast<const input_t*>(args_.a);
        const int64_t depth = args_.in_size[0], height = args_.in_size[1], width = args_.in_size[2];
        const input_t* limit = a + args_.num_groups * args_.rows_per_group * args_.c_in * depth * height * width;
        for (int64_t channel = first_channel_; channel < end_channel_; ++channel) {
            value_t* to = copied_ + (channel - first_channel_) * plan_.segments * plan_.segment;
            for (int64_t s = 0; s < num_segments; ++s) {
                const Segment& segment = segments[s];
                const int64_t image = (segment.row * args_.c_in + group_channel_ + channel) * depth;
                for (int64_t kz = 0; kz < args_.kernel[0]; ++kz) {
                    const int64_t z = segment.z * args_.stride[0] + kz * args_.dilation[0] - args_.padding[0];
                    int64_t y = segment.y * args_.stride[1] - args_.padding[1];
                    for (int64_t line = 0; line < plan_.input_lines; ++line, ++y, to += plan_.line) {
                        const bool inside = z >= 0 && z < depth && y >= 0 && y < height;
                        copy_line(inside ? a + ((image + z) * height + y) * width : nullptr, limit, to);
                    }
                }
            }
        }
    }

    // to[phase][q] = input at q * stride + phase - padding; zero outside and where there is no line.
    void copy_line(const input_t* line, const input_t* limit, value_t* to) const {
        if (args_.stride[2] == 1) return copy_padded(line, limit, -args_.padding[2], plan_.line, to);
        constexpr int64_t kPiece = 128;
        value_t piece[kPiece + kWidth];
        int64_t phase = 0, q = 0;
        for (int64_t done = 0; done < plan_.line; done += kPiece) {
            const int64_t count = smaller(kPiece, plan_.line - done);
            copy_padded(line, limit, done - args_.padding[2], count, piece);
            for (int64_t i = 0; i < count; ++i) {
                to[phase * plan_.positions + q] = piece[i];
                if (++phase == args_.stride[2]) phase = 0, ++q;
            }
        }
    }

    void copy_padded(const input_t* line, const input_t* limit, int64_t begin, int64_t count, value_t* to) const {
        const int64_t width = line ? args_.in_size[2] : 0;
        const int64_t low = smaller(larger(0, -begin), count);
        const int64_t high = larger(low, smaller(count, width - begin));
        for (int64_t i = 0; i < low; ++i) to[i] = value_t{};
        if (high > low) copy_entries(line + begin + low, limit, high - low, to + low);
        for (int64_t i = high; i < count; ++i) to[i] = value_t{};
    }

    const SketchOuterArgs& args_;
    const WindowPlan plan_;
    const int64_t group_, group_channel_, first_channel_, end_channel_;
    value_t* copied_;
    int64_t plane_ = 0, y_ = 0;
};

}  // namespace journey::cpu::JOURNEY_ISA
