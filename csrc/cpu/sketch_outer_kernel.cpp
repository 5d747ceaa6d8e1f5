// Weight gradients of one sample, multiplied out in registers and added to its sketch; nothing of their size is stored.
//
//     W[row, col] = sum over positions p of g[row, p] * a[input of col at p]      col = (kernel position, channel)
//     sums[bucket(row, col)] += sign(row, col) * W[row, col]                      map: common/sketch_map.h
//
// FLOPs: 2 * positions * rows * cols, as the weight gradient of a training step has; bytes: a and g once, nothing of
// the gradient. Floor: the rate of products, of the FMA units or, for bfloat16, of the matrix unit. Positions are
// contracted in blocks. Per block, g is packed once, then a chunk of 32 columns at a time; a tile of some rows by 32
// columns is summed in registers and goes through the sketch's map into the sums, which stay in L1. A convolution is
// unfolded a chunk at a time, from the copied lines of unfold.h. How a block is packed and multiplied:
// sketch_outer_fma.h and sketch_outer_amx.h.
//
// Ladder: 3x3, 256 to 256 channels at 16x16, 8 samples, one thread, in times of one batched weight gradient of torch.
// One or two runs each on a busy machine, so that only the large steps are certain:
//   library call per sample into a tile, then the sketch of the tile                           1.4 - 1.7
//   products in registers, blocks of 256 positions, lines copied per block                     1.2 - 1.4
//   blocks of 128, packed buffers at cache lines                                               1.0 - 1.1
//   lines copied once per window, columns found step by step                                   1.0 - 1.1
// The last step showed at 1x1 and small images: 512 to 256 channels at 16x16, 1x1, from 1.6 to 1.1.
// bfloat16, 4 draws, in GFLOP/s, beside 534 of torch's batched weight gradient (100 in float32): 90 widened to float32,
// 577 by the matrix unit; at 4x4 106 and 247 (torch 107), linear 1152 to 1152 127 and 560 (torch 493). Blocks of 256
// and 1024 positions were no better than 512 on the whole, one run each.
//
// Layers of one position per sample, 1152 to 6912, 8 samples, two threads: 3.8 by packing and blocks, 2.5 with products
// formed as they are sketched; of 4 draws 3.3 and 2.2. Eight gradients are sketched there for one that torch computes.
//
// Reference: journey/ops/reference.py::sketch_outer.
#include <type_traits>

#include "sketch_chunk.h"
#include "sketch_outer_fma.h"
#ifdef __AMX_BF16__
#include "sketch_outer_amx.h"
#endif

namespace journey::cpu::JOURNEY_ISA {
namespace {

// Consecutive values in the copied input, `offset` after the column's first.
struct Piece {
    int64_t offset;
    int64_t count;
};

// Consecutive positions of g in one row of the batch.
struct PositionRun {
    int64_t row;
    int64_t position;
    int64_t count;
};

// Adds rows of a weight gradient, of kDepth positions and 32 columns, to as many rows of buckets.
template <int kDepth>
void add_products(
    const float* g,  // [kDepth, stride], `count` rows of them
    int64_t stride,
    const float* columns,  // [kDepth, 32]
    int64_t count,
    const uint32_t* signs,
    uint32_t lane_mask,
    float* bucket_row) {
    const Permutation permutation = lane_xor(lane_mask & 15u);
    float *first = first_half(bucket_row, lane_mask), *second = second_half(bucket_row, lane_mask);
    Vec16 left[kDepth], right[kDepth];
    for (int k = 0; k < kDepth; ++k) {
        left[k] = load16(columns + k * kLanes);
        right[k] = load16(columns + k * kLanes + kHalf);
    }
    for (int64_t i = 0; i < count; ++i, first += kLanes, second += kLanes) {
        Vec16 a = zero16(), b = zero16();
        for (int k = 0; k < kDepth; ++k) {
            const Vec16 wide = fill16(g[k * stride + i]);
            a = fma16(wide, left[k], a);
            b = fma16(wide, right[k], b);
        }
        add_columns(a, b, signs[i], permutation, first, second);
    }
}

using add_products_t = void (*)(const float*, int64_t, const float*, int64_t, const uint32_t*, uint32_t, float*);
constexpr add_products_t kAddProducts[] = {add_products<1>, add_products<2>, add_products<3>, add_products<4>,
                                           add_products<5>, add_products<6>, add_products<7>, add_products<8>};
// Positions of a group up to which packing and a pass through memory would cost more than they save.
constexpr int64_t kShallow = sizeof(kAddProducts) / sizeof(add_products_t);

// The scratch of a task of `rows` rows and `chunks` chunks: packed g, the panel, strips and the copied input of a
// convolution, one after the other. Places are in values of what Ops multiplies.
template <typename Ops>
struct ScratchLayout {
    using Value = typename Ops::Value;
    static constexpr int64_t kWordValues = sizeof(float) / sizeof(Value);  // that move as one float
    static constexpr int64_t kVectorValues = kWidth * kWordValues;         // of a vector of 16 floats
    static constexpr int64_t kStripValues = Ops::kDepth + kVectorValues;   // of a strip, with room for a whole vector

    ScratchLayout(const SketchOuterArgs& args, int64_t rows, int64_t chunks)
        : panel(Ops::g_values(rows)), strips(panel + kLanes * Ops::kDepth), copied(strips + kLanes * kStripValues) {
        end = copied + (args.channels_last ? 0 : window_values(args, ColumnPlan(args).most_channels(chunks)));
    }

    int64_t floats() const { return (end + kWordValues - 1) / kWordValues; }

    int64_t panel, strips, copied, end;  // packed g is first
};

// Ops: how blocks are packed and multiplied, Fma or Amx.
template <typename input_t, typename Ops>
class SketchOuter {
    using Layout = ScratchLayout<Ops>;
    using Value = typename Layout::Value;
    static constexpr int64_t kVectorValues = Layout::kVectorValues, kStripValues = Layout::kStripValues;

public:
    explicit SketchOuter(const SketchOuterTask& task)
        : task_(task),
          args_(*task.args),
          rows_(task.row_end - task.row_begin),
          columns_(args_),
          bucket_rows_(args_.proj_dim / kLanes),
          positions_(args_.out_size[0] * args_.out_size[1] * args_.out_size[2]),
          g_(static_cast<const input_t*>(args_.g)),
          g_limit_(g_ + args_.num_groups * args_.rows_per_group * args_.c_out * positions_) {
        const Layout layout(args_, rows_, task.step_end - task.step_begin);
        packed_g_ = reinterpret_cast<Value*>(task.scratch);
        panel_ = packed_g_ + layout.panel;
        strips_ = packed_g_ + layout.strips;
        copied_ = packed_g_ + layout.copied;
    }

    void run_linear() {
        const int64_t all = args_.rows_per_group * positions_, end = (task_.group + 1) * all;
        if (all <= kShallow) return run_shallow(all);
        const input_t* a = static_cast<const input_t*>(args_.a);
        const input_t* a_limit = a + args_.num_groups * all * args_.c_in;
        for (int64_t position = task_.group * all; position < end; position += Ops::kDepth) {
            depth_ = smaller(Ops::kDepth, end - position);
            const input_t* g = g_ + position * args_.c_out + task_.row_begin;
            Ops::pack_linear_g(g, g_limit_, args_.c_out, depth_, rows_, packed_g_);
            for (int64_t chunk = task_.step_begin; chunk < task_.step_end; ++chunk) {
                const int64_t count = smaller(kLanes, columns_.cols - chunk * kLanes);
                const input_t* from = a + position * args_.c_in + chunk * kLanes;
                Ops::pack_linear_panel(from, a_limit, args_.c_in, depth_, count, panel_);
                add_column(chunk, chunk);
            }
        }
    }

    void run_convolution() {
        const int64_t conv_group = task_.row_begin / (args_.c_out / args_.conv_groups);
        const int64_t group_channel = conv_group * (args_.c_in / args_.conv_groups);
        const int64_t first_channel = columns_.first_channel(task_.step_begin);
        const int64_t end_channel = columns_.end_channel(task_.step_end);
        Window<input_t, Value> window(args_, task_.group, group_channel, first_channel, end_channel, copied_);
        while (window.next()) {
            int64_t segment = 0, line = 0, x = 0;
            while (collect(window, segment, line, x)) {
                pack_g();
                for (int64_t step = task_.step_begin; step < task_.step_end; ++step) {
                    pack_panel(window, columns_.chunk_at(step));
                    add_column(step, columns_.chunk_at(step));
                }
            }
        }
    }

private:
    // A linear layer with a few positions to a group, as those of time embeddings: products are formed as they are
    // sketched, in float32 whatever the type.
    void run_shallow(int64_t depth) {
        const input_t* g = g_ + task_.group * depth * args_.c_out + task_.row_begin;
        const input_t* a = static_cast<const input_t*>(args_.a) + task_.group * depth * args_.c_in;
        const input_t* a_limit = a + (args_.num_groups - task_.group) * depth * args_.c_in;
        float *g_rows = reinterpret_cast<float*>(packed_g_), *columns = reinterpret_cast<float*>(panel_);
        const int64_t stride = (rows_ + kWidth - 1) / kWidth * kWidth;
        for (int64_t k = 0; k < depth; ++k) copy_entries(g + k * args_.c_out, g_limit_, rows_, g_rows + k * stride);
        for (int64_t chunk = task_.step_begin; chunk < task_.step_end; ++chunk) {
            const int64_t num_columns = smaller(kLanes, columns_.cols - chunk * kLanes);
            for (int64_t k = 0; k < depth; ++k) {
                copy_entries(a + k * args_.c_in + chunk * kLanes, a_limit, num_columns, columns + k * kLanes);
                for (int64_t i = num_columns; i < kLanes; ++i) columns[k * kLanes + i] = 0.0f;
            }
            Walk walk = first_row();
            const auto add = [&](int64_t row, int64_t count, const uint32_t* signs, uint32_t lane_mask, float* to) {
                kAddProducts[depth - 1](g_rows + row, stride, columns, count, signs, lane_mask, to);
            };
            place_rows(chunk, chunk, 0, rows_, walk, add);
        }
    }

    // Fills a block with positions of the window from (segment, line, x) on; false when none are left.
    bool collect(const Window<input_t, Value>& window, int64_t& segment, int64_t& line, int64_t& x) {
        const int64_t width = args_.out_size[2];
        depth_ = 0, num_pieces_ = 0, num_runs_ = 0, whole_vectors_ = true;
        while (segment < window.num_segments && depth_ < Ops::kDepth) {
            const Segment& at = window.segments[segment];
            const int64_t count = smaller(width - x, Ops::kDepth);
            if (depth_ + count > Ops::kDepth) break;
            pieces_[num_pieces_++] = {window.offset(segment, line, x), count};
            whole_vectors_ = whole_vectors_ && count % kVectorValues == 0;
            const int64_t position = (at.z * args_.out_size[1] + at.y + line) * width + x;
            PositionRun* last = num_runs_ ? &runs_[num_runs_ - 1] : nullptr;
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
        for (int64_t r = 0; r < num_runs_; ++r) whole = whole && runs_[r].count % kVectorValues == 0;
        for (int64_t block = 0; block < Ops::packed_rows(rows_); block += kWidth) {
            if constexpr (std::is_same_v<input_t, Value>) {
                if (whole && block + kWidth <= rows_) {
                    pack_whole_g(block);
                    continue;
                }
            }
            for (int64_t i = 0; i < kWidth; ++i) {
                Value* strip = strips_ + i * kStripValues;
                Value* end = strip + Ops::padded(depth_);
                for (int64_t r = 0; r < num_runs_ && block + i < rows_; ++r) {
                    copy_entries(g_of(runs_[r], block + i), g_limit_, runs_[r].count, strip);
                    strip += runs_[r].count;
                }
                while (strip < end) *strip++ = Value{};
            }
            for (int64_t k = 0; k < depth_; k += kVectorValues)
                Ops::put_rows([&](int i) { return strips_ + i * kStripValues + k; }, block, k, packed_g_);
        }
    }

    void pack_whole_g(int64_t block) {
        int64_t position = 0;
        for (int64_t r = 0; r < num_runs_; ++r)
            for (int64_t k = 0; k < runs_[r].count; k += kVectorValues, position += kVectorValues)
                Ops::put_rows([&](int i) { return g_of(runs_[r], block + i) + k; }, block, position, packed_g_);
    }

    const input_t* g_of(const PositionRun& run, int64_t row) const {
        return g_ + (run.row * args_.c_out + task_.row_begin + row) * positions_ + run.position;
    }

    void pack_panel(const Window<input_t, Value>& window, int64_t chunk) {
        const int64_t num_columns = smaller(kLanes, columns_.cols - chunk * kLanes);
        const Value* columns[kLanes];
        window.find_columns(chunk, columns_.cols, columns);
        if (whole_vectors_ && num_columns == kLanes) {
            Value* to = panel_;
            for (int64_t p = 0; p < num_pieces_; ++p)
                for (int64_t k = 0; k < pieces_[p].count; k += kVectorValues, to += kVectorValues * kLanes)
                    transpose_chunk([&](int64_t lane) { return columns[lane] + pieces_[p].offset + k; }, to);
            return;
        }
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            Value* to = strips_ + lane * kStripValues;
            Value* end = to + Ops::padded(depth_);
            for (int64_t p = 0; p < num_pieces_ && lane < num_columns; ++p) {
                const Value* from = columns[lane] + pieces_[p].offset;
                for (int64_t k = 0; k < pieces_[p].count; k += kVectorValues)
                    store16(as_words(to + k), load16(as_words(from + k)));
                to += pieces_[p].count;
            }
            while (to < end) *to++ = Value{};
        }
        for (int64_t k = 0; k < depth_; k += kVectorValues)
            transpose_chunk([&](int64_t lane) { return strips_ + lane * kStripValues + k; }, panel_ + k * kLanes);
    }

    // A vector of each of the 32 columns, to 16 words of all columns.
    template <typename from_t>
    static void transpose_chunk(from_t from, Value* to) {
        for (int half = 0; half < kLanes; half += kWidth)
            transpose16([&](int i) { return as_words(from(half + i)); }, as_words(to) + half, kLanes);
    }

    static const float* as_words(const Value* values) { return reinterpret_cast<const float*>(values); }
    static float* as_words(Value* values) { return reinterpret_cast<float*>(values); }

    // Where a walk along the rows of a chunk is in the sketch's map.
    struct Walk {
        int64_t tile_row;
        int64_t row_in_tile;
    };

    Walk first_row() const { return {0, task_.row_begin % bucket_rows_}; }

    // Multiplies the packed block of g with the packed chunk, and sketches the products.
    void add_column(int64_t step, int64_t chunk) {
        alignas(64) float product[Ops::kTileRows * kLanes];
        Walk walk = first_row();
        for (int64_t first = 0; first < rows_; first += Ops::kTileRows) {
            Ops::multiply(packed_g_, first, rows_, panel_, depth_, product);
            const auto add = [&](int64_t row, int64_t count, const uint32_t* signs, uint32_t lane_mask, float* to) {
                add_rows(product + (row - first) * kLanes, count, signs, lane_mask, to);
            };
            place_rows(step, chunk, first, smaller(first + Ops::kTileRows, rows_), walk, add);
        }
    }

    // Calls add(row, count, signs, lane_mask, bucket_row) for rows [begin, end) of the chunk of a step, as many at a
    // time as go to consecutive rows of buckets. Rows of one tile of the map go to one after the other, and round to
    // the first.
    template <typename add_t>
    void place_rows(int64_t step, int64_t chunk, int64_t begin, int64_t end, Walk& walk, const add_t& add) {
        float* sums = task_.sums + (step - task_.step_begin) / task_.chunks_of_part * args_.proj_dim;
        for (int64_t row = begin; row < end;) {
            const int64_t count = smaller(end - row, bucket_rows_ - walk.row_in_tile);  // of one tile
            const uint32_t* signs = task_.signs + chunk * rows_ + row;
            const Placement* placement = task_.placements + walk.tile_row * columns_.chunks + chunk;
            for (int64_t repetition = 0; repetition < args_.nnz; ++repetition) {
                int64_t bucket_row = walk.row_in_tile + placement->rotation;
                if (bucket_row >= bucket_rows_) bucket_row -= bucket_rows_;
                const int64_t before = smaller(count, bucket_rows_ - bucket_row);
                add(row, before, signs, placement->lane_mask, sums + bucket_row * kLanes);
                add(row + before, count - before, signs + before, placement->lane_mask, sums);
                signs += columns_.chunks * rows_;
                placement += task_.tile_rows * columns_.chunks;
            }
            row += count;
            walk.row_in_tile += count;
            if (walk.row_in_tile == bucket_rows_) walk.row_in_tile = 0, ++walk.tile_row;
        }
    }

    const SketchOuterTask& task_;
    const SketchOuterArgs& args_;
    const int64_t rows_;
    const ColumnPlan columns_;
    const int64_t bucket_rows_, positions_;
    const input_t *g_, *g_limit_;
    Value *packed_g_, *panel_, *strips_, *copied_;
    Ops ops_;

    // The block at hand.
    int64_t depth_ = 0, num_pieces_ = 0, num_runs_ = 0;
    bool whole_vectors_ = false;  // every piece is whole vectors
    Piece pieces_[Ops::kDepth];
    PositionRun runs_[Ops::kDepth];
};

#ifdef __AMX_BF16__
using BFloatOps = Amx;
#else
using BFloatOps = Fma<BFloat>;
#endif

template <typename input_t, typename Ops>
void run_typed(const SketchOuterTask& task) {
    SketchOuter<input_t, Ops> outer(task);
    return task.args->channels_last ? outer.run_linear() : outer.run_convolution();
}

}  // namespace

int64_t sketch_outer_scratch_floats(const SketchOuterArgs& args, int64_t rows, int64_t chunks) {
    if (args.dtype == DType::kBFloat16) return ScratchLayout<BFloatOps>(args, rows, chunks).floats();
    return ScratchLayout<Fma<float>>(args, rows, chunks).floats();
}

void run_sketch_outer(const SketchOuterTask& task) {
    switch (task.args->dtype) {
        case DType::kFloat32:
            return run_typed<float, Fma<float>>(task);
        case DType::kFloat16:
            return run_typed<Half, Fma<Half>>(task);
        case DType::kBFloat16:
            return run_typed<BFloat, BFloatOps>(task);
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
