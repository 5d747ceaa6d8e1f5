// Three ways to bring rows of an operand into a stage (tile_matmul.h), by how it lies in memory.
//
//     copy_rows      k is contiguous and aligned: asynchronous copies of 16 bytes, no registers
//     fetch_across   the rows are contiguous and aligned: loads of 16 bytes of one k each, turned in registers
//     fetch_words    anything else: one load per element, neighbouring lanes at neighbouring k
//
// The last two leave what they load in registers, untouched, so that it travels while the stage before is multiplied;
// store_across or store_words makes words of it and puts them into the stage afterwards.
#pragma once

#include "tile_matmul.h"

namespace journey::cuda {

template <typename input_t>
constexpr int kVector = static_cast<int>(16 / sizeof(input_t));  // elements in 16 bytes

struct alignas(16) Words4 {
    uint32_t word[4];
};

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether every row of a matrix begins aligned.
template <typename input_t>
bool has_aligned_rows(const void* data, int64_t stride) {
    return is_aligned(data) && stride % kVector<input_t> == 0;
}

__device__ __forceinline__ uint32_t bits_of(const float* at) { return float_bits(*at); }
__device__ __forceinline__ uint32_t bits_of(const __half* at) { return *reinterpret_cast<const uint16_t*>(at); }
__device__ __forceinline__ uint32_t bits_of(const __nv_bfloat16* at) { return *reinterpret_cast<const uint16_t*>(at); }

// The k, inside a stage, of the elements that this thread brings: its first, by each of the ways.
template <typename input_t>
__device__ __forceinline__ int copied_depth() {
    return static_cast<int>(threadIdx.x) % 4 * kVector<input_t>;
}

template <typename input_t>
__device__ __forceinline__ int fetched_depth() {
    return static_cast<int>(threadIdx.x) % kStageWords * kPerWord<input_t>;
}

// What a thread loads of kRows rows of a stage, one element in each register at most.
template <typename input_t, int kRows>
constexpr int kFetched = kRows / 8 * kPerWord<input_t>;

// `count` bytes (0 to 16), followed by zeros; with 0 nothing is read.
struct Bytes {
    const void* from;
    int count;
};

// source(row) -> this thread's Bytes of a row.
template <int kRows, typename source_t>
__device__ __forceinline__ void copy_rows(uint32_t* stage, const source_t& source) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows / (kTileThreads / 4); ++i) {
        const int row = thread / 4 + i * (kTileThreads / 4);
        const Bytes bytes = source(row);
        copy_async(stage + staged_at(row, thread % 4 * 4), bytes.from, bytes.count);
    }
}

// A place that is not read where it is not inside: zeros stand for it.
struct Place {
    const void* at;
    bool inside;
};

// source(row, half) -> the Place where kVector elements of consecutive rows from `row` at depth fetched_depth() + half
// begin.
template <typename input_t, int kRows, typename source_t>
__device__ __forceinline__ void fetch_across(uint32_t (&fetched)[kFetched<input_t, kRows>], const source_t& source) {
#pragma unroll
    for (int task = 0; task < kRows / kVector<input_t> / 8; ++task) {
        const int row = (static_cast<int>(threadIdx.x) / kStageWords + task * 8) * kVector<input_t>;
#pragma unroll
        for (int half = 0; half < kPerWord<input_t>; ++half) {
            const Place from = source(row, half);
            const Words4 vector = from.inside ? *static_cast<const Words4*>(from.at) : Words4{};
#pragma unroll
            for (int j = 0; j < 4; ++j) fetched[(task * kPerWord<input_t> + half) * 4 + j] = vector.word[j];
        }
    }
}

template <typename input_t, int kRows>
__device__ __forceinline__ void store_across(uint32_t* stage, const uint32_t (&fetched)[kFetched<input_t, kRows>]) {
    constexpr int kOdd = (kPerWord<input_t> - 1) * 4;  // from a vector to that of the next depth
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
        const int task = i / kVector<input_t>, j = i % kVector<input_t>;
        uint32_t word = fetched[i];
        if (kPerWord<input_t> == 2) {
            const uint32_t even = fetched[task * 8 + j / 2], odd = fetched[task * 8 + j / 2 + kOdd];
            word = j % 2 == 0 ? (even & 0xFFFFu) | odd << 16 : even >> 16 | (odd & 0xFFFF0000u);
        }
        const int row = (thread / kStageWords + task * 8) * kVector<input_t> + j;
        stage[staged_at(row, thread % kStageWords)] = word;
    }
}

// Rows [first, first + kRows). read(row, half) -> bits of the element at depth fetched_depth() + half.
template <typename input_t, int kRows, typename read_t>
__device__ __forceinline__ void fetch_words(
    uint32_t (&fetched)[kFetched<input_t, kRows>], int first, const read_t& read) {
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i)
#pragma unroll
        for (int half = 0; half < kPerWord<input_t>; ++half)
            fetched[i * kPerWord<input_t> + half] =
                read(first + static_cast<int>(threadIdx.x) / kStageWords + i * 8, half);
}

template <typename input_t, int kRows>
__device__ __forceinline__ void store_words(
    uint32_t* stage, const uint32_t (&fetched)[kFetched<input_t, kRows>], int first) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
        uint32_t word = fetched[i * kPerWord<input_t>];
        if (kPerWord<input_t> == 2) word |= fetched[i * 2 + 1] << 16;
        stage[staged_at(first + thread / kStageWords + i * 8, thread % kStageWords)] = word;
    }
}

}  // namespace journey::cuda
