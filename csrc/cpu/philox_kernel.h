// Sixteen Philox draws at a time, and the normals made from them.
#pragma once

#include "../common/normal.h"
#include "isa.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace journey::cpu::JOURNEY_ISA {

constexpr int kDraws = 16;

struct Philox16 {
    uint32_t word[4][kDraws];  // 64 consecutive numbers of a slot() sequence when the indices are consecutive
};

#if defined(__AVX512F__) || defined(__AVX2__)

// A register of 64-bit lanes whose low halves are the words; what is left in the high halves is never read, because
// the widening multiply takes low halves only. Two multiplies, two shifts and four XORs a round.
#if defined(__AVX512F__)
using Wide = __m512i;
inline Wide load_wide(const uint32_t* p) {
    return _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_wide(uint32_t* p, Wide x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(x));
}
inline Wide fill_wide(uint32_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
inline Wide multiply_wide(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
inline Wide high_half(Wide x) { return _mm512_srli_epi64(x, 32); }
inline Wide xor_wide(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
#else
using Wide = __m256i;
inline Wide load_wide(const uint32_t* p) {
    return _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_wide(uint32_t* p, Wide x) {
    const __m256i low = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(low));
}
inline Wide fill_wide(uint32_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
inline Wide multiply_wide(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
inline Wide high_half(Wide x) { return _mm256_srli_epi64(x, 32); }
inline Wide xor_wide(Wide a, Wide b, Wide c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
#endif

// Philox of the sixteen counters in x.word: [0] low words of the indices, [1] high words, [2] minors, [3] stream.
inline void philox16(uint64_t key, Philox16& x) {
    constexpr int kWideLanes = static_cast<int>(sizeof(Wide) / 8), kParts = kDraws / kWideLanes;
    const Wide mul_a = fill_wide(kPhiloxMulA), mul_b = fill_wide(kPhiloxMulB);
    Wide word[4][kParts];
    for (int w = 0; w < 4; ++w)
        for (int i = 0; i < kParts; ++i) word[w][i] = load_wide(&x.word[w][i * kWideLanes]);

    uint32_t key_a = static_cast<uint32_t>(key), key_b = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const Wide round_a = fill_wide(key_a), round_b = fill_wide(key_b);
        for (int i = 0; i < kParts; ++i) {
            const Wide a = multiply_wide(word[0][i], mul_a), b = multiply_wide(word[2][i], mul_b);
            word[0][i] = xor_wide(high_half(b), word[1][i], round_a);
            word[2][i] = xor_wide(high_half(a), word[3][i], round_b);
            word[1][i] = b;
            word[3][i] = a;
        }
        key_a += kPhiloxWeylA, key_b += kPhiloxWeylB;
    }
    for (int w = 0; w < 4; ++w)
        for (int i = 0; i < kParts; ++i) store_wide(&x.word[w][i * kWideLanes], word[w][i]);
}

#else

// Philox of the sixteen counters in x.word: [0] low words of the indices, [1] high words, [2] minors, [3] stream.
inline void philox16(uint64_t key, Philox16& x) {
    for (int lane = 0; lane < kDraws; ++lane) {
        const Philox4 draw =
            philox4x32(key, Philox4{{x.word[0][lane], x.word[1][lane], x.word[2][lane], x.word[3][lane]}});
        for (int w = 0; w < 4; ++w) x.word[w][lane] = draw.word[w];
    }
}

#endif

// Draws with indices index, index + 1, ..., index + 15.
inline void philox16_indices(uint64_t key, uint64_t index, uint32_t minor, Stream stream, Philox16& x) {
    for (int lane = 0; lane < kDraws; ++lane) {
        const uint64_t i = index + static_cast<uint64_t>(lane);
        x.word[0][lane] = static_cast<uint32_t>(i);
        x.word[1][lane] = static_cast<uint32_t>(i >> 32);
        x.word[2][lane] = minor;
        x.word[3][lane] = stream;
    }
    philox16(key, x);
}

// Draws of one index with minors minor, minor + 1, ..., minor + 15.
inline void philox16_minors(uint64_t key, uint64_t index, uint32_t minor, Stream stream, Philox16& x) {
    for (int lane = 0; lane < kDraws; ++lane) {
        x.word[0][lane] = static_cast<uint32_t>(index);
        x.word[1][lane] = static_cast<uint32_t>(index >> 32);
        x.word[2][lane] = minor + static_cast<uint32_t>(lane);
        x.word[3][lane] = stream;
    }
    philox16(key, x);
}

// out[w * 16 + lane] = normal w of draw `lane`. Not inlined: on its own the loop vectorises, inside a caller it may
// not.
__attribute__((noinline)) inline void normals16(const Philox16& x, float* __restrict out) {
    for (int pair = 0; pair < 4; pair += 2) {
#pragma GCC ivdep
        for (int lane = 0; lane < kDraws; ++lane) {
            const Normal2 n = normal2(x.word[pair][lane], x.word[pair + 1][lane]);
            out[pair * kDraws + lane] = n.value[0];
            out[(pair + 1) * kDraws + lane] = n.value[1];
        }
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
