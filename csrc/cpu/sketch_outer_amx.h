// Blocks of a bfloat16 weight gradient by the matrix unit (AMX): 32 rows by 32 columns in four tiles of float32.
//
// A tile of g is 16 rows by 32 positions, as they are in memory; a tile of the panel is 16 pairs of positions by 16
// columns, the two values of a pair side by side, so that pairs are moved about as floats are elsewhere. Products are
// exact and summed in float32, subnormal numbers as zero.
#pragma once

#include <immintrin.h>

#include "unfold.h"

namespace journey::cpu::JOURNEY_ISA {

struct Amx {
    using Value = BFloat;
    // Positions of a block: 32 KiB of panel. The sums of a block go through the sketch once, which costs as much as
    // the products of some 150 positions.
    static constexpr int64_t kDepth = 512;
    static constexpr int64_t kTileRows = 32;
    static constexpr int64_t kTilePositions = 32;
    static constexpr int64_t kStride = kDepth + 32;  // of packed rows of g, off the powers of two that share cache sets

    static int64_t packed_rows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }
    static int64_t g_values(int64_t rows) { return packed_rows(rows) * kStride; }
    // Positions up to which a block is filled with zeros.
    static int64_t padded(int64_t depth) { return (depth + kTilePositions - 1) / kTilePositions * kTilePositions; }

    // The shapes of the tiles, for as long as this lives; all are 16 rows of 64 bytes.
    Amx() {
        struct alignas(64) Config {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        _tile_loadconfig(&config);
    }
    ~Amx() { _tile_release(); }
    Amx(const Amx&) = delete;
    Amx& operator=(const Amx&) = delete;

    // Packs 32 positions, from `position` on, of 16 rows.
    template <typename from_t>
    static void put_rows(from_t from, int64_t row, int64_t position, BFloat* packed) {
        for (int i = 0; i < kWidth; ++i)
            __builtin_memcpy(packed + (row + i) * kStride + position, from(i), kTilePositions * sizeof(BFloat));
    }

    // g[position][row], to rows of positions.
    static void pack_linear_g(
        const BFloat* g, const BFloat* limit, int64_t stride, int64_t depth, int64_t rows, BFloat* packed) {
        alignas(64) float pairs[kWidth * kWidth];
        for (int64_t k = 0; k < padded(depth); k += kTilePositions)
            for (int64_t row = 0; row < packed_rows(rows); row += kWidth) {
                const int64_t count = larger(0, smaller(kWidth, rows - row));
                for (int64_t j = 0; j < kWidth; ++j)
                    put_pair(g + row, limit, stride, k + 2 * j, depth, count, pairs + j * kWidth);
                float* to = reinterpret_cast<float*>(packed + row * kStride + k);
                transpose16([&](int i) { return pairs + i * kWidth; }, to, kStride / 2);
            }
    }

    // a[position][column], 32 columns or fewer.
    static void pack_linear_panel(
        const BFloat* a, const BFloat* limit, int64_t stride, int64_t depth, int64_t count, BFloat* panel) {
        float* to = reinterpret_cast<float*>(panel);
        for (int64_t k = 0; k < padded(depth); k += 2, to += kLanes) {
            __builtin_prefetch(a + k * stride + kLanes);
            __builtin_prefetch(a + (k + 1) * stride + kLanes);
            put_pair(a, limit, stride, k, depth, smaller(kWidth, count), to);
            put_pair(a + kWidth, limit, stride, k, depth, larger(0, count - kWidth), to + kWidth);
        }
    }

    // product[i][lane] = sum over positions of g[row + i][position] * panel[position][lane]
    static void multiply(
        const BFloat* packed, int64_t row, int64_t rows, const BFloat* panel, int64_t depth, float* product) {
        const BFloat* g = packed + row * kStride;
        const int64_t steps = padded(depth) / kTilePositions;
        constexpr int kRowBytes = kLanes * sizeof(float), kGBytes = kStride * sizeof(BFloat);
        const BFloat* right = panel + kLanes;  // columns 16 to 31
        const int64_t step = kTilePositions * kLanes;
        _tile_zero(0);
        _tile_zero(1);
        if (rows - row <= kWidth) {
            for (int64_t s = 0; s < steps; ++s) {
                _tile_loadd(4, g + s * kTilePositions, kGBytes);
                _tile_loadd(6, panel + s * step, kRowBytes);
                _tile_loadd(7, right + s * step, kRowBytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
            }
        } else {
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t s = 0; s < steps; ++s) {
                _tile_loadd(4, g + s * kTilePositions, kGBytes);
                _tile_loadd(5, g + kWidth * kStride + s * kTilePositions, kGBytes);
                _tile_loadd(6, panel + s * step, kRowBytes);
                _tile_loadd(7, right + s * step, kRowBytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(2, product + kWidth * kLanes, kRowBytes);
            _tile_stored(3, product + kWidth * kLanes + kWidth, kRowBytes);
        }
        _tile_stored(0, product, kRowBytes);
        _tile_stored(1, product + kWidth, kRowBytes);
    }

private:
    // Two positions of up to 16 values, side by side; zero for values and positions that are not there.
    static void put_pair(
        const BFloat* from, const BFloat* limit, int64_t stride, int64_t k, int64_t depth, int64_t count, float* to) {
        const __m512i first = widened(from + k * stride, limit, k < depth ? count : 0);
        const __m512i second = widened(from + (k + 1) * stride, limit, k + 1 < depth ? count : 0);
        _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }

    static __m512i widened(const BFloat* from, const BFloat* limit, int64_t count) {
        if (count == kWidth && limit - from >= kWidth)
            return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
        BFloat padded[kWidth] = {};
        for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(padded)));
    }
};

}  // namespace journey::cpu::JOURNEY_ISA
