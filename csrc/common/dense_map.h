// Entries of the dense random projections, as pure functions of (key, row d, column k).
//
// Neither the number of columns nor the batch enters, so the first k columns are the same for every proj_dim.
// Reference: journey/ops/reference.py::rademacher_matrix, normal_matrix.
#pragma once

#include "normal.h"

namespace journey {

// One draw gives the signs of 128 columns of a row: column k is bit k % 32 of word (k % 128) / 32, set = minus.
constexpr int kSignColumns = 128;

JOURNEY_HOST_DEVICE Philox4 dense_signs(uint64_t key, int64_t d, int64_t column_block) {
    return philox(key, static_cast<uint64_t>(d), static_cast<uint32_t>(column_block), kStreamDenseSign);
}

// One draw gives four normals of a row: words 0..3 of counter (k / 64) * 16 + k % 16 are columns k % 16 + 16 word.
constexpr int kNormalColumns = 64;

struct Normal4 {
    float value[4];
};

JOURNEY_HOST_DEVICE Normal4 dense_normals(uint64_t key, int64_t d, uint32_t counter) {
    const Philox4 draw = philox(key, static_cast<uint64_t>(d), counter, kStreamDenseNormal);
    const Normal2 a = normal2(draw.word[0], draw.word[1]), b = normal2(draw.word[2], draw.word[3]);
    return Normal4{{a.value[0], a.value[1], b.value[0], b.value[1]}};
}

}  // namespace journey
