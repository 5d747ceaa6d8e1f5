// Rows of 8 or 4 bits: what an entry and a row's scale are, with the same bits on every instruction set and device.
//
//     code = round(entry / scale), ties to even, between -largest and largest;  entry ~ code * scale
//
// Largest is 127 of 8 bits and 7 of 4. In 4 bits, 32 entries are 16 bytes: byte j holds entry j in its low four bits
// and entry 16 + j in its high ones, both in two's complement, so that a vector of bytes becomes two vectors of
// neighbours.
//
// A scale is the row's largest magnitude over `largest`, of 4 bits times one of 16 clips, cut to 17 significant bits.
// So code * scale is a float without rounding: what was unpacked packs to the same codes and the same scale. Scales
// below 2^-100, whose reciprocals would not all be floats, are zero, and so is the row.
//
// The clip is the one with the least sum of squared errors, ties to the larger. The sum is in float32: lane l of 32
// adds the entries 32 i + l in the order of i, then the lanes are folded in halves, l and l + 16, 8, 4, 2, 1.
#pragma once

#include "host_device.h"

namespace journey {

constexpr int kPackedBlock = 32;  // entries; a row is whole blocks
constexpr int kClips = 16;

JOURNEY_HOST_DEVICE constexpr float largest_code(int bits) { return bits == 8 ? 127.0f : 7.0f; }

// Clip `i` of the grid, from 1 down to 19/64.
JOURNEY_HOST_DEVICE float clip(int i) { return static_cast<float>(64 - 3 * i) / 64.0f; }

// Scale of a row whose entries are clipped at `limit`; 0 if it is too small, NaN if an entry is not finite.
JOURNEY_HOST_DEVICE float packed_scale(float limit, float largest) {
    constexpr uint32_t kInfinite = 0x7F800000u, kNaN = 0x7FC00000u, kKept = ~0x7Fu;
    if (float_bits(limit) >= kInfinite) return bits_float(kNaN);
    const float scale = bits_float(float_bits(div_rn(limit, largest)) & kKept);
    return scale < 0x1p-100f ? 0.0f : scale;
}

// Added to a float of small magnitude, it leaves the nearest integer in the low bits.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

JOURNEY_HOST_DEVICE float clamp_code(float x, float largest) {
    x = x < -largest ? -largest : x;
    return x > largest ? largest : x;
}

// Code of an entry in two's complement; the caller keeps as many bits as it wants.
JOURNEY_HOST_DEVICE uint32_t packed_code(float entry, float inverse, float largest) {
    return float_bits(add_rn(clamp_code(mul_rn(entry, inverse), largest), kRounder));
}

}  // namespace journey
