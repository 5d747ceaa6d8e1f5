// Block-rotation count sketch of consecutive chunks of gradient entries.
//
//     sums[bucket(row, col)] += sign(row, col) * matrix[row, col]            map: common/sketch_map.h
//
// The matrix is read once, in memory order; the sums (proj_dim floats) stay in L1 or L2. A chunk of 32 columns is two
// 16-lane vectors: flip signs by mask, permute lanes by XOR, add to one row of buckets. Floor: the time to read the
// gradient. Two samples side by side took the time of torch.dot over the same bytes from 0.78 - 0.88 of ours to 1.02 -
// 1.08, three sizes from 19 to 170 MB, three interleaved runs. Reference: journey/ops/reference.py::sketch.
#include "sketch_chunk.h"

namespace journey::cpu::JOURNEY_ISA {
namespace {

// Asks for the chunk that is read 4 KiB later: by itself the loop keeps too few loads in flight to hide the memory's
// latency. One sweep on one thread of a busy machine, best of 12, 151 MB in fp32, as a fraction of torch's sum: 0.66
// without, then 0.87, 0.86, 0.97, 0.93 at 1, 2, 4, 8 KiB. That any distance helps is plain; which is best is not.
constexpr int kPrefetchBytes = 4096;

template <typename input_t>
inline void prefetch_chunk(const input_t* entries) {
    const char* ahead = reinterpret_cast<const char*>(entries) + kPrefetchBytes;
    __builtin_prefetch(ahead);
    if (sizeof(input_t) == 4) __builtin_prefetch(ahead + 64);
}

// The last chunk of a row whose length is no multiple of 32: the missing lanes add zero.
template <typename input_t>
inline void add_partial_chunk(
    const input_t* entries, int64_t count, uint32_t signs, uint32_t lane_mask, float* bucket_row) {
    input_t padded[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = entries[i];
    add_chunk(padded, signs, lane_mask, bucket_row);
}

template <typename input_t, int kSamples>
void run_samples(const SketchTask& task) {
    const input_t* matrix = static_cast<const input_t*>(task.matrix);
    const int64_t chunks = num_chunks(task.cols), bucket_rows = task.proj_dim / kLanes;
    int64_t placed_block = -1, placed_begin = 0, placed_end = 0;
    int64_t sign_group = -1;
    Philox16 signs;

    for (int64_t q = task.chunk_begin; q < task.chunk_end;) {
        // One piece: consecutive chunks of one row.
        const int64_t row = q / chunks, first = q % chunks;
        int64_t count = chunks - first < task.chunk_end - q ? chunks - first : task.chunk_end - q;
        if (count > kPlacementCache) count = kPlacementCache;

        const int64_t parameter_row = task.row_begin + row;
        const int64_t block = parameter_row / bucket_rows, row_in_tile = parameter_row % bucket_rows;
        if (block != placed_block || first < placed_begin || first + count > placed_end) {
            fill_placements({task.key, task.repetition, block * chunks + first, count}, bucket_rows, task.placements);
            placed_block = block, placed_begin = first, placed_end = first + count;
        }

        const input_t* entries = matrix + row * task.cols + first * kLanes;
        const int64_t full = task.cols / kLanes - first;  // chunks from here on that have all 32 columns
        for (int64_t i = 0; i < count;) {
            // The chunks of this piece that share a group of sign words.
            const uint64_t chunk = static_cast<uint64_t>(parameter_row * chunks + first + i);
            const int64_t in_group = static_cast<int64_t>(chunk % kSignGroup);
            if (static_cast<int64_t>(chunk / kSignGroup) != sign_group) {
                sign_group = static_cast<int64_t>(chunk / kSignGroup);
                philox16_indices(
                    task.key, static_cast<uint64_t>(sign_group * kDraws), task.repetition, kStreamSketchSign, signs);
            }
            const uint32_t* words = &signs.word[0][0] + in_group;
            const Placement* placements = task.placements + (first - placed_begin + i);
            const int64_t together = count - i < kSignGroup - in_group ? count - i : kSignGroup - in_group;
            for (int64_t j = 0; j < together; ++j, entries += kLanes) {
                int64_t bucket_row = row_in_tile + placements[j].rotation;
                if (bucket_row >= bucket_rows) bucket_row -= bucket_rows;
                for (int sample = 0; sample < kSamples; ++sample) {
                    const input_t* from = entries + sample * task.matrix_stride;
                    float* target = task.sums + sample * task.sums_stride + bucket_row * kLanes;
                    prefetch_chunk(from);
                    if (i + j < full)
                        add_chunk(from, words[j], placements[j].lane_mask, target);
                    else
                        add_partial_chunk(from, task.cols % kLanes, words[j], placements[j].lane_mask, target);
                }
            }
            i += together;
        }
        q += count;
    }
}

template <typename input_t>
void run_typed(const SketchTask& task) {
    static_assert(kSketchSamples == 2, "one case for each number of samples");
    return task.samples == 2 ? run_samples<input_t, 2>(task) : run_samples<input_t, 1>(task);
}

}  // namespace

void run_sketch(const SketchTask& task) {
    switch (task.dtype) {
        case DType::kFloat32:
            return run_typed<float>(task);
        case DType::kFloat16:
            return run_typed<Half>(task);
        case DType::kBFloat16:
            return run_typed<BFloat>(task);
    }
}

// features += scale * sums, rounded once where there are FMAs, as torch adds a multiple.
void add_scaled(const float* sums, int64_t proj_dim, float scale, float* features) {
    constexpr int64_t kVector = 16;
    static_assert(kLanes % kVector == 0, "features are whole vectors");
    const Vec16 factor = fill16(scale);
    for (int64_t k = 0; k < proj_dim; k += kVector)
        store16(features + k, fma16(load16(sums + k), factor, load16(features + k)));
}

}  // namespace journey::cpu::JOURNEY_ISA
