// Weight gradients of one sample, multiplied out in registers and added to its sketch; nothing of their size is stored.
//
//     W[row, col] = sum over positions p of g[row, p] * a[input of col at p]      col = (channel, kernel position)
//     sums[bucket(row, col)] += sign(row, col) * W[row, col]                      map: common/sketch_map.h
//
// FLOPs: 2 * positions * rows * cols, as the weight gradient of a training step has; bytes: a and g once, nothing of
// the gradient. Floor: the FMA rate. Positions are contracted in blocks of kOuterDepth. Per block, g is packed once (16
// rows interleaved per position), then a chunk of 32 columns at a time (32 lanes per position); a micro-tile of 8 rows
// by 32 columns is summed in registers and goes through the sketch's map into the sums, which stay in L1. A convolution
// is unfolded a chunk at a time, from the copied lines of unfold.h.
//
// Ladder: 3x3, 256 to 256 channels at 16x16, 8 samples, one thread, in times of one batched weight gradient of torch.
// One or two runs each on a busy machine, so that only the large steps are certain:
//   library call per sample into a tile, then the sketch of the tile                           1.4 - 1.7
//   products in registers, blocks of 256 positions, lines copied per block                     1.2 - 1.4
//   blocks of 128, packed buffers at cache lines                                               1.0 - 1.1
//   lines copied once per window, columns found step by step                                   1.0 - 1.1
// The last step showed at 1x1 and small images: 512 to 256 channels at 16x16, 1x1, from 1.6 to 1.1.
//
// Reference: journey/reference.py::sketch_outer.
#include "sketch_chunk.h"
#include "unfold.h"

namespace journey::cpu::JOURNEY_ISA {
namespace {

constexpr int kTileRows = 8;                            // of a micro-tile
constexpr int kPackedRows = 16;                         // of g, interleaved
constexpr int64_t kStripFloats = kOuterDepth + kWidth;  // one column's values, with room for a whole last vector

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

int64_t kernel_positions(const OuterArgs& args) { return args.kernel[0] * args.kernel[1] * args.kernel[2]; }

// Consecutive values in the copied input, `offset` after the column's first.
struct Piece {
    int64_t offset;
    int64_t count;
};

// Consecutive positions of g in one row of the batch.
struct Run {
    int64_t row;
    int64_t position;
    int64_t count;
};

template <typename input_t>
class Outer {
public:
    explicit Outer(const OuterRun& run)
        : run_(run),
          args_(*run.args),
          rows_(run.row_end - run.row_begin),
          cols_(args_.c_in / args_.conv_groups * kernel_positions(args_)),
          chunks_(num_chunks(cols_)),
          bucket_rows_(args_.proj_dim / kLanes),
          positions_(args_.out_size[0] * args_.out_size[1] * args_.out_size[2]),
          g_(static_cast<const input_t*>(args_.g)),
          g_limit_(g_ + args_.num_groups * args_.rows_per_group * args_.c_out * positions_) {
        packed_g_ = run.scratch;
        panel_ = packed_g_ + round_up(rows_, kPackedRows) * kOuterDepth;
        strips_ = panel_ + kOuterDepth * kLanes;
        copied_ = strips_ + kLanes * kStripFloats;
    }

    void run_linear() {
        const int64_t all = args_.rows_per_group * positions_;
        for (int64_t first = 0; first < all; first += kOuterDepth) {
            depth_ = smaller(kOuterDepth, all - first);
            const int64_t position = run_.group * all + first;
            pack_linear_g(position);
            for (int64_t chunk = run_.chunk_begin; chunk < run_.chunk_end; ++chunk) {
                pack_linear_panel(position, chunk);
                add_column(chunk);
            }
        }
    }

    void run_convolution() {
        const int64_t conv_group = run_.row_begin / (args_.c_out / args_.conv_groups);
        const int64_t group_channel = conv_group * (args_.c_in / args_.conv_groups);
        const int64_t first_channel = run_.chunk_begin * kLanes / kernel_positions(args_);
        const int64_t end_channel = (smaller(run_.chunk_end * kLanes, cols_) - 1) / kernel_positions(args_) + 1;
        Window<input_t> window(args_, run_.group, group_channel, first_channel, end_channel, copied_);
        while (window.next()) {
            int64_t segment = 0, line = 0, x = 0;
            while (collect(window, segment, line, x)) {
                pack_g();
                for (int64_t chunk = run_.chunk_begin; chunk < run_.chunk_end; ++chunk) {
                    pack_panel(window, chunk);
                    add_column(chunk);
                }
            }
        }
    }

private:
    // Fills a block with positions of the window from (segment, line, x) on; false when none are left.
    bool collect(const Window<input_t>& window, int64_t& segment, int64_t& line, int64_t& x) {
        const int64_t width = args_.out_size[2];
        depth_ = 0, num_pieces_ = 0, num_runs_ = 0, whole_vectors_ = true;
        while (segment < window.num_segments && depth_ < kOuterDepth) {
            const Segment& at = window.segments[segment];
            const int64_t count = smaller(width - x, kOuterDepth);
            if (depth_ + count > kOuterDepth) break;
            pieces_[num_pieces_++] = {window.offset(segment, line, x), count};
            whole_vectors_ = whole_vectors_ && count % kWidth == 0;
            const int64_t position = (at.z * args_.out_size[1] + at.y + line) * width + x;
            Run* last = num_runs_ ? &runs_[num_runs_ - 1] : nullptr;
            if (last && last->row == at.row && last->position + last->count == position)
                last->count += count;
            else
                runs_[num_runs_++] = {at.row, position, count};
            depth_ += count;
            if ((x += count) == width) x = 0, ++line;
            if (line == at.lines) line = 0, ++segment;
        }
        return depth_ > 0;
    }

    void pack_g() {
        bool whole = true;
        for (int64_t r = 0; r < num_runs_; ++r) whole = whole && runs_[r].count % kWidth == 0;
        for (int64_t block = 0; block < rows_; block += kPackedRows) {
            float* to = packed_g_ + block * kOuterDepth;
            if constexpr (sizeof(input_t) == sizeof(float)) {
                if (whole && block + kPackedRows <= rows_) {
                    pack_whole_g(block, to);
                    continue;
                }
            }
            for (int64_t i = 0; i < kPackedRows; ++i) {
                float* strip = strips_ + i * kStripFloats;
                if (block + i >= rows_) {
                    for (int64_t k = 0; k < depth_; ++k) strip[k] = 0.0f;
                    continue;
                }
                for (int64_t r = 0; r < num_runs_; ++r) {
                    copy_entries(g_of(runs_[r], block + i), g_limit_, runs_[r].count, strip);
                    strip += runs_[r].count;
                }
            }
            for (int64_t k = 0; k < depth_; k += kWidth)
                transpose16([&](int i) { return strips_ + i * kStripFloats + k; }, to + k * kPackedRows, kPackedRows);
        }
    }

    void pack_whole_g(int64_t block, float* to) {
        for (int64_t r = 0; r < num_runs_; ++r)
            for (int64_t k = 0; k < runs_[r].count; k += kWidth, to += kWidth * kPackedRows)
                transpose16([&](int i) { return g_of(runs_[r], block + i) + k; }, to, kPackedRows);
    }

    const input_t* g_of(const Run& run, int64_t row) const {
        return g_ + (run.row * args_.c_out + run_.row_begin + row) * positions_ + run.position;
    }

    void pack_panel(const Window<input_t>& window, int64_t chunk) {
        const int64_t num_columns = smaller(kLanes, cols_ - chunk * kLanes);
        const float* columns[kLanes];
        window.find_columns(chunk, cols_, columns);
        if (whole_vectors_ && num_columns == kLanes) {
            float* to = panel_;
            for (int64_t p = 0; p < num_pieces_; ++p)
                for (int64_t k = 0; k < pieces_[p].count; k += kWidth, to += kWidth * kLanes)
                    for (int half = 0; half < kLanes; half += kWidth)
                        transpose16(
                            [&](int i) { return columns[half + i] + pieces_[p].offset + k; }, to + half, kLanes);
            return;
        }
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            float* to = strips_ + lane * kStripFloats;
            if (lane >= num_columns) {
                for (int64_t k = 0; k < depth_; ++k) to[k] = 0.0f;
                continue;
            }
            for (int64_t p = 0; p < num_pieces_; ++p) {
                const float* from = columns[lane] + pieces_[p].offset;
                for (int64_t k = 0; k < pieces_[p].count; k += kWidth) store16(to + k, load16(from + k));
                to += pieces_[p].count;
            }
        }
        for (int64_t k = 0; k < depth_; k += kWidth)
            for (int half = 0; half < kLanes; half += kWidth)
                transpose16(
                    [&](int i) { return strips_ + (half + i) * kStripFloats + k; }, panel_ + k * kLanes + half, kLanes);
    }

    // Position by position, so that memory is read in its order: successive positions are pages apart.
    void pack_linear_g(int64_t position) {
        for (int64_t k = 0; k < depth_; ++k) {
            const input_t* from = g_ + (position + k) * args_.c_out + run_.row_begin;
            float* to = packed_g_ + k * kPackedRows;
            for (int64_t block = 0; block < rows_; block += kPackedRows, to += kPackedRows * kOuterDepth) {
                const int64_t count = smaller(kPackedRows, rows_ - block);
                copy_entries(from + block, g_limit_, count, to);
                for (int64_t i = count; i < kPackedRows; ++i) to[i] = 0.0f;
            }
        }
    }

    void pack_linear_panel(int64_t position, int64_t chunk) {
        const input_t* a = static_cast<const input_t*>(args_.a);
        const input_t* limit = a + args_.num_groups * args_.rows_per_group * positions_ * args_.c_in;
        const int64_t count = smaller(kLanes, cols_ - chunk * kLanes);
        const input_t* from = a + position * args_.c_in + chunk * kLanes;
        for (int64_t k = 0; k < depth_; ++k, from += args_.c_in) {
            // The next chunk of the same position, which no hardware prefetcher would expect.
            __builtin_prefetch(from + kLanes);
            __builtin_prefetch(from + kLanes + kWidth);
            copy_entries(from, limit, count, panel_ + k * kLanes);
            for (int64_t i = count; i < kLanes; ++i) panel_[k * kLanes + i] = 0.0f;
        }
    }

    // Multiplies the packed block of g with the packed chunk, and sketches the products.
    void add_column(int64_t chunk) {
        float product[kTileRows * kLanes];
        int64_t tile_row = 0, row_in_tile = run_.row_begin % bucket_rows_;
        for (int64_t first = 0; first < rows_; first += kTileRows) {
            const float* g = packed_g_ + first / kPackedRows * kPackedRows * kOuterDepth + first % kPackedRows;
            multiply(g, product);
            const int64_t count = smaller(kTileRows, rows_ - first);
            for (int64_t i = 0; i < count; ++i) {
                const uint32_t* signs = run_.signs + (first + i) * chunks_ + chunk;
                const Tile* tiles = run_.tiles + tile_row * chunks_ + chunk;
                for (int64_t repetition = 0; repetition < args_.nnz; ++repetition) {
                    int64_t bucket_row = row_in_tile + tiles->rotation;
                    if (bucket_row >= bucket_rows_) bucket_row -= bucket_rows_;
                    add_chunk(product + i * kLanes, *signs, tiles->lane_mask, run_.sums + bucket_row * kLanes);
                    signs += rows_ * chunks_;
                    tiles += run_.tile_rows * chunks_;
                }
                if (++row_in_tile == bucket_rows_) row_in_tile = 0, ++tile_row;
            }
        }
    }

#if defined(__AVX512F__)
    static constexpr int kMicroRows = 8, kMicroVectors = 2;  // 16 accumulators of 32 registers
#else
    static constexpr int kMicroRows = 4, kMicroVectors = 1;  // 8 of 16 registers, two to a vector
#endif

    // product[i][lane] = sum over positions of g[position][i] * panel[position][lane]
    void multiply(const float* g, float* product) const {
        for (int row = 0; row < kTileRows; row += kMicroRows)
            for (int lane = 0; lane < kLanes; lane += kMicroVectors * kWidth) {
                Vec16 sum[kMicroRows][kMicroVectors];
                for (int i = 0; i < kMicroRows; ++i)
                    for (int v = 0; v < kMicroVectors; ++v) sum[i][v] = zero16();
                const float *g_k = g + row, *a_k = panel_ + lane;
                for (int64_t k = 0; k < depth_; ++k, g_k += kPackedRows, a_k += kLanes) {
                    Vec16 a[kMicroVectors];
                    for (int v = 0; v < kMicroVectors; ++v) a[v] = load16(a_k + v * kWidth);
                    for (int i = 0; i < kMicroRows; ++i) {
                        const Vec16 wide = fill16(g_k[i]);
                        for (int v = 0; v < kMicroVectors; ++v) sum[i][v] = fma16(wide, a[v], sum[i][v]);
                    }
                }
                for (int i = 0; i < kMicroRows; ++i)
                    for (int v = 0; v < kMicroVectors; ++v)
                        store16(product + (row + i) * kLanes + lane + v * kWidth, sum[i][v]);
            }
    }

    const OuterRun& run_;
    const OuterArgs& args_;
    const int64_t rows_, cols_, chunks_, bucket_rows_, positions_;
    const input_t *g_, *g_limit_;
    float *packed_g_, *panel_, *strips_, *copied_;

    // The block at hand.
    int64_t depth_ = 0, num_pieces_ = 0, num_runs_ = 0;
    bool whole_vectors_ = false;  // every piece is a multiple of 16 long
    Piece pieces_[kOuterDepth];
    Run runs_[kOuterDepth];
};

template <typename input_t>
void run_typed(const OuterRun& run) {
    Outer<input_t> outer(run);
    return run.args->channels_last ? outer.run_linear() : outer.run_convolution();
}

}  // namespace

int64_t outer_scratch_floats(const OuterArgs& args, int64_t rows, int64_t chunks) {
    const int64_t channels = smaller(args.c_in / args.conv_groups, chunks * kLanes / kernel_positions(args) + 2);
    return round_up(rows, kPackedRows) * kOuterDepth + kOuterDepth * kLanes + kLanes * kStripFloats +
           (args.channels_last ? 0 : window_floats(args, channels));
}

void outer_run(const OuterRun& run) {
    switch (run.args->dtype) {
        case DType::kFloat32:
            return run_typed<float>(run);
        case DType::kFloat16:
            return run_typed<Half>(run);
        case DType::kBFloat16:
            return run_typed<BFloat>(run);
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
