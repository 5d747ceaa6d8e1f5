// Block-rotation count sketch of a batch of gradients of one parameter.
//
//     features[b, bucket(row, col)] += sign(row, col) * grads[b, row, col] / sqrt(nnz)      common/sketch_map.h
//
// Turned around, the map needs no scattered adds: inside a tile it is a permutation, so a bucket has exactly one entry
// per tile. A thread owns 16 buckets in registers and fetches, tile after tile, the entries that belong to them. A warp
// owns whole bucket rows; lanes are only permuted within 32 consecutive columns, so its loads are coalesced, and no
// two threads ever touch the same bucket: no atomics, no shared accumulators, no block barriers. The lane mask permutes
// groups of four lanes and lanes within a group, so a thread that owns four neighbouring buckets finds their entries in
// one aligned vector; odd strides are read one by one. Either way a bucket's terms are added in the order of tiles.
//
// Two numbers, for 32 gradients of 256 x 2304 in float32: 75 MB read once (nnz > 1 reads again from L1 while a tile
// fits) and one addition for each of 18.9 M entries. On an H200 (4.8 TB/s): 16 us.
// Predicted on 30 November 2026, not yet measured on a GPU: memory bounds float32, because a thread has eight loads of
// 16 bytes in flight (docs/results/machine-code.md). Tested on the CPU by emulation. Reference:
// journey/ops/reference.py::sketch.
#include <cmath>

#include "../common/sketch_map.h"
#include "launch.h"

namespace journey::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;
constexpr int kRowsPerWarp = 16;                      // enough independent loads in flight to hide the latency
constexpr int kTilesPerStep = kLanes / kRowsPerWarp;  // so that 32 lanes route 32 (tile, row) pairs
constexpr int kBlockRows = kWarps * kRowsPerWarp;     // proj_dim 4096 is one block
constexpr int64_t kMinTilesPerSlice = 32;             // partial sums are at most 2/32 of the traffic
constexpr int64_t kMaxSlices = 64;                    // and of bounded size
static_assert(kLanes == 32, "a warp reads one chunk of columns");

// Where the entry of one bucket row comes from in one tile.
struct alignas(16) Route {
    int64_t offset;  // of the chunk's first entry
    uint32_t signs;  // of the chunk's lanes
    uint32_t lanes;  // lane mask, plus 256 * number of columns in the chunk; 0 where the tile has no such row
};

struct TileRange {
    int64_t first_row_block;
    int64_t num_tiles;
};

TileRange tile_range(const SketchArgs& args) {
    if (args.rows == 0 || args.cols == 0 || args.proj_dim < kLanes) return TileRange{0, 0};
    const int64_t bucket_rows = args.proj_dim / kLanes;
    const int64_t first = args.row_begin / bucket_rows;
    const int64_t last = (args.row_begin + args.rows - 1) / bucket_rows;
    return TileRange{first, (last - first + 1) * num_chunks(args.cols)};
}

Slices sketch_slices(const SketchArgs& args) {
    return make_slices(tile_range(args).num_tiles, kMinTilesPerSlice, kMaxSlices);
}

// Routes the entry of bucket row `bucket_row` in the tile (row_block, chunk).
__device__ __forceinline__ Route make_route(
    const SketchArgs& args, int64_t repetition, int64_t row_block, int64_t chunk, int64_t chunks, int64_t bucket_row) {
    const int64_t bucket_rows = args.proj_dim / kLanes;
    const uint32_t minor = static_cast<uint32_t>(repetition);
    const Placement placement = sketch_placement(args.key, minor, row_block * chunks + chunk, bucket_rows);
    int64_t row = bucket_row - placement.rotation;
    if (row < 0) row += bucket_rows;
    row += row_block * bucket_rows;
    if (row < args.row_begin || row >= args.row_begin + args.rows) return Route{0, 0, 0};

    const int64_t columns = args.cols - chunk * kLanes;
    return Route{
        (row - args.row_begin) * args.cols + chunk * kLanes, sketch_signs(args.key, minor, row * chunks + chunk),
        placement.lane_mask + 256u * static_cast<uint32_t>(columns < kLanes ? columns : kLanes)};
}

// Adds value i ^ mask of the vector to sum i, signed by the bit of its lane.
template <typename input_t, int kWidth>
__device__ __forceinline__ void add_vector(
    const Vector<input_t, kWidth>& vector, uint32_t signs, uint32_t mask, float (&sums)[kWidth]) {
    float entries[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
        entries[i] = bits_float(float_bits(to_float(vector.value[i])) ^ (signs >> i << 31));
#pragma unroll
    for (int bit = 1; bit < kWidth; bit *= 2) {
        const bool swap = (mask & static_cast<uint32_t>(bit)) != 0u;
        float swapped[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) swapped[i] = swap ? entries[i ^ bit] : entries[i];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) entries[i] = swapped[i];
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[i] += entries[i];
}

// Parallel over [batch, slices of tiles, bucket rows]: a block is 128 bucket rows of one sample and slice, a warp owns
// every eighth of these rows, a thread kWidth lanes of every kWidth-th of the warp's.
template <typename input_t, int kWidth>
__global__ void __launch_bounds__(kThreads) sketch_kernel(
    const SketchArgs args, float* workspace, const TileRange range, const Slices slices, const float scale) {
    __shared__ Route routes[kWarps][kLanes];
    const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
    const int64_t b = blockIdx.x, slice = blockIdx.y;
    const int64_t bucket_rows = args.proj_dim / kLanes, chunks = num_chunks(args.cols);
    const int64_t first_bucket_row = static_cast<int64_t>(blockIdx.z) * kBlockRows + warp;
    const int64_t tile_begin = slice * slices.length;
    const int64_t tile_end =
        tile_begin + slices.length < range.num_tiles ? tile_begin + slices.length : range.num_tiles;
    const input_t* grads = static_cast<const input_t*>(args.grads) + b * args.grads_batch_stride;

    // Lane l routes bucket row l % 16 of the warp in tile l / 16 of the step.
    const int routed_tile = lane / kRowsPerWarp;
    const int64_t routed_row = first_bucket_row + (lane % kRowsPerWarp) * kWarps;
    int64_t chunk = (tile_begin + routed_tile) % chunks;
    int64_t row_block = range.first_row_block + (tile_begin + routed_tile) / chunks;

    constexpr int kRowThreads = kLanes / kWidth;
    const uint32_t first_lane = static_cast<uint32_t>(lane % kRowThreads * kWidth);
    const int first_row = lane / kRowThreads;
    float sums[kRowsPerWarp / kWidth][kWidth] = {};
    for (int64_t tile = tile_begin; tile < tile_end; tile += kTilesPerStep) {
        for (int64_t repetition = 0; repetition < args.nnz; ++repetition) {
            Route route{0, 0, 0};
            if (tile + routed_tile < tile_end && routed_row < bucket_rows)
                route = make_route(args, repetition, row_block, chunk, chunks, routed_row);
            // The warp has used the routes of the step before.
            __syncwarp();
            routes[warp][lane] = route;
            // The routes of this step are written.
            __syncwarp();
            // Load, then add: all vectors of a step are in flight, or the single entries of one tile, because those of
            // two would spill on sm_120.
            constexpr int kLoads = kRowsPerWarp / kWidth * (kWidth > 1 ? kTilesPerStep : 1);
#pragma unroll 1
            for (int first = 0; first < kTilesPerStep * kRowsPerWarp / kWidth; first += kLoads) {
                Vector<input_t, kWidth> loaded[kLoads];
#pragma unroll
                for (int i = 0; i < kLoads; ++i) {
                    const Route from = routes[warp][(first + i) * kWidth + first_row];
                    const uint32_t source = first_lane ^ (from.lanes & (kLanes - kWidth));
                    loaded[i] = Vector<input_t, kWidth>{};
                    if (source < from.lanes / 256u)
                        loaded[i] = load_vector(vector_at<kWidth>(grads + from.offset + source));
                }
                // Keeps the compiler from adding what has come before all loads are on their way.
                __syncwarp();
#pragma unroll
                for (int i = 0; i < kLoads; ++i) {
                    const Route from = routes[warp][(first + i) * kWidth + first_row];
                    const uint32_t source = first_lane ^ (from.lanes & (kLanes - kWidth));
                    add_vector(
                        loaded[i], from.signs >> source, from.lanes & (kWidth - 1u),
                        sums[(first + i) % (kRowsPerWarp / kWidth)]);
                }
            }
        }
        chunk += kTilesPerStep;
        while (chunk >= chunks) chunk -= chunks, ++row_block;
    }

    // One slice adds to the features, several leave their sums for sum_slices.
#pragma unroll
    for (int j = 0; j < kRowsPerWarp / kWidth; ++j) {
        const int64_t bucket_row = first_bucket_row + (j * kWidth + first_row) * kWarps;
        if (bucket_row >= bucket_rows) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            const int64_t k = bucket_row * kLanes + first_lane + i;
            if (slices.count == 1)
                args.features[b * args.features_stride + k] += mul_rn(scale, sums[j][i]);
            else
                workspace[(b * slices.count + slice) * args.proj_dim + k] = sums[j][i];
        }
    }
}

// Whether four columns can be loaded at once everywhere.
template <typename input_t>
bool has_aligned_columns(const SketchArgs& args) {
    return reinterpret_cast<uintptr_t>(args.grads) % (4 * sizeof(input_t)) == 0 && args.cols % 4 == 0 &&
           args.grads_batch_stride % 4 == 0;
}

}  // namespace

int64_t sketch_workspace_floats(const SketchArgs& args) {
    const int64_t count = sketch_slices(args).count;
    return count > 1 ? args.batch * count * args.proj_dim : 0;
}

cudaError_t sketch(const SketchArgs& args, Workspace workspace, cudaStream_t stream) {
    if (args.proj_dim % kLanes != 0 || args.nnz < 1) return cudaErrorInvalidValue;
    const TileRange range = tile_range(args);
    if (args.batch == 0 || range.num_tiles == 0) return cudaSuccess;
    const Slices slices = sketch_slices(args);
    if (slices.count > 1 && workspace.data == nullptr) return cudaErrorInvalidValue;

    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.nnz)));
    const Grid grid{args.batch, slices.count, ceil_div(args.proj_dim / kLanes, kBlockRows)};
    const cudaError_t status = dispatch(args.dtype, [&](auto type) {
        using input_t = typename decltype(type)::type;
        const auto kernel =
            has_aligned_columns<input_t>(args) ? &sketch_kernel<input_t, 4> : &sketch_kernel<input_t, 1>;
        return launch(kernel, grid, kThreads, 0, stream, args, workspace.data, range, slices, scale);
    });
    if (status != cudaSuccess || slices.count == 1) return status;
    return sum_slices(
        workspace.data, args.features, args.batch, slices.count, args.proj_dim, args.features_stride, scale, stream);
}

}  // namespace journey::cuda
