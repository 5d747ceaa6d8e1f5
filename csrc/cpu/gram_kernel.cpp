// Upper triangle of the Gram matrix of the columns of the features, in float64.
//
//     gram[i, j] += sum over s of features[s, i] * features[s, j]      i <= j
//
// FLOPs: num_samples * proj_dim * (proj_dim + 1), half of what the full product takes. Floor: the rate of float64
// FMAs, and with few samples reading and writing the matrix. The features are converted once, into panels of 24 columns
// that serve as rows and as columns of the product. The sums of a tile of the matrix stay in L2 while its samples pass
// by in blocks; a micro-tile of some rows by one panel is summed in registers. Products of two numbers of 24 bits are
// exact in float64 and an entry is summed in the order of its samples, so all instruction sets and numbers of threads
// give the same bits.
//
// Ladder: 512 x 4096 from float32, two threads, in times as fast as torch's features.double().T @ features.double().
// Medians of interleaved runs on a machine whose neighbours share its memory, so that a tenth means little:
//   matrix products of the library by panels of 512 columns                                     1.4 - 1.5
//   micro-tiles of 8 by 24, tiles of 192 columns, blocks of 128 samples added to the matrix     1.6 - 1.9
//   loop unrolled, the matrix's lines asked for before the products, blocks of 256              1.7 - 1.8
//   sums of a tile kept apart from the matrix, whose rows share cache sets, 288 columns, next panel asked for  1.7
//   - 1.9
// The last step showed at 2048 x 4096, where the tile alone was 1.2 times as fast: from 1.3 to 1.6. 64 x 4096 is
// at 2.1.
//
// Reference: journey/ops/reference.py::gram.
#include "simd.h"

namespace journey::cpu::JOURNEY_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kMicroRows = 8, kMicroVectors = 3;  // 24 accumulators of 32 registers
#else
constexpr int kMicroRows = 6, kMicroVectors = 2;  // 12 accumulators of 16 registers
#endif
constexpr int kMicroColumns = kMicroVectors * kDoubles;
static_assert(kGramPanel % kMicroRows == 0 && kGramPanel % kMicroColumns == 0, "a panel is whole micro-tiles");

// Samples of a block: a panel fills half of a 48 KiB L1 cache.
constexpr int64_t kDepth = 128;

// Cache lines of the next panel that each micro-tile asks for, so that all of them have come when its turn does: no
// prefetcher looks beyond a page of memory, and a panel is many.
constexpr int64_t kLineDoubles = 8;
constexpr int64_t kMicroTiles = kGramSide * (kGramPanel / kMicroRows) * (kGramPanel / kMicroColumns);
constexpr int64_t kAheadLines = (kDepth * kGramPanel / kLineDoubles + kMicroTiles - 1) / kMicroTiles;

using Sums = VecD[kMicroRows][kMicroVectors];

// sums[i][j] += sum over samples of a[sample][i] * b[sample][j]
inline void multiply(const double* a, const double* b, int64_t depth, Sums& sums) {
#pragma GCC unroll 4
    for (int64_t s = 0; s < depth; ++s, a += kGramPanel, b += kGramPanel) {
        VecD right[kMicroVectors];
        for (int v = 0; v < kMicroVectors; ++v) right[v] = load_d(b + v * kDoubles);
        for (int i = 0; i < kMicroRows; ++i) {
            const VecD left = fill_d(a[i]);
            for (int v = 0; v < kMicroVectors; ++v) sums[i][v] = fma_d(left, right[v], sums[i][v]);
        }
    }
}

// The place of a micro-tile in the matrix.
struct Place {
    double* gram;  // its first entry
    int64_t stride;
    int64_t row;
    int64_t column;
    int64_t proj_dim;

    bool whole() const { return row + kMicroRows - 1 <= column && column + kMicroColumns <= proj_dim; }

    // Its rows are pages apart and may be in no cache.
    void prefetch() const {
        for (int i = 0; i < kMicroRows && row + i < proj_dim; ++i)
            for (int j = 0; j < kMicroColumns; j += kLineDoubles) __builtin_prefetch(gram + i * stride + j, 1);
    }

    void add(const Sums& sums) const {
        for (int i = 0; i < kMicroRows; ++i)
            for (int v = 0; v < kMicroVectors; ++v) {
                double* to = gram + i * stride + v * kDoubles;
                store_d(to, add_d(load_d(to), sums[i][v]));
            }
    }

    // Entries on and above the diagonal and inside the matrix.
    void add_part(const Sums& sums) const {
        for (int i = 0; i < kMicroRows && row + i < proj_dim; ++i) {
            double total[kMicroColumns];
            for (int v = 0; v < kMicroVectors; ++v) store_d(total + v * kDoubles, sums[i][v]);
            for (int j = 0; j < kMicroColumns && column + j < proj_dim; ++j)
                if (row + i <= column + j) gram[i * stride + j] += total[j];
        }
    }
};

// One block of samples of a micro-tile: the first begins with zeros, the last adds the sums to the matrix.
void add_block(
    const double* a, const double* b, int64_t depth, bool first, bool last, const Place& place, double* kept) {
    if (last) place.prefetch();
    Sums sums;
    for (int i = 0; i < kMicroRows; ++i)
        for (int v = 0; v < kMicroVectors; ++v)
            sums[i][v] = first ? zero_d() : load_d(kept + i * kMicroColumns + v * kDoubles);
    multiply(a, b, depth, sums);
    if (last) return place.whole() ? place.add(sums) : place.add_part(sums);
    for (int i = 0; i < kMicroRows; ++i)
        for (int v = 0; v < kMicroVectors; ++v) store_d(kept + i * kMicroColumns + v * kDoubles, sums[i][v]);
}

template <typename input_t>
void pack_typed(const GramArgs& args, int64_t panel_begin, int64_t panel_end, double* packed) {
    const input_t* features = static_cast<const input_t*>(args.features);
    constexpr int64_t kStep = 2 * kGramPanel;
    constexpr int64_t kTogether = 8;  // samples: both what is read and what is written may be pages apart
    for (int64_t first = 0; first < args.num_samples; first += kTogether) {
        const int64_t end = first + kTogether < args.num_samples ? first + kTogether : args.num_samples;
        for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
            const int64_t column = panel * kGramPanel;
            const int64_t left = args.proj_dim - column;
            for (int64_t s = first; s < end; ++s) {
                const input_t* from = features + s * args.features_stride + column;
                input_t padded[kStep] = {};
                if (left < kStep) {
                    for (int64_t i = 0; i < left; ++i) padded[i] = from[i];
                    from = padded;
                }
                float row[kStep];
                for (int64_t i = 0; i < kStep; i += 16) store16(row + i, load_input16(from + i));
                for (int64_t p = 0; p < 2 && panel + p < panel_end; ++p) {
                    double* to = packed + ((panel + p) * args.num_samples + s) * kGramPanel;
                    for (int64_t i = 0; i < kGramPanel; ++i) to[i] = static_cast<double>(row[p * kGramPanel + i]);
                }
            }
        }
    }
}

}  // namespace

void gram_pack(const GramArgs& args, int64_t panel_begin, int64_t panel_end, double* packed) {
    switch (args.dtype) {
        case DType::kFloat32:
            return pack_typed<float>(args, panel_begin, panel_end, packed);
        case DType::kFloat16:
            return pack_typed<Half>(args, panel_begin, panel_end, packed);
        case DType::kBFloat16:
            return pack_typed<BFloat>(args, panel_begin, panel_end, packed);
    }
}

void gram_tile(const GramTile& tile) {
    const GramArgs& args = *tile.args;
    const int64_t panel_doubles = args.num_samples * kGramPanel;
    for (int64_t s = 0; s < args.num_samples; s += kDepth) {
        const int64_t depth = args.num_samples - s < kDepth ? args.num_samples - s : kDepth;
        const double* block = tile.packed + s * kGramPanel;
        double* kept = tile.sums;
        for (int64_t panel = tile.column_begin; panel < tile.column_end; ++panel) {
            const double* b = block + panel * panel_doubles;
            const double* ahead = b + panel_doubles;
            const int64_t rows_end = tile.row_end < panel + 1 ? tile.row_end : panel + 1;
            for (int64_t column = 0; column < kGramPanel; column += kMicroColumns)
                for (int64_t row = tile.row_begin * kGramPanel; row < rows_end * kGramPanel; row += kMicroRows) {
                    Place place{nullptr, args.gram_stride, row, panel * kGramPanel + column, args.proj_dim};
                    if (row >= place.column + kMicroColumns) break;
                    place.gram = args.gram + row * args.gram_stride + place.column;
                    const double* a = block + row / kGramPanel * panel_doubles + row % kGramPanel;
                    for (int64_t line = 0; line < kAheadLines; ++line, ahead += kLineDoubles) __builtin_prefetch(ahead);
                    add_block(a, b + column, depth, s == 0, s + depth == args.num_samples, place, kept);
                    kept += kMicroRows * kMicroColumns;
                }
        }
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
