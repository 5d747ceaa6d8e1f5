// The map of the block-rotation count sketch: which bucket and which sign each gradient entry gets.
//
// A parameter is a matrix [rows, cols], its first dimension by the rest; columns of a convolution's weight are (kernel
// position, channel), so that neighbours are channels. It is cut into tiles of R = proj_dim / 32 rows by 32 columns: a
// tile has as many entries as the sketch has buckets. Tile t rotates its rows and XORs its lanes, so two entries of one
// tile never collide and entries of different tiles collide with probability 1 / proj_dim:
//
//     bucket = ((row mod R + rotation_t) mod R) * 32 + ((col mod 32) XOR lane_mask_t)        value * (+1 or -1)
//
// Nothing is stored; host and device compute the same map. Reference: journey/ops/reference.py::sketch_map.
#pragma once

#include "philox.h"

namespace journey {

constexpr int kLanes = 32;  // columns of a tile: one sign word, two AVX-512 vectors, one warp

// Where the map puts one tile among the buckets.
struct Placement {
    uint32_t rotation;   // in [0, R)
    uint32_t lane_mask;  // in [0, 32)
};

JOURNEY_HOST_DEVICE int64_t num_chunks(int64_t cols) { return (cols + kLanes - 1) / kLanes; }

JOURNEY_HOST_DEVICE Placement placement_from_words(uint32_t word_rotation, uint32_t word_lanes, int64_t bucket_rows) {
    const uint64_t scaled = static_cast<uint64_t>(word_rotation) * static_cast<uint64_t>(bucket_rows);
    return Placement{static_cast<uint32_t>(scaled >> 32), word_lanes % kLanes};
}

// `tile` counts row blocks first: (row / R) * num_chunks(cols) + col / 32.
JOURNEY_HOST_DEVICE Placement sketch_placement(uint64_t key, uint32_t repetition, int64_t tile, int64_t bucket_rows) {
    const Philox4 draw = philox(key, static_cast<uint64_t>(tile), repetition, kStreamSketchTile);
    return placement_from_words(draw.word[0], draw.word[1], bucket_rows);
}

// Signs of the 32 lanes of one chunk, lane i in bit i, a set bit is a minus.
// `chunk` counts along the rows: row * num_chunks(cols) + col / 32.
JOURNEY_HOST_DEVICE uint32_t sketch_signs(uint64_t key, uint32_t repetition, int64_t chunk) {
    const Slot at = slot(static_cast<uint64_t>(chunk));
    const Philox4 draw = philox(key, at.index, repetition, kStreamSketchSign);
    // Selected, not indexed: a word at a run-time index would put the draw in memory on a GPU.
    const uint32_t low = at.word & 1 ? draw.word[1] : draw.word[0], high = at.word & 1 ? draw.word[3] : draw.word[2];
    return at.word & 2 ? high : low;
}

struct Bucket {
    int64_t index;  // in [0, proj_dim)
    bool negative;
};

// The whole map of one entry, for tests and for kernels that are not in a hurry.
JOURNEY_HOST_DEVICE Bucket
sketch_bucket(uint64_t key, uint32_t repetition, int64_t row, int64_t col, int64_t cols, int64_t proj_dim) {
    const int64_t bucket_rows = proj_dim / kLanes;
    const int64_t chunk = col / kLanes, chunks = num_chunks(cols);
    const int lane = static_cast<int>(col % kLanes);
    const Placement placement = sketch_placement(key, repetition, (row / bucket_rows) * chunks + chunk, bucket_rows);
    const int64_t bucket_row = (row % bucket_rows + placement.rotation) % bucket_rows;
    const uint32_t signs = sketch_signs(key, repetition, row * chunks + chunk);
    return Bucket{bucket_row * kLanes + (lane ^ static_cast<int>(placement.lane_mask)), ((signs >> lane) & 1u) != 0u};
}

}  // namespace journey
