// Rows of float32 in 8 or 4 bits with a scale for each, see common/packed.h for what they are.
//
// Floor: reading 4 * proj_dim bytes of each row, which then stays in L1 for the passes that follow. In 4 bits these are
// bound by arithmetic instead: nine operations on each entry for each of 16 clips.
//
// Reference: journey/ops/reference_packed.py::pack_rows.
#include "../common/packed.h"
#include "simd.h"

namespace journey::cpu::JOURNEY_ISA {
namespace {

// Magnitudes of floats are ordered as their bits are, infinity and NaN last.
float largest_magnitude(const float* __restrict__ row, int64_t count) {
    int32_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t magnitude = static_cast<int32_t>(float_bits(row[i]) & 0x7FFFFFFFu);
        most = most > magnitude ? most : magnitude;
    }
    return bits_float(static_cast<uint32_t>(most));
}

// Squared errors of a row in units of its scale, in the order of common/packed.h.
float squared_error(const float* row, int64_t count, float scale) {
    const Vec16 inverse = fill16(div_rn(1.0f, scale)), rounder = fill16(kRounder);
    const Vec16 low = fill16(-largest_code(4)), high = fill16(largest_code(4));
    const auto add = [&](Vec16 sum, const float* at) {
        const Vec16 exact = mul16(load16(at), inverse);
        const Vec16 code = sub16(add16(clamp16(exact, low, high), rounder), rounder);
        const Vec16 error = sub16(exact, code);
        return add16(sum, mul16(error, error));
    };
    Vec16 first = zero16(), second = zero16();
    for (int64_t i = 0; i < count; i += kPackedBlock) {
        first = add(first, row + i);
        second = add(second, row + i + 16);
    }
    float lanes[16];
    store16(lanes, add16(first, second));
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    return lanes[0];
}

float choose_scale(const float* row, int64_t count, float largest) {
    float best = packed_scale(largest, largest_code(4)), least = 0.0f;
    if (!(best > 0.0f)) return best;
    for (int i = 0; i < kClips; ++i) {
        const float scale = packed_scale(mul_rn(largest, clip(i)), largest_code(4));
        if (!(scale > 0.0f)) break;
        const float error = mul_rn(squared_error(row, count, scale), mul_rn(clip(i), clip(i)));
        if (i > 0 && !(error < least)) continue;
        least = error;
        best = scale;
    }
    return best;
}

void write_bytes(const float* __restrict__ row, int64_t count, float inverse, uint8_t* __restrict__ packed) {
    for (int64_t i = 0; i < count; ++i) packed[i] = static_cast<uint8_t>(packed_code(row[i], inverse, largest_code(8)));
}

void write_nibbles(const float* __restrict__ row, int64_t count, float inverse, uint8_t* __restrict__ packed) {
    for (int64_t i = 0; i < count; i += kPackedBlock, row += kPackedBlock, packed += kPackedBlock / 2)
        for (int j = 0; j < kPackedBlock / 2; ++j) {
            const uint32_t low = packed_code(row[j], inverse, largest_code(4)) & 15u;
            const uint32_t high = packed_code(row[j + kPackedBlock / 2], inverse, largest_code(4)) << 4;
            packed[j] = static_cast<uint8_t>(low | high);
        }
}

}  // namespace

void pack_rows(const PackRowsArgs& args, int64_t row_begin, int64_t row_end) {
    const int bits = static_cast<int>(args.bits);
    const int64_t row_bytes = args.proj_dim * bits / 8;
    for (int64_t i = row_begin; i < row_end; ++i) {
        const float* row = args.rows + i * args.rows_stride;
        uint8_t* packed = args.packed + i * row_bytes;
        const float largest = largest_magnitude(row, args.proj_dim);
        const float scale =
            bits == 8 ? packed_scale(largest, largest_code(8)) : choose_scale(row, args.proj_dim, largest);
        args.scales[i] = scale;
        if (!(scale > 0.0f)) {
            for (int64_t j = 0; j < row_bytes; ++j) packed[j] = 0;
            continue;
        }
        const float inverse = div_rn(1.0f, scale);
        bits == 8 ? write_bytes(row, args.proj_dim, inverse, packed)
                  : write_nibbles(row, args.proj_dim, inverse, packed);
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
