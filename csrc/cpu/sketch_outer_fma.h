// Blocks of a weight gradient by fused multiply-add: packed as floats, a micro-tile of 8 rows by 32 columns in
// registers.
#pragma once

#include "unfold.h"

namespace journey::cpu::JOURNEY_ISA {

template <typename input_t>
struct Fma {
    using Value = float;
    // Positions of a block: the panel of 32 columns then fills two thirds of a 48 KiB L1 cache, and chains of float32
    // additions stay short.
    static constexpr int64_t kDepth = 128;
    static constexpr int64_t kTileRows = 8;
    static constexpr int64_t kPackedRows = 16;  // of g, interleaved: [rows / 16][position][16]

    static int64_t packed_rows(int64_t rows) { return (rows + kPackedRows - 1) / kPackedRows * kPackedRows; }
    static int64_t g_values(int64_t rows) { return packed_rows(rows) * kDepth; }
    // Positions up to which a block is filled with zeros.
    static int64_t padded(int64_t depth) { return depth; }

    // Packs 16 positions, from `position` on, of 16 rows.
    template <typename from_t>
    static void put_rows(from_t from, int64_t row, int64_t position, float* packed) {
        transpose16(from, packed + row * kDepth + position * kPackedRows, kPackedRows);
    }

    // g[position][row]. A few positions at a time: they may be pages apart, and so may be the blocks of packed rows.
    static void pack_linear_g(
        const input_t* g, const input_t* limit, int64_t stride, int64_t depth, int64_t rows, float* packed) {
        constexpr int64_t kTogether = 8;
        for (int64_t k = 0; k < depth; k += kTogether)
            for (int64_t block = 0; block < rows; block += kPackedRows) {
                const int64_t count = smaller(kPackedRows, rows - block);
                for (int64_t j = k; j < smaller(k + kTogether, depth); ++j) {
                    float* to = packed + block * kDepth + j * kPackedRows;
                    copy_entries(g + j * stride + block, limit, count, to);
                    for (int64_t i = count; i < kPackedRows; ++i) to[i] = 0.0f;
                }
            }
    }

    // a[position][column], 32 columns or fewer.
    static void pack_linear_panel(
        const input_t* a, const input_t* limit, int64_t stride, int64_t depth, int64_t count, float* panel) {
        for (int64_t k = 0; k < depth; ++k, a += stride) {
            // The next chunk of the same position, which no hardware prefetcher would expect.
            __builtin_prefetch(a + kLanes);
            __builtin_prefetch(a + kLanes + kWidth);
            copy_entries(a, limit, count, panel + k * kLanes);
            for (int64_t i = count; i < kLanes; ++i) panel[k * kLanes + i] = 0.0f;
        }
    }

#if defined(__AVX512F__)
    static constexpr int kMicroRows = 8, kMicroVectors = 2;  // 16 accumulators of 32 registers
#else
    static constexpr int kMicroRows = 4, kMicroVectors = 1;  // 8 of 16 registers, two to a vector
#endif

    // product[i][lane] = sum over positions of g[row + i][position] * panel[position][lane]
    static void multiply(
        const float* packed, int64_t row, int64_t /*rows*/, const float* panel, int64_t depth, float* product) {
        const float* g = packed + row / kPackedRows * kPackedRows * kDepth + row % kPackedRows;
        for (int first = 0; first < kTileRows; first += kMicroRows)
            for (int lane = 0; lane < kLanes; lane += kMicroVectors * kWidth) {
                Vec16 sum[kMicroRows][kMicroVectors];
                for (int i = 0; i < kMicroRows; ++i)
                    for (int v = 0; v < kMicroVectors; ++v) sum[i][v] = zero16();
                const float *g_k = g + first, *a_k = panel + lane;
#pragma GCC unroll 4
                for (int64_t k = 0; k < depth; ++k, g_k += kPackedRows, a_k += kLanes) {
                    Vec16 a[kMicroVectors];
                    for (int v = 0; v < kMicroVectors; ++v) a[v] = load16(a_k + v * kWidth);
                    for (int i = 0; i < kMicroRows; ++i) {
                        const Vec16 wide = fill16(g_k[i]);
                        for (int v = 0; v < kMicroVectors; ++v) sum[i][v] = fma16(wide, a[v], sum[i][v]);
                    }
                }
                for (int i = 0; i < kMicroRows; ++i)
                    for (int v = 0; v < kMicroVectors; ++v)
                        store16(product + (first + i) * kLanes + lane + v * kWidth, sum[i][v]);
            }
    }
};

}  // namespace journey::cpu::JOURNEY_ISA
