// Three ways to bring rows of an operand into a stage (tile_matmul.h), by how it lies in memory.
//
//     copy_rows      k is contiguous and aligned: asynchronous copies of 16 bytes, no registers
//     fetch_across   the rows are contiguous and aligned: loads of 16 bytes of one k each, turned in registers
//     fetch_words    anything else: one load per element, neighbouring lanes at neighbouring k
//
// The last two leave words in registers, so that they travel while the stage before is multiplied, and store_across or
// store_words puts them into the stage afterwards.
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

// source(row) -> where this thread's `bytes` (0 to 16) of a row begin, followed by zeros; null for zeros alone.
// `readable` is any pointer that is aligned to 16 bytes.
template <int kRows, typename source_t>
__device__ __forceinline__ void copy_rows(uint32_t* stage, const void* readable, int bytes, const source_t& source) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows / (kTileThreads / 4); ++i) {
        const int row = thread / 4 + i * (kTileThreads / 4);
        const void* from = source(row);
        copy_async(
            stage + staged_at(row, thread % 4 * 4), from == nullptr ? readable : from, from == nullptr ? 0 : bytes);
    }
}

// source(row, half) -> where kVector elements of consecutive rows from `row` at depth fetched_depth() + half begin;
// null for zeros.
template <typename input_t, int kRows, typename source_t>
__device__ __forceinline__ void fetch_across(uint32_t (&words)[kRows / 8], const source_t& source) {
    constexpr int kTasks = kRows / kVector<input_t> / 8;
#pragma unroll
    for (int task = 0; task < kTasks; ++task) {
        const int row = (static_cast<int>(threadIdx.x) / kStageWords + task * 8) * kVector<input_t>;
        Words4 vectors[kPerWord<input_t>];
#pragma unroll
        for (int half = 0; half < kPerWord<input_t>; ++half) {
            const void* from = source(row, half);
            vectors[half] = from == nullptr ? Words4{} : *static_cast<const Words4*>(from);
        }
#pragma unroll
        for (int j = 0; j < kVector<input_t>; ++j) {
            uint32_t& word = words[task * kVector<input_t> + j];
            if (kPerWord<input_t> == 1) {
                word = vectors[0].word[j];
            } else {
                const uint32_t even = vectors[0].word[j / 2], odd = vectors[kPerWord<input_t> - 1].word[j / 2];
                word = j % 2 == 0 ? (even & 0xFFFFu) | odd << 16 : even >> 16 | (odd & 0xFFFF0000u);
            }
        }
    }
}

template <typename input_t, int kRows>
__device__ __forceinline__ void store_across(uint32_t* stage, const uint32_t (&words)[kRows / 8]) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
        const int block = thread / kStageWords + i / kVector<input_t> * 8;
        stage[staged_at(block * kVector<input_t> + i % kVector<input_t>, thread % kStageWords)] = words[i];
    }
}

// Rows [first, first + kRows). read(row, half) -> bits of the element at depth fetched_depth() + half.
template <typename input_t, int kRows, typename read_t>
__device__ __forceinline__ void fetch_words(uint32_t (&words)[kRows / 8], int first, const read_t& read) {
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
        const int row = first + static_cast<int>(threadIdx.x) / kStageWords + i * 8;
        words[i] = read(row, 0);
        if (kPerWord<input_t> == 2) words[i] |= read(row, 1) << 16;
    }
}

template <int kRows>
__device__ __forceinline__ void store_words(uint32_t* stage, const uint32_t (&words)[kRows / 8], int first) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i)
        stage[staged_at(first + thread / kStageWords + i * 8, thread % kStageWords)] = words[i];
}

}  // namespace journey::cuda
