// Standard normals of one noise stream.
//
//     out[e] = normal slot(e).word of draw (key, slot(e).index, minor, noise stream)     common/normal.h
//
// Reference: journey/ops/reference.py::noise.
#include "philox_kernel.h"

namespace journey::cpu::JOURNEY_ISA {

constexpr int64_t kGroup = 64;  // normals from one Philox16

void philox_normal_row(uint64_t key, uint32_t minor, int64_t numel, float* out) {
    Philox16 draws;
    for (int64_t begin = 0; begin < numel; begin += kGroup) {
        philox16_indices(key, static_cast<uint64_t>(begin / kGroup * kDraws), minor, kStreamNoise, draws);
        if (begin + kGroup <= numel) {
            normals16(draws, out + begin);
        } else {
            float tail[kGroup];
            normals16(draws, tail);
            for (int64_t e = begin; e < numel; ++e) out[e] = tail[e - begin];
        }
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
