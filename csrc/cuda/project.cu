// Dense random projection of gradients with a matrix that is generated as it is used.
//
//     features[b, k] += sum_d grads[b, d] * P[row_begin + d, k] / sqrt(proj_dim)      P: common/dense_map.h
//
// A block multiplies 64 samples by 128 columns, on tensor cores, so that what it generates is used 64 times. Signs
// never exist as numbers in memory: a block draws the 128 bits of each row of P once, and each lane turns the bits that
// it needs into its fragment of +1 and -1. A sign is exact in every type, so half types multiply exactly; a float32
// gradient is the sum of two TF32 numbers (to 2^-23 of it) and takes two products. No scaling is needed, because
// nothing is ever rounded to a half type. Normals are staged as float32 and multiplied as 3xTF32 (tile_matmul.h).
// Sums run over 128 entries, then over such runs, then over slices of d, each in order; float32 sums are rounded, not
// truncated, after every 8 products.
//
// Two numbers, for 64 gradients of 4.4 M entries and proj_dim 4096: 2.3 TFLOP, and 0.56 GB of bf16, read by 32 blocks
// of columns, from L2 but for the first. On an H200 (790 TFLOP/s bf16, about 400 TF32, 4.8 TB/s): 2.9 ms in bf16, 11 ms
// in float32 (two products); 0.1 ms of memory. Draws of signs: 100 instructions for 128 x 64 products, 0.5 ms.
// Status, November 2026: tested on the CPU by emulation, not measured on a GPU yet (docs/development/kernels.md).
// Normals stay bound by their generation: a draw and two Box-Muller pairs per 4 entries.
// Reference: journey/ops/reference.py::project. Achlioptas, "Database-friendly random projections", JCSS 2003.
#include <cmath>

#include "../common/dense_map.h"
#include "stage_operand.h"

namespace journey::cuda {
namespace {

constexpr int kBlocks = 2;      // per multiprocessor, so at most 255 registers per thread
constexpr int kTileBatch = 64;  // samples of a block
constexpr int kTileColumns = 128;
constexpr int kWordColumns = 32;         // of a word of signs
constexpr int kMTiles = 4, kNTiles = 4;  // a warp owns all samples and 32 columns: one word of signs per row of P
constexpr int kRunDepth =
    kTileThreads;  // rows of P whose signs are drawn at once, and summed before they join the total
constexpr int kStages = 3;
constexpr int64_t kMinSliceRuns = 32;  // 4096 entries: the partial features are small beside the work that made them
constexpr int64_t kMaxSlices = 32;
static_assert(kTileColumns == kSignColumns && kTileColumns % kNormalColumns == 0, "a block generates whole draws");
static_assert(kTileColumns == kTileThreads / kWarpLanes * kWordColumns, "a warp owns one word of signs");
static_assert(kTileBatch == kMTiles * 16 && kNTiles * 8 == kWordColumns, "a warp owns all samples and 32 columns");

Slices project_slices(const ProjectArgs& args) {
    return make_slices(ceil_div(args.grad_dim, kRunDepth), kMinSliceRuns, kMaxSlices);
}

// Of a run of rows of P: word w of row d at [w][d]. Two runs: one in use, one being drawn.
struct Signs {
    uint32_t word[2][kTileColumns / kWordColumns][kRunDepth];
};

// Of a stage of rows of P, as float32, columns along the rows of the stage; one in use, one being drawn.
struct Normals {
    uint32_t stage[2][kTileColumns * kStageWords];
};

// What an operand P is made of, and in which type gradients are staged.
template <Dense kKind, typename input_t>
struct KindOf {
    using Projection = Signs;
    using stage_t = input_t;
};

template <typename input_t>
struct KindOf<Dense::kNormal, input_t> {
    using Projection = Normals;
    using stage_t = float;
};

// Draws the signs of the run that begins at row d of P, a row per thread.
__device__ __forceinline__ void draw_run(uint64_t key, int64_t d, int64_t column, int buffer, Signs& signs) {
    const int thread = static_cast<int>(threadIdx.x);
    const Philox4 draw = dense_signs(key, d + thread, column / kSignColumns);
#pragma unroll
    for (int w = 0; w < 4; ++w) signs.word[buffer][w][thread] = draw.word[w];
}

// Draws the normals of the stage that begins at row d of P, four draws per thread.
__device__ __forceinline__ void draw_stage(uint64_t key, int64_t d, int64_t column, int buffer, Normals& normals) {
    constexpr int kStride = kNormalColumns / 4;  // columns between the normals of one draw
    const int row = static_cast<int>(threadIdx.x) % kStageWords;
#pragma unroll 1
    for (int i = 0; i < kTileColumns / 4 * kStageWords / kTileThreads; ++i) {
        const int at = static_cast<int>(threadIdx.x) / kStageWords + i * (kTileThreads / kStageWords);
        const Normal4 draw = dense_normals(key, d + row, static_cast<uint32_t>(column / 4 + at));
        const int first = at / kStride * kNormalColumns + at % kStride;
#pragma unroll
        for (int w = 0; w < 4; ++w)
            normals.stage[buffer][staged_at(first + w * kStride, row)] = float_bits(draw.value[w]);
    }
}

template <typename input_t>
constexpr uint32_t kOnes = 0x3F800000u;
template <>
constexpr uint32_t kOnes<__half> = 0x3C003C00u;
template <>
constexpr uint32_t kOnes<__nv_bfloat16> = 0x3F803F80u;

// The fragments b of a step of eight words: rows of P from `depth` of the run, the 32 columns of this warp.
template <typename input_t>
__device__ __forceinline__ void sign_fragments(const uint32_t* words, int depth, uint32_t (&b)[kNTiles][2]) {
    const int group = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int d = depth + (t + 4 * i) * kPerWord<input_t>;
        const uint32_t first = words[d] >> group, last = words[d + kPerWord<input_t> - 1] >> group;
#pragma unroll
        for (int j = 0; j < kNTiles; ++j) {
            b[j][i] = kOnes<input_t> | last >> (8 * j) << 31;
            if (kPerWord<input_t> == 2) b[j][i] |= (first >> (8 * j) & 1u) << 15;
        }
    }
}

template <typename input_t>
__device__ __forceinline__ void multiply_signs_by_fma(
    const uint32_t* grads, const uint32_t* words, int depth, float (&run)[kMTiles][kNTiles][4]) {
    const int group = lane_id() / 4, t = lane_id() % 4;
#pragma unroll 1
    for (int k = 0; k < kStageDepth<input_t>; ++k) {
        const uint32_t signs = words[depth + k] >> (2 * t);
#pragma unroll
        for (int i = 0; i < 2 * kMTiles; ++i) {
            const uint32_t word = grads[staged_at(8 * i + group, k / kPerWord<input_t>)];
            const float grad = element<input_t>(word, k % kPerWord<input_t>);
#pragma unroll
            for (int j = 0; j < 2 * kNTiles; ++j)
                run[i / 2][j / 2][i % 2 * 2 + j % 2] +=
                    bits_float(float_bits(grad) ^ (signs >> (j / 2 * 8 + j % 2) << 31));
        }
    }
}

template <typename input_t>
__device__ __forceinline__ void multiply_signs_by_tensor_cores(
    const uint32_t* grads, const uint32_t* words, int depth, int m_tiles, float (&run)[kMTiles][kNTiles][4]) {
#pragma unroll
    for (int step = 0; step < kStageWords / kStepWords; ++step) {
        uint32_t b[kNTiles][2];
        sign_fragments<input_t>(words, depth + step * kStepWords * kPerWord<input_t>, b);
#pragma unroll
        for (int i = 0; i < kMTiles; ++i) {
            if (i >= m_tiles) break;
            uint32_t a[4];
            load_left(a, grads, 16 * i, step);
            if constexpr (sizeof(input_t) == 2) {
#pragma unroll
                for (int j = 0; j < kNTiles; ++j) mma<input_t>(run[i][j], a, b[j]);
            } else {
                uint32_t a_low[4];
#pragma unroll
                for (int w = 0; w < 4; ++w) {
                    const Split split = split_tf32(a[w]);
                    a[w] = split.high, a_low[w] = split.low;
                }
#pragma unroll
                for (int j = 0; j < kNTiles; ++j) {
                    float products[4] = {};
                    mma<float>(products, a_low, b[j]);
                    mma<float>(products, a, b[j]);
#pragma unroll
                    for (int e = 0; e < 4; ++e) run[i][j][e] += products[e];
                }
            }
        }
    }
}

// run += gradients * signs over one stage, which begins at `depth` of the run.
template <typename input_t>
__device__ __forceinline__ void multiply_signs(
    const uint32_t* grads, const uint32_t* words, int depth, int m_tiles, float (&run)[kMTiles][kNTiles][4]) {
    if (has_tensor_cores())
        multiply_signs_by_tensor_cores<input_t>(grads, words, depth, m_tiles, run);
    else
        multiply_signs_by_fma<input_t>(grads, words, depth, run);
}

// Gradients of a block: samples [first_b, first_b + num_samples) and entries up to d_end.
template <typename input_t>
struct Gradients {
    const input_t* data;  // sample first_b
    int64_t stride;
    int64_t d_end;
    int num_samples;
    bool copied;  // 16 bytes at a time, straight into the stage
};

// Starts to bring entries [d, d + depth of a stage) into a stage; finish_grads completes it.
template <typename input_t, typename stage_t>
__device__ __forceinline__ void begin_grads(
    const Gradients<input_t>& grads, int64_t d, uint32_t* stage, uint32_t (&words)[kFetched<stage_t, kTileBatch>]) {
    if (std::is_same<input_t, stage_t>::value && grads.copied) {
        const int64_t first = d + copied_depth<stage_t>(), left = (grads.d_end - first) * int64_t{sizeof(input_t)};
        const int bytes = left < 0 ? 0 : left < 16 ? static_cast<int>(left) : 16;
        copy_rows<kTileBatch>(stage, [&](int row) {
            const bool inside = row < grads.num_samples && bytes > 0;
            return inside ? Bytes{grads.data + row * grads.stride + first, bytes} : Bytes{grads.data, 0};
        });
        return;
    }
    const int64_t first = d + fetched_depth<stage_t>();
    fetch_words<stage_t, kTileBatch>(words, 0, [&](int row, int half) -> uint32_t {
        if (row >= grads.num_samples || first + half >= grads.d_end) return 0u;
        const input_t* from = grads.data + row * grads.stride + first + half;
        return std::is_same<input_t, stage_t>::value ? bits_of(from) : float_bits(to_float(*from));
    });
}

template <typename input_t, typename stage_t>
__device__ __forceinline__ void finish_grads(
    const Gradients<input_t>& grads, uint32_t* stage, const uint32_t (&words)[kFetched<stage_t, kTileBatch>]) {
    if (!(std::is_same<input_t, stage_t>::value && grads.copied)) store_words<stage_t, kTileBatch>(stage, words, 0);
}

// Parallel over [batch, proj_dim, slices of d]: a block is 64 samples, 128 columns and one slice, a warp owns 32 of the
// columns.
template <typename input_t, Dense kKind>
__global__ void __launch_bounds__(kTileThreads, kBlocks) project_kernel(
    const ProjectArgs args, float* workspace, const Slices slices, const bool copied, const float scale) {
    using stage_t = typename KindOf<kKind, input_t>::stage_t;
    constexpr int kDepth = kStageDepth<stage_t>, kRunStages = kRunDepth / kDepth;
    alignas(16) __shared__ uint32_t stages[kStages][kTileBatch * kStageWords];
    alignas(16) __shared__ typename KindOf<kKind, input_t>::Projection projection;
    const int64_t first_b = static_cast<int64_t>(blockIdx.x) * kTileBatch, samples_left = args.batch - first_b;
    const int64_t column = static_cast<int64_t>(blockIdx.y) * kTileColumns, slice = blockIdx.z;
    const int64_t d_begin = slice * slices.length * kRunDepth, slice_end = d_begin + slices.length * kRunDepth;
    Gradients<input_t> grads{};
    grads.data = static_cast<const input_t*>(args.grads) + first_b * args.grads_stride;
    grads.stride = args.grads_stride;
    grads.d_end = slice_end < args.grad_dim ? slice_end : args.grad_dim;
    grads.num_samples = samples_left < kTileBatch ? static_cast<int>(samples_left) : kTileBatch;
    grads.copied = copied;
    const int m_tiles = (grads.num_samples + 15) / 16;

    uint32_t words[kFetched<stage_t, kTileBatch>];
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
        const int64_t d = d_begin + stage * kDepth;
        if (d < grads.d_end) {
            begin_grads<input_t, stage_t>(grads, d, stages[stage], words);
            finish_grads<input_t, stage_t>(grads, stages[stage], words);
        }
        commit_copies();
    }
    if constexpr (kKind == Dense::kRademacher)
        draw_run(args.key, args.row_begin + d_begin, column, 0, projection);
    else
        draw_stage(args.key, args.row_begin + d_begin, column, 0, projection);

    float total[kMTiles][kNTiles][4] = {}, run[kMTiles][kNTiles][4] = {};
    int stage = 0, free_stage = kStages - 1, step = 0;
    for (int64_t d = d_begin; d < grads.d_end; d += kDepth, ++step) {
        wait_for_copies<kStages - 2>();
        // This stage and what it meets of P are written; the stage before has been used.
        __syncthreads();
        const int64_t ahead = d + (kStages - 1) * kDepth;
        if (ahead < grads.d_end) begin_grads<input_t, stage_t>(grads, ahead, stages[free_stage], words);
        commit_copies();
        if constexpr (kKind == Dense::kRademacher) {
            const int in_run = step % kRunStages, buffer = step / kRunStages % 2;
            if (in_run == 0 && d + kRunDepth < grads.d_end)
                draw_run(args.key, args.row_begin + d + kRunDepth, column, buffer ^ 1, projection);
            multiply_signs<input_t>(stages[stage], projection.word[buffer][warp_id()], in_run * kDepth, m_tiles, run);
        } else {
            if (d + kDepth < grads.d_end)
                draw_stage(args.key, args.row_begin + d + kDepth, column, step % 2 ^ 1, projection);
            multiply_stage<float, true>(
                stages[stage], 0, projection.stage[step % 2], warp_id() * kWordColumns, m_tiles, run);
        }
        if (ahead < grads.d_end) finish_grads<input_t, stage_t>(grads, stages[free_stage], words);
        if (step % kRunStages == kRunStages - 1 || d + kDepth >= grads.d_end) {
#pragma unroll
            for (int i = 0; i < kMTiles; ++i)
#pragma unroll
                for (int j = 0; j < kNTiles; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) total[i][j][e] += run[i][j][e], run[i][j][e] = 0.0f;
        }
        stage = stage + 1 == kStages ? 0 : stage + 1;
        free_stage = free_stage + 1 == kStages ? 0 : free_stage + 1;
    }

    // One slice adds to the features, several leave their sums for sum_slices.
    const int group = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2 * kMTiles; ++i) {
#pragma unroll
        for (int j = 0; j < 2 * kNTiles; ++j) {
            const int row = i * 8 + group;
            const int64_t b = first_b + row, k = column + warp_id() * kWordColumns + j / 2 * 8 + 2 * t + j % 2;
            if (row >= grads.num_samples || k >= args.proj_dim) continue;
            const float sum = total[i / 2][j / 2][i % 2 * 2 + j % 2];
            if (slices.count == 1)
                args.features[b * args.features_stride + k] += mul_rn(scale, sum);
            else
                workspace[(b * slices.count + slice) * args.proj_dim + k] = sum;
        }
    }
}

}  // namespace

int64_t project_workspace_floats(const ProjectArgs& args) {
    const int64_t count = project_slices(args).count;
    return count > 1 ? args.batch * count * args.proj_dim : 0;
}

cudaError_t project(const ProjectArgs& args, Workspace workspace, cudaStream_t stream) {
    if (args.batch == 0 || args.grad_dim == 0 || args.proj_dim == 0) return cudaSuccess;
    const Slices slices = project_slices(args);
    if (slices.count > 1 && workspace.data == nullptr) return cudaErrorInvalidValue;

    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.proj_dim)));
    const Grid grid{ceil_div(args.batch, kTileBatch), ceil_div(args.proj_dim, kTileColumns), slices.count};
    const cudaError_t status = dispatch(args.dtype, [&](auto type) {
        using input_t = typename decltype(type)::type;
        const bool copied = has_aligned_rows<input_t>(args.grads, args.grads_stride);
        switch (args.kind) {
            case Dense::kRademacher:
                return launch(
                    project_kernel<input_t, Dense::kRademacher>, grid, kTileThreads, 0, stream, args, workspace.data,
                    slices, copied, scale);
            case Dense::kNormal:
                return launch(
                    project_kernel<input_t, Dense::kNormal>, grid, kTileThreads, 0, stream, args, workspace.data,
                    slices, copied, scale);
        }
        return cudaErrorInvalidValue;
    });
    if (status != cudaSuccess || slices.count == 1) return status;
    return sum_slices(
        workspace.data, args.features, args.batch, slices.count, args.proj_dim, args.features_stride, scale, stream);
}

}  // namespace journey::cuda
