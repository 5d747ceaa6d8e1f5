// Product of two staged operands, the inner loop of every kernel that multiplies matrices.
//
//     sums[i, j] += sum_k left[i, k] * right[j, k]
//
// A stage holds rows of 64 bytes of k: 16 float32, or 32 of a half type. Both operands have k along their rows, so one
// ldmatrix brings a fragment whatever the type. 16-byte groups of a row are swapped by (row / 2) % 4: eight rows then
// cover all 32 banks, with no padding. A warp owns 16 * kMTiles rows of `left` by 8 * kNTiles rows of `right`; lane l
// holds sums as tensor_core.h lays out c.
//
// float32 operands: with kSplit each is a sum of two TF32 numbers, x = high + low to 2^-22 of x, and high * high +
// high * low + low * high are multiplied ("3xTF32"); every 8 products are summed by the tensor core from zero and added
// to the sums by an ordinary rounded addition, because the tensor core truncates (Ootomo and Yokota, "Recovering single
// precision accuracy from Tensor Cores", 2022). Without, operands are rounded to TF32. These and
// half types, whose products are exact, are summed by the tensor core: what it truncates is far below their own
// rounding. Without tensor cores (sm_75) the same sums are formed by FMAs, in float32.
#pragma once

#include "tensor_core.h"

namespace journey::cuda {

constexpr int kTileThreads = 128;  // four warps, of every kernel that stages operands
constexpr int kStageWords = 16;    // of 4 bytes, in a row of a stage
constexpr int kStepWords = 8;      // of them, in one tensor core product

template <typename input_t>
constexpr int kPerWord = static_cast<int>(4 / sizeof(input_t));

template <typename input_t>
constexpr int kStageDepth = kPerWord<input_t> * kStageWords;

// Where a word of a stage lies.
__device__ __forceinline__ int staged_at(int row, int word) {
    return row * kStageWords + (word ^ ((row >> 1 & 3) << 2));
}

struct Split {
    uint32_t high;
    uint32_t low;
};

// x as the sum of two TF32 numbers. The rest is what products lose. `high` is rounded as to_tf32 does, without its look
// at NaN, whose highest bits may wrap to zero here: `low` is NaN then.
__device__ __forceinline__ Split split_tf32(uint32_t bits) {
    const uint32_t high = (bits + 0x1000u) & kTf32Bits;
    return Split{high, to_tf32(bits_float(bits) - bits_float(high))};
}

template <typename input_t>
__device__ __forceinline__ float element(uint32_t word, int half);

template <>
__device__ __forceinline__ float element<float>(uint32_t word, int) {
    return bits_float(word);
}

template <>
__device__ __forceinline__ float element<__nv_bfloat16>(uint32_t word, int half) {
    return bits_float(half == 0 ? word << 16 : word & 0xFFFF0000u);
}

template <>
__device__ __forceinline__ float element<__half>(uint32_t word, int half) {
    const uint16_t bits = static_cast<uint16_t>(half == 0 ? word : word >> 16);
    __half value;
    static_assert(sizeof(value) == sizeof(bits), "a half is 16 bits");
    __builtin_memcpy(static_cast<void*>(&value), &bits, sizeof(value));
    return __half2float(value);
}

// Words (16 rows from `row`, 8 words from step * 8) as fragment a, or as fragments b of 8 rows each.
__device__ __forceinline__ void load_left(uint32_t (&a)[4], const uint32_t* stage, int row, int step) {
    const int lane = lane_id();
    load_matrices(a, stage + staged_at(row + lane % 16, step * kStepWords + lane / 16 * 4));
}

__device__ __forceinline__ void load_right(uint32_t (&b)[4], const uint32_t* stage, int row, int step) {
    const int lane = lane_id();
    load_matrices(b, stage + staged_at(row + lane / 16 * 8 + lane % 8, step * kStepWords + lane / 8 % 2 * 4));
}

// sums += a * b for float32 operands that were split.
__device__ __forceinline__ void mma_split(
    float (&sums)[4],
    const uint32_t (&a_high)[4],
    const uint32_t (&a_low)[4],
    const uint32_t (&b_high)[2],
    const uint32_t (&b_low)[2]) {
    float products[4] = {};
    mma<float>(products, a_low, b_high);
    mma<float>(products, a_high, b_low);
    mma<float>(products, a_high, b_high);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += products[i];
}

// A word of an operand as products take it; `low` counts with kSplit alone.
template <typename input_t, bool kSplit>
__device__ __forceinline__ Split prepare(uint32_t word) {
    if (sizeof(input_t) < 4) return Split{word, 0};
    return kSplit ? split_tf32(word) : Split{to_tf32(bits_float(word)), 0};
}

template <typename input_t, bool kSplit, int kMTiles, int kNTiles>
__device__ __forceinline__ void multiply_by_tensor_cores(
    const uint32_t* left,
    int left_row,
    const uint32_t* right,
    int right_row,
    int m_tiles,
    float (&sums)[kMTiles][kNTiles][4]) {
    static_assert(kNTiles % 2 == 0, "one load brings two fragments b");
#pragma unroll
    for (int step = 0; step < kStageWords / kStepWords; ++step) {
        uint32_t b[kNTiles][2], b_low[kNTiles][2];
#pragma unroll
        for (int j = 0; j < kNTiles; j += 2) {
            uint32_t pair[4];
            load_right(pair, right, right_row + 8 * j, step);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                uint32_t &high = b[j + i / 2][i % 2], &low = b_low[j + i / 2][i % 2];
                const Split split = prepare<input_t, kSplit>(pair[i]);
                high = split.high, low = split.low;
            }
        }
#pragma unroll
        for (int i = 0; i < kMTiles; ++i) {
            // Without a branch half types run ahead to the next fragments. Split products of all i would spill.
            if (kSplit && i % 2 == 0 && i >= m_tiles) break;
            uint32_t a[4], a_low[4];
            load_left(a, left, left_row + 16 * i, step);
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const Split split = prepare<input_t, kSplit>(a[w]);
                a[w] = split.high, a_low[w] = split.low;
            }
#pragma unroll
            for (int j = 0; j < kNTiles; ++j) {
                if (kSplit)
                    mma_split(sums[i][j], a, a_low, b[j], b_low[j]);
                else
                    mma<input_t>(sums[i][j], a, b[j]);
            }
        }
    }
}

// The same with FMAs.
template <typename input_t, int kMTiles, int kNTiles>
__device__ __forceinline__ void multiply_by_fma(
    const uint32_t* left, int left_row, const uint32_t* right, int right_row, float (&sums)[kMTiles][kNTiles][4]) {
    const int group = lane_id() / 4, t = lane_id() % 4;
#pragma unroll 1
    for (int word = 0; word < kStageWords; ++word) {
        uint32_t b[kNTiles][2];
#pragma unroll
        for (int j = 0; j < 2 * kNTiles; ++j)
            b[j / 2][j % 2] = right[staged_at(right_row + j / 2 * 8 + 2 * t + j % 2, word)];
#pragma unroll
        for (int i = 0; i < 2 * kMTiles; ++i) {
            const uint32_t a = left[staged_at(left_row + i * 8 + group, word)];
#pragma unroll
            for (int half = 0; half < kPerWord<input_t>; ++half)
#pragma unroll
                for (int j = 0; j < 2 * kNTiles; ++j) {
                    float& sum = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
                    sum = fmaf(element<input_t>(a, half), element<input_t>(b[j / 2][j % 2], half), sum);
                }
        }
    }
}

// 1 at every k of a word.
template <typename input_t>
constexpr uint32_t kOnes = 0x3F800000u;
template <>
constexpr uint32_t kOnes<__half> = 0x3C003C00u;
template <>
constexpr uint32_t kOnes<__nv_bfloat16> = 0x3F803F80u;

// Adds the sums over k of 16 rows of a stage, the product with a column of ones: those of rows row + group and row +
// group + 8 on every lane of a group. The tensor core sums a stage, from zero; float32 operands are split whatever
// products are. The whole warp calls, with equal arguments.
template <typename input_t>
__device__ __forceinline__ void sum_stage(const uint32_t* stage, int row, float (&sums)[2]) {
    if (has_tensor_cores()) {
        constexpr bool kSplits = sizeof(input_t) == 4;
        const uint32_t ones[2] = {kOnes<input_t>, kOnes<input_t>};
        float products[4] = {};
#pragma unroll
        for (int step = 0; step < kStageWords / kStepWords; ++step) {
            uint32_t a[4], a_low[4];
            load_left(a, stage, row, step);
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const Split split = prepare<input_t, kSplits>(a[w]);
                a[w] = split.high, a_low[w] = split.low;
            }
            if (kSplits) mma<input_t>(products, a_low, ones);
            mma<input_t>(products, a, ones);
        }
        sums[0] += products[0], sums[1] += products[2];
    } else {
        for (int word = 0; word < kStageWords; ++word)
#pragma unroll
            for (int i = 0; i < 2 * kPerWord<input_t>; ++i)
                sums[i % 2] += element<input_t>(stage[staged_at(row + lane_id() / 4 + i % 2 * 8, word)], i / 2);
    }
}

// Adds the products of rows [left_row, left_row + 16 * m_tiles), or more, and [right_row, right_row + 8 * kNTiles) of a
// stage, which holds zeros on both sides where k ends. The whole warp calls, with equal arguments.
template <typename input_t, bool kSplit, int kMTiles, int kNTiles>
__device__ __forceinline__ void multiply_stage(
    const uint32_t* left,
    int left_row,
    const uint32_t* right,
    int right_row,
    int m_tiles,
    float (&sums)[kMTiles][kNTiles][4]) {
    if (has_tensor_cores())
        multiply_by_tensor_cores<input_t, kSplit>(left, left_row, right, right_row, m_tiles, sums);
    else
        multiply_by_fma<input_t>(left, left_row, right, right_row, sums);
}

}  // namespace journey::cuda
