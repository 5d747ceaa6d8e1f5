// Philox4x32-10 counter-based generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011), for host and device.
//
// A draw is a pure function of (key, counter): every thread, block size, device and batch order that asks
// for the same entry gets the same bits. Everything random in the library comes from here.
//
//     counter = (index low word, index high word, minor, stream)
//
// `key` names what the numbers are for (a seed and a parameter or a sample, hashed to 64 bits by the
// caller), `index` and `minor` say which number, `stream` separates the uses below.
// Reference: journey/ops/reference.py::philox.
#pragma once

#include "host_device.h"

namespace journey {

enum Stream : uint32_t {
    kStreamSketchTile = 1,   // index = tile, minor = repetition
    kStreamSketchSign = 2,   // index = group of 64 chunks, minor = repetition
    kStreamDenseSign = 3,    // index = row d of the projection, minor = column / 128
    kStreamDenseNormal = 4,  // index = row d of the projection, minor = column group
    kStreamNoise = 5,        // index = group of elements, minor = draw
    kStreamTimestep = 6,     // index = draw, minor = attempt
};

constexpr uint32_t kPhiloxMulA = 0xD2511F53u, kPhiloxMulB = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeylA = 0x9E3779B9u, kPhiloxWeylB = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct Philox4 {
    uint32_t word[4];
};

JOURNEY_HOST_DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

JOURNEY_HOST_DEVICE Philox4 philox4x32(uint64_t key, Philox4 counter) {
    uint32_t key_a = static_cast<uint32_t>(key), key_b = static_cast<uint32_t>(key >> 32);
    Philox4 x = counter;
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint32_t hi_a = mul_hi(kPhiloxMulA, x.word[0]), lo_a = kPhiloxMulA * x.word[0];
        const uint32_t hi_b = mul_hi(kPhiloxMulB, x.word[2]), lo_b = kPhiloxMulB * x.word[2];
        x = Philox4{{hi_b ^ x.word[1] ^ key_a, lo_b, hi_a ^ x.word[3] ^ key_b, lo_a}};
        key_a += kPhiloxWeylA, key_b += kPhiloxWeylB;
    }
    return x;
}

JOURNEY_HOST_DEVICE Philox4 philox(uint64_t key, uint64_t index, uint32_t minor, Stream stream) {
    return philox4x32(key, Philox4{{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), minor, stream}});
}

// Where number `i` of a long sequence lives: 64 consecutive numbers share 16 counters of 4 words, ordered
// [word][counter], so that 16 SIMD lanes (or threads) produce 64 consecutive numbers with no transposition.
struct Slot {
    uint64_t index;
    int word;
};

JOURNEY_HOST_DEVICE Slot slot(uint64_t i) { return Slot{(i / 64) * 16 + i % 16, static_cast<int>((i % 64) / 16)}; }

// A uniform in (0, 1) with 24 significant bits: never 0 and never 1, exact in fp32.
JOURNEY_HOST_DEVICE float uniform(uint32_t word) {
    return mul_rn(add_rn(static_cast<float>(static_cast<int32_t>(word >> 9)), 0.5f), 1.0f / 8388608.0f);
}

}  // namespace journey
