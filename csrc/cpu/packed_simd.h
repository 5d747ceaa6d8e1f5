// A register of floats of the instruction set, and how packed codes become one.
#pragma once

#include "simd.h"

namespace journey::cpu::JOURNEY_ISA {

// codes<kBits, kPart>(block) are floats [kPart * kFloats, (kPart + 1) * kFloats) of 32 codes, see common/packed.h.

#if defined(__AVX512F__) && defined(__AVX512BW__)

constexpr int kFloats = 16;
using VecF = __m512;
inline VecF load_f(const float* p) { return _mm512_loadu_ps(p); }
inline VecF zero_f() { return _mm512_setzero_ps(); }
inline VecF fma_f(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }

template <int kBits, int kPart>
inline VecF codes(const uint8_t* block) {
    const auto* at = reinterpret_cast<const __m128i*>(block) + (kBits == 8 ? kPart : 0);
    const __m128i bytes = _mm_loadu_si128(at);
    if (kBits == 8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    // The permutation looks at the low four bits of an index alone, so it is the conversion.
    const VecF values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m512i wide = _mm512_cvtepu8_epi32(bytes);
    return _mm512_permutexvar_ps(kPart == 0 ? wide : _mm512_srli_epi32(wide, 4), values);
}

#elif defined(__AVX2__)

constexpr int kFloats = 8;
using VecF = __m256;
inline VecF load_f(const float* p) { return _mm256_loadu_ps(p); }
inline VecF zero_f() { return _mm256_setzero_ps(); }
inline VecF fma_f(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }

template <int kBits, int kPart>
inline VecF codes(const uint8_t* block) {
    const auto* at = reinterpret_cast<const __m128i*>(block + 8 * (kBits == 8 ? kPart : kPart % 2));
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at));
    if (kBits == 8) return _mm256_cvtepi32_ps(wide);
    // The sign of a high nibble is the byte's, a low one is moved to the top.
    const __m256i nibbles = _mm256_srai_epi32(kPart < 2 ? _mm256_slli_epi32(wide, 28) : wide, kPart < 2 ? 28 : 4);
    return _mm256_cvtepi32_ps(nibbles);
}

#else

constexpr int kFloats = 8;
struct VecF {
    float lane[kFloats];
};
inline VecF load_f(const float* p) {
    VecF x;
    for (int i = 0; i < kFloats; ++i) x.lane[i] = p[i];
    return x;
}
inline VecF zero_f() { return VecF{}; }
inline VecF fma_f(VecF a, VecF b, VecF c) {
    for (int i = 0; i < kFloats; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
}

template <int kBits, int kPart>
inline VecF codes(const uint8_t* block) {
    VecF x;
    for (int i = 0; i < kFloats; ++i) {
        const int byte = static_cast<int8_t>(block[kFloats * (kBits == 8 ? kPart : kPart % 2) + i]);
        const int low = ((byte & 15) ^ 8) - 8, high = byte >> 4;
        x.lane[i] = static_cast<float>(kBits == 8 ? byte : kPart < 2 ? low : high);
    }
    return x;
}

#endif

// The sum of the floats, folded in halves.
inline float sum_f(VecF x) {
    float lanes[kFloats];
    __builtin_memcpy(lanes, &x, sizeof(lanes));
    for (int half = kFloats / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

}  // namespace journey::cpu::JOURNEY_ISA
