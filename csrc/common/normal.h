// Two standard normals from two random words (Box and Muller, 1958), with the same bits on every device.
//
//     (n0, n1) = sqrt(-2 ln u) * (cos 2 pi v, sin 2 pi v)
//
// ln, cos and sin are polynomials in fp32 products and sums that are never contracted, and sqrt is correctly
// rounded on every target, so a CPU and a GPU agree to the last bit; no libm is involved. Branch-free, so a
// loop over it vectorises. Absolute error against float64 on the same words: below 4e-6 (checked in the tests).
// Reference: journey/ops/reference.py::normal.
#pragma once

#include "philox.h"

#ifndef __CUDA_ARCH__
#include <cmath>
#endif

namespace journey {

struct Normal2 {
    float value[2];
};

// c[0] + c[1] x + c[2] x^2 + ... by Horner's rule.
template <int kTerms>
JOURNEY_HOST_DEVICE float polynomial(const float (&c)[kTerms], float x) {
    float sum = c[kTerms - 1];
    for (int i = kTerms - 2; i >= 0; --i) sum = add_rn(mul_rn(sum, x), c[i]);
    return sum;
}

// ln(u) for u in (0, 1).
JOURNEY_HOST_DEVICE float log_unit(float u) {
    // Minimax coefficients of (ln(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1] (Cephes logf).
    constexpr float kLog[9] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,
                               -1.6668057665e-1f, 1.4249322787e-1f,  -1.2420140846e-1f,
                               1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
    constexpr uint32_t kSqrtHalfBits = 0x3F3504F3u;

    // Split u = m * 2^e with m in [sqrt(1/2), sqrt(2)): shift the bits so that sqrt(1/2) starts an octave.
    const uint32_t shifted = float_bits(u) - kSqrtHalfBits;
    const int32_t e = static_cast<int32_t>(shifted) >> 23;
    const float m = bits_float(float_bits(u) - (static_cast<uint32_t>(e) << 23));
    const float f = add_rn(m, -1.0f);
    const float f2 = mul_rn(f, f);
    const float tail = add_rn(mul_rn(mul_rn(f2, f), polynomial(kLog, f)), mul_rn(f2, -0.5f));
    // ln 2 in two parts: the high part times e is exact.
    const float ef = static_cast<float>(e);
    return add_rn(add_rn(mul_rn(ef, 0.693359375f), f), add_rn(mul_rn(ef, -2.12194440e-4f), tail));
}

JOURNEY_HOST_DEVICE Normal2 normal2(uint32_t word_u, uint32_t word_v) {
    // sin(x) / x and cos(x) on [-pi/4, pi/4] as polynomials in x^2 (Cephes sinf, cosf).
    constexpr float kSin[4] = {1.0f, -1.6666654611e-1f, 8.3321608736e-3f, -1.9515295891e-4f};
    constexpr float kCos[5] = {1.0f, -0.5f, 4.166664568298827e-2f, -1.388731625493765e-3f, 2.443315711809948e-5f};

    const float squared = mul_rn(-2.0f, log_unit(uniform(word_u)));
#ifdef __CUDA_ARCH__
    const float radius = __fsqrt_rn(squared);
#else
    const float radius = std::sqrt(squared);
#endif
    // The top two bits choose the quadrant, the next 23 the angle inside it, centred on zero.
    const float angle = mul_rn(add_rn(uniform(word_v << 2), -0.5f), 1.57079632679f);
    const float angle2 = mul_rn(angle, angle);
    const float s = mul_rn(angle, polynomial(kSin, angle2));
    const float c = polynomial(kCos, angle2);
    // Quarter turns: (c, s) -> (-s, c) -> (-c, -s) -> (s, -c).
    const bool odd = (word_v >> 30) & 1u;
    const uint32_t flip_x = (((word_v >> 31) ^ (word_v >> 30)) & 1u) << 31;
    const uint32_t flip_y = (word_v >> 31) << 31;
    const float x = bits_float(float_bits(odd ? s : c) ^ flip_x);
    const float y = bits_float(float_bits(odd ? c : s) ^ flip_y);
    return Normal2{{mul_rn(radius, x), mul_rn(radius, y)}};
}

}  // namespace journey
