// Sixteen floats as one value: one AVX-512 register, two AVX2 registers, or an array that the compiler vectorises.
//
// Only what the kernels use. Everything is in the namespace of the instruction set it is compiled for.
#pragma once

#include "isa.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace journey::cpu::JOURNEY_ISA {

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct Vec16 {
    __m512 v;
};

inline Vec16 load16(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store16(float* p, Vec16 x) { _mm512_storeu_ps(p, x.v); }
inline Vec16 zero16() { return {_mm512_setzero_ps()}; }
inline Vec16 fill16(float x) { return {_mm512_set1_ps(x)}; }
inline Vec16 add16(Vec16 a, Vec16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec16 sub16(Vec16 a, Vec16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec16 mul16(Vec16 a, Vec16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec16 fma16(Vec16 a, Vec16 b, Vec16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec16 clamp16(Vec16 x, Vec16 low, Vec16 high) { return {_mm512_min_ps(_mm512_max_ps(x.v, low.v), high.v)}; }
inline Vec16 half16x16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec16 bfloat16x16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Negates lane i where bit i of `signs` is set.
inline Vec16 negate16(Vec16 x, uint32_t signs) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i flip = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    return {_mm512_castsi512_ps(_mm512_mask_xor_epi32(bits, static_cast<__mmask16>(signs), bits, flip))};
}
// out[i] = x[i XOR mask], mask in [0, 16).
struct Permutation {
    __m512i index;
};
inline Permutation lane_xor(uint32_t mask) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm512_xor_si512(iota, _mm512_set1_epi32(static_cast<int>(mask)))};
}
inline Vec16 permute16(Vec16 x, Permutation p) { return {_mm512_permutexvar_ps(p.index, x.v)}; }
// to[j][i] = from(i)[j] for 16 x 16 floats.
template <typename from_t>
inline void transpose16(from_t from, float* to, int64_t to_stride) {
    __m512 x[16], y[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_ps(from(i));
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // columns 0, 1, 2, 3 of each quarter, rows i ... i + 3
        for (int half = 0; half < 2; ++half) {
            const __m512d a = _mm512_castps_pd(y[i + half]), b = _mm512_castps_pd(y[i + half + 2]);
            x[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            x[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    for (int column = 0; column < 4; ++column) {
        const __m512 a = _mm512_shuffle_f32x4(x[column], x[column + 4], 0x88);  // quarters 0, 2 of rows 0-3, 4-7
        const __m512 b = _mm512_shuffle_f32x4(x[column + 8], x[column + 12], 0x88);
        const __m512 c = _mm512_shuffle_f32x4(x[column], x[column + 4], 0xDD);  // quarters 1, 3
        const __m512 d = _mm512_shuffle_f32x4(x[column + 8], x[column + 12], 0xDD);
        _mm512_storeu_ps(to + column * to_stride, _mm512_shuffle_f32x4(a, b, 0x88));
        _mm512_storeu_ps(to + (column + 4) * to_stride, _mm512_shuffle_f32x4(c, d, 0x88));
        _mm512_storeu_ps(to + (column + 8) * to_stride, _mm512_shuffle_f32x4(a, b, 0xDD));
        _mm512_storeu_ps(to + (column + 12) * to_stride, _mm512_shuffle_f32x4(c, d, 0xDD));
    }
}

// Some doubles as one value, a register of the instruction set.
constexpr int kDoubles = 8;
using VecD = __m512d;
inline VecD load_d(const double* p) { return _mm512_loadu_pd(p); }
inline void store_d(double* p, VecD x) { _mm512_storeu_pd(p, x); }
inline VecD zero_d() { return _mm512_setzero_pd(); }
inline VecD fill_d(double x) { return _mm512_set1_pd(x); }
inline VecD add_d(VecD a, VecD b) { return _mm512_add_pd(a, b); }
inline VecD fma_d(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a, b, c); }

#elif defined(__AVX2__)

struct Vec16 {
    __m256 lo, hi;
};

inline Vec16 load16(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store16(float* p, Vec16 x) { _mm256_storeu_ps(p, x.lo), _mm256_storeu_ps(p + 8, x.hi); }
inline Vec16 zero16() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec16 fill16(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec16 add16(Vec16 a, Vec16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec16 sub16(Vec16 a, Vec16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec16 mul16(Vec16 a, Vec16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec16 clamp16(Vec16 x, Vec16 low, Vec16 high) {
    return {_mm256_min_ps(_mm256_max_ps(x.lo, low.lo), high.lo), _mm256_min_ps(_mm256_max_ps(x.hi, low.hi), high.hi)};
}
inline Vec16 fma16(Vec16 a, Vec16 b, Vec16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec16 half16x16(const uint16_t* p) {
    return {
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline __m256 widen_bfloat16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Vec16 bfloat16x16(const uint16_t* p) { return {widen_bfloat16(p), widen_bfloat16(p + 8)}; }
inline __m256 negate8(__m256 x, uint32_t signs) {
    // Move bit i of `signs` to the sign position of lane i.
    const __m256i shift = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    const __m256i moved = _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(signs)), shift);
    return _mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_and_si256(moved, _mm256_set1_epi32(INT32_MIN))));
}
inline Vec16 negate16(Vec16 x, uint32_t signs) { return {negate8(x.lo, signs), negate8(x.hi, signs >> 8)}; }
struct Permutation {
    __m256i index;
    bool swap;
};
inline Permutation lane_xor(uint32_t mask) {
    const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_xor_si256(iota, _mm256_set1_epi32(static_cast<int>(mask & 7u))), (mask & 8u) != 0u};
}
inline Vec16 permute16(Vec16 x, Permutation p) {
    const __m256 lo = _mm256_permutevar8x32_ps(x.lo, p.index), hi = _mm256_permutevar8x32_ps(x.hi, p.index);
    return p.swap ? Vec16{hi, lo} : Vec16{lo, hi};
}
template <typename from_t>
inline void transpose8(from_t from, float* to, int64_t to_stride) {
    __m256 x[8], y[8];
    for (int i = 0; i < 8; ++i) x[i] = _mm256_loadu_ps(from(i));
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {  // columns 0, 1, 2, 3 of each half, rows i ... i + 3
        for (int half = 0; half < 2; ++half) {
            const __m256d a = _mm256_castps_pd(y[i + half]), b = _mm256_castps_pd(y[i + half + 2]);
            x[i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            x[i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    }
    for (int column = 0; column < 4; ++column) {
        _mm256_storeu_ps(to + column * to_stride, _mm256_permute2f128_ps(x[column], x[column + 4], 0x20));
        _mm256_storeu_ps(to + (column + 4) * to_stride, _mm256_permute2f128_ps(x[column], x[column + 4], 0x31));
    }
}
// to[j][i] = from(i)[j] for 16 x 16 floats.
template <typename from_t>
inline void transpose16(from_t from, float* to, int64_t to_stride) {
    for (int row = 0; row < 16; row += 8)
        for (int column = 0; column < 16; column += 8)
            transpose8([&](int i) { return from(row + i) + column; }, to + column * to_stride + row, to_stride);
}

constexpr int kDoubles = 4;
using VecD = __m256d;
inline VecD load_d(const double* p) { return _mm256_loadu_pd(p); }
inline void store_d(double* p, VecD x) { _mm256_storeu_pd(p, x); }
inline VecD zero_d() { return _mm256_setzero_pd(); }
inline VecD fill_d(double x) { return _mm256_set1_pd(x); }
inline VecD add_d(VecD a, VecD b) { return _mm256_add_pd(a, b); }
inline VecD fma_d(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a, b, c); }

#else

struct Vec16 {
    float lane[16];
};

inline Vec16 load16(const float* p) {
    Vec16 x;
    for (int i = 0; i < 16; ++i) x.lane[i] = p[i];
    return x;
}
inline void store16(float* p, Vec16 x) {
    for (int i = 0; i < 16; ++i) p[i] = x.lane[i];
}
inline Vec16 fill16(float value) {
    Vec16 x;
    for (int i = 0; i < 16; ++i) x.lane[i] = value;
    return x;
}
inline Vec16 zero16() { return fill16(0.0f); }
inline Vec16 add16(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
}
inline Vec16 sub16(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
    return a;
}
inline Vec16 mul16(Vec16 a, Vec16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
    return a;
}
inline Vec16 clamp16(Vec16 x, Vec16 low, Vec16 high) {
    for (int i = 0; i < 16; ++i) x.lane[i] = x.lane[i] < low.lane[i] ? low.lane[i] : x.lane[i];
    for (int i = 0; i < 16; ++i) x.lane[i] = x.lane[i] > high.lane[i] ? high.lane[i] : x.lane[i];
    return x;
}
inline Vec16 fma16(Vec16 a, Vec16 b, Vec16 c) {
    for (int i = 0; i < 16; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
}
inline float half_value(uint16_t h) {
    // Shift exponent and mantissa into place; scaling by 2^112 rebuilds the exponent, subnormals included.
    const uint32_t magnitude = static_cast<uint32_t>(h & 0x7FFFu) << 13;
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const bool infinite_or_nan = (h & 0x7C00u) == 0x7C00u;
    const uint32_t finite = float_bits(bits_float(magnitude) * 5.192296858534828e33f);
    return bits_float(sign | (infinite_or_nan ? (magnitude | 0x7F800000u) : finite));
}
inline Vec16 half16x16(const uint16_t* p) {
    Vec16 x;
    for (int i = 0; i < 16; ++i) x.lane[i] = half_value(p[i]);
    return x;
}
inline Vec16 bfloat16x16(const uint16_t* p) {
    Vec16 x;
    for (int i = 0; i < 16; ++i) x.lane[i] = bits_float(static_cast<uint32_t>(p[i]) << 16);
    return x;
}
inline Vec16 negate16(Vec16 x, uint32_t signs) {
    for (int i = 0; i < 16; ++i) x.lane[i] = bits_float(float_bits(x.lane[i]) ^ (((signs >> i) & 1u) << 31));
    return x;
}
struct Permutation {
    uint32_t mask;
};
inline Permutation lane_xor(uint32_t mask) { return {mask}; }
inline Vec16 permute16(Vec16 x, Permutation p) {
    Vec16 out;
    for (uint32_t i = 0; i < 16; ++i) out.lane[i] = x.lane[i ^ p.mask];
    return out;
}
// to[j][i] = from(i)[j] for 16 x 16 floats.
template <typename from_t>
inline void transpose16(from_t from, float* to, int64_t to_stride) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) to[j * to_stride + i] = from(i)[j];
}

constexpr int kDoubles = 2;
using VecD = double __attribute__((vector_size(16)));
inline VecD load_d(const double* p) { return VecD{p[0], p[1]}; }
inline void store_d(double* p, VecD x) { p[0] = x[0], p[1] = x[1]; }
inline VecD zero_d() { return VecD{0.0, 0.0}; }
inline VecD fill_d(double x) { return VecD{x, x}; }
inline VecD add_d(VecD a, VecD b) { return a + b; }
inline VecD fma_d(VecD a, VecD b, VecD c) { return a * b + c; }

#endif

// Sixteen gradient entries as fp32, whatever they are stored as.
inline Vec16 load_input16(const float* p) { return load16(p); }
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};
inline Vec16 load_input16(const Half* p) { return half16x16(reinterpret_cast<const uint16_t*>(p)); }
inline Vec16 load_input16(const BFloat* p) { return bfloat16x16(reinterpret_cast<const uint16_t*>(p)); }

}  // namespace journey::cpu::JOURNEY_ISA
