// One chunk of the count sketch, and the tables of placements and sign words that the chunks use (common/sketch_map.h).
#pragma once

#include "philox_kernel.h"
#include "simd.h"

namespace journey::cpu::JOURNEY_ISA {

constexpr int kHalf = 16;
constexpr int64_t kSignGroup = 64;  // chunks whose sign words one Philox16 gives

// Adds 32 columns to a row of buckets: flip signs by mask, permute lanes by XOR.
inline void add_columns(Vec16 left, Vec16 right, uint32_t signs, Permutation permutation, float* first, float* second) {
    store16(first, add16(load16(first), permute16(negate16(left, signs & 0xFFFFu), permutation)));
    store16(second, add16(load16(second), permute16(negate16(right, signs >> kHalf), permutation)));
}

// The halves of a row of buckets that the halves of 32 columns go to: bit 4 of the mask swaps them.
inline float* first_half(float* bucket_row, uint32_t lane_mask) { return bucket_row + (lane_mask & 16u); }
inline float* second_half(float* bucket_row, uint32_t lane_mask) { return bucket_row + (16u - (lane_mask & 16u)); }

// Adds rows of 32 columns to as many rows of buckets.
template <typename input_t>
inline void add_rows(
    const input_t* entries, int64_t count, const uint32_t* signs, uint32_t lane_mask, float* bucket_row) {
    const Permutation permutation = lane_xor(lane_mask & 15u);
    float *first = first_half(bucket_row, lane_mask), *second = second_half(bucket_row, lane_mask);
    for (int64_t i = 0; i < count; ++i, entries += kLanes, first += kLanes, second += kLanes)
        add_columns(load_input16(entries), load_input16(entries + kHalf), signs[i], permutation, first, second);
}

template <typename input_t>
inline void add_chunk(const input_t* entries, uint32_t signs, uint32_t lane_mask, float* bucket_row) {
    add_rows(entries, 1, &signs, lane_mask, bucket_row);
}

inline void fill_placements(const SketchTable& table, int64_t bucket_rows, Placement* placements) {
    Philox16 draws;
    for (int64_t done = 0; done < table.count; done += kDraws) {
        const uint64_t index = static_cast<uint64_t>(table.begin + done);
        philox16_indices(table.key, index, table.repetition, kStreamSketchTile, draws);
        const int64_t filled = table.count - done < kDraws ? table.count - done : kDraws;
        for (int64_t i = 0; i < filled; ++i)
            placements[done + i] = placement_from_words(draws.word[0][i], draws.word[1][i], bucket_rows);
    }
}

// Sign words of chunks, see sketch_signs().
inline void fill_signs(const SketchTable& table, uint32_t* words) {
    Philox16 draws;
    for (int64_t done = 0; done < table.count;) {
        const int64_t chunk = table.begin + done, in_group = chunk % kSignGroup;
        const int64_t left = kSignGroup - in_group, filled = table.count - done < left ? table.count - done : left;
        const uint64_t index = static_cast<uint64_t>(chunk / kSignGroup * kDraws);
        philox16_indices(table.key, index, table.repetition, kStreamSketchSign, draws);
        const uint32_t* drawn = &draws.word[0][0] + in_group;
        for (int64_t i = 0; i < filled; ++i) words[done + i] = drawn[i];
        done += filled;
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
