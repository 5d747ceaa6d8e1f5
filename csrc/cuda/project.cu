// Dense random projection of gradients with a matrix that is generated as it is used.
//
//     features[b, k] += sum_d grads[b, d] * P[row_begin + d, k] / sqrt(proj_dim)      P: common/dense_map.h
//
// A block generates 32 x 128 entries of P into shared memory and uses each for 32 samples. Floor: 2 * batch * grad_dim
// * proj_dim FLOPs in fp32. Signs cost one draw (about 80 instructions) per 128 entries, nothing beside 32 samples;
// normals a draw and two Box-Muller pairs per 4 entries, as much as the multiplication itself.
// Sums run over 256 entries in fp32, then over such runs, then over slices of d, each in order.
// Reference: journey/reference.py::project. Achlioptas, "Database-friendly random projections", JCSS 2003.
#include <cmath>

#include "../common/dense_map.h"
#include "launch.h"

namespace journey::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileBatch = 32;            // samples of a block; a warp owns four of them, so its reads broadcast
constexpr int kTileColumns = 128;         // one draw of signs per row of P
constexpr int kDepth = 32;                // rows of P in shared memory: 16 KiB
constexpr int kRunSteps = 8;              // steps whose products are summed before they join the total
constexpr int64_t kMinSliceDepth = 4096;  // the partial features are small beside the work that made them
constexpr int64_t kMaxSlices = 32;
static_assert(kTileColumns == kSignColumns && kTileColumns % kNormalColumns == 0, "a block generates whole draws");
static_assert(kThreads == kTileBatch / 4 * (kTileColumns / 4), "a thread owns 4 x 4 features");
static_assert(kMinSliceDepth % kDepth == 0, "slices are whole steps");

struct Shared {
    Float4 projection[kDepth][kTileColumns / 4];
    Float4 grads[kDepth][kTileBatch / 4 + 1];  // padded against bank conflicts of the transposing stores
};

Slices project_slices(const ProjectArgs& args) {
    // In steps, so that every slice is whole steps and a sum never depends on where a slice begins inside one.
    return make_slices(ceil_div(args.grad_dim, kDepth), kMinSliceDepth / kDepth, kMaxSlices);
}

// Signs of rows [d, d + 32) and columns [column, column + 128) of P. Eight threads share a row and draw it each, which
// is cheaper than another barrier; they take interleaved groups of four columns: whole rows of banks.
__device__ __forceinline__ void generate_signs(const ProjectArgs& args, int64_t d, int64_t column, Shared& shared) {
    const int row = static_cast<int>(threadIdx.x) / 8, part = static_cast<int>(threadIdx.x) % 8;
    const Philox4 draw = dense_signs(args.key, args.row_begin + d + row, column / kSignColumns);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const uint32_t bits = draw.word[w] >> (part * 4);
        Float4 signs;
#pragma unroll
        for (int i = 0; i < 4; ++i) signs.value[i] = bits_float(0x3F800000u | (bits >> i << 31));
        shared.projection[row][w * 8 + part] = signs;
    }
}

// Normals of the same entries, four draws per thread.
__device__ __forceinline__ void generate_normals(const ProjectArgs& args, int64_t d, int64_t column, Shared& shared) {
    constexpr int kRowDraws = kTileColumns / 4;
    constexpr int kStride = kNormalColumns / 4;  // columns between the normals of one draw
    for (int i = static_cast<int>(threadIdx.x); i < kDepth * kRowDraws; i += kThreads) {
        const int row = i / kRowDraws, at = i % kRowDraws;
        const uint32_t counter = static_cast<uint32_t>(column / 4 + at);
        const Normal4 normals = dense_normals(args.key, args.row_begin + d + row, counter);
        const int first = at / kStride * kNormalColumns + at % kStride;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const int k = first + w * kStride;
            shared.projection[row][k / 4].value[k % 4] = normals.value[w];
        }
    }
}

// Parallel over [batch, proj_dim, slices of d]: a block is 32 samples, 128 columns and one slice, a thread owns 4 x 4
// features.
template <typename input_t, Dense kKind>
__global__ void __launch_bounds__(kThreads)
    project_kernel(const ProjectArgs args, const Slices slices, const float scale) {
    __shared__ Shared shared;
    const int thread = static_cast<int>(threadIdx.x), row_group = thread / 32, column_group = thread % 32;
    const int64_t first_b = static_cast<int64_t>(blockIdx.x) * kTileBatch;
    const int64_t column = static_cast<int64_t>(blockIdx.y) * kTileColumns, slice = blockIdx.z;
    const int64_t d_begin = slice * slices.length * kDepth;
    const int64_t slice_end = d_begin + slices.length * kDepth;
    const int64_t d_end = slice_end < args.grad_dim ? slice_end : args.grad_dim;
    const input_t* grads = static_cast<const input_t*>(args.grads);

    float total[4][4] = {}, run[4][4] = {};
    int steps = 0;
    for (int64_t d = d_begin; d < d_end; d += kDepth) {
        // The step before has been used.
        __syncthreads();
        if (kKind == Dense::kRademacher)
            generate_signs(args, d, column, shared);
        else
            generate_normals(args, d, column, shared);
        // A warp reads 32 consecutive entries of one sample; zeros stand for samples and entries beyond the end.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = row_group + 8 * i;
            const int64_t b = first_b + row, entry = d + column_group;
            const bool inside = b < args.batch && entry < d_end;
            shared.grads[column_group][row / 4].value[row % 4] =
                inside ? to_float(grads[b * args.grads_stride + entry]) : 0.0f;
        }
        // This step is written.
        __syncthreads();
#pragma unroll 8
        for (int depth = 0; depth < kDepth; ++depth) {
            const Float4 g = shared.grads[depth][row_group], p = shared.projection[depth][column_group];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) run[i][j] = fmaf(g.value[i], p.value[j], run[i][j]);
        }
        if (++steps == kRunSteps || d + kDepth >= d_end) {
            steps = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) total[i][j] += run[i][j], run[i][j] = 0.0f;
        }
    }

    // One slice adds to the features, several leave their sums for sum_slices.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t b = first_b + row_group * 4 + i, k = column + column_group * 4 + j;
            if (b >= args.batch || k >= args.proj_dim) continue;
            if (slices.count == 1)
                args.features[b * args.features_stride + k] += mul_rn(scale, total[i][j]);
            else
                args.workspace[(b * slices.count + slice) * args.proj_dim + k] = total[i][j];
        }
    }
}

}  // namespace

int64_t project_workspace_floats(const ProjectArgs& args) {
    const int64_t count = project_slices(args).count;
    return count > 1 ? args.batch * count * args.proj_dim : 0;
}

cudaError_t project(const ProjectArgs& args, cudaStream_t stream) {
    if (args.batch == 0 || args.grad_dim == 0 || args.proj_dim == 0) return cudaSuccess;
    const Slices slices = project_slices(args);
    if (slices.count > 1 && args.workspace == nullptr) return cudaErrorInvalidValue;

    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.proj_dim)));
    const Grid grid{ceil_div(args.batch, kTileBatch), ceil_div(args.proj_dim, kTileColumns), slices.count};
    const cudaError_t status = dispatch(args.dtype, [&](auto type) {
        using input_t = typename decltype(type)::type;
        switch (args.kind) {
            case Dense::kRademacher:
                return launch(
                    project_kernel<input_t, Dense::kRademacher>, grid, kThreads, 0, stream, args, slices, scale);
            case Dense::kNormal:
                return launch(project_kernel<input_t, Dense::kNormal>, grid, kThreads, 0, stream, args, slices, scale);
        }
        return cudaErrorInvalidValue;
    });
    if (status != cudaSuccess || slices.count == 1) return status;
    return sum_slices(
        args.workspace, args.features, args.batch, slices.count, args.proj_dim, args.features_stride, scale, stream);
}

}  // namespace journey::cuda
