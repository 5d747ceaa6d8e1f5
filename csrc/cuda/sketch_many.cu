// Count sketch of the gradients of many small parameters in one launch: biases, norms, embeddings.
//
//     features[b, bucket_p(row, col)] += sign_p(row, col) * grads_p[b, row, col] / sqrt(nnz)    for every parameter p
//
// A step is one row of 32 columns of one parameter. A warp owns proj_dim sums in shared memory and adds step after step
// to them, 32 lanes to 32 different buckets: no atomics. 32 steps are routed at once, one per lane, and eight are read
// before the first is added. Parameters travel as arguments of the launch, 64 at a time, so nothing is copied to the
// device first.
//
// Two numbers, for the 250 vectors of a UNet of 35.7 M parameters (60 thousand entries), 32 samples: 7.7 MB read, and
// 16 KiB of sums per warp, written and read once: 15 MB. On an H200 (4.8 TB/s): 5 us. Launches one by one: 250 * 3 us.
// Ladder, each effect predicted and NOT YET MEASURED on a device:
//   1. one launch per parameter, a block per sample, 127 of 128 bucket rows idle    750 us
//   2. this                                                                     20 us, of which 5 launches are 15
// Reference: journey/reference.py::sketch.
#include <cmath>

#include "../common/sketch_map.h"
#include "launch.h"

namespace journey::cuda {
namespace {

constexpr int kMaxItems = 64;       // of one launch: its arguments stay below 4 KiB
constexpr int kReads = 8;           // in flight
constexpr int64_t kMinSteps = 128;  // of a warp: the sums of a warp cost as much memory traffic as all it reads
constexpr int64_t kMaxSlices = 64;  // of one launch

struct Item {
    const void* grads;
    int64_t batch_stride;
    int64_t first_step;
    int64_t row_begin;
    uint64_t key;
    int cols;
    DType dtype;
};

struct Items {
    Item item[kMaxItems];
    int count;
    int64_t num_steps;
};
static_assert(sizeof(Items) <= 3800, "kernel arguments are at most 4 KiB");

// Where the entries of one step are, and where they go.
struct Route {
    const void* from;  // entry of lane 0, of sample 0
    int64_t batch_stride;
    int columns;  // 0 where there is no step
    int bucket;   // of lane 0 without the mask
    uint32_t lane_mask;
    uint32_t signs;
    DType dtype;
};

__device__ __forceinline__ float read(const void* from, DType dtype, int64_t i) {
    switch (dtype) {
        case DType::kFloat32:
            return static_cast<const float*>(from)[i];
        case DType::kFloat16:
            return to_float(static_cast<const __half*>(from)[i]);
        default:
            return to_float(static_cast<const __nv_bfloat16*>(from)[i]);
    }
}

__device__ __forceinline__ const void* entry(const void* from, DType dtype, int64_t i) {
    return static_cast<const char*>(from) + i * (dtype == DType::kFloat32 ? 4 : 2);
}

__device__ __forceinline__ Route make_route(const Items& items, int64_t step, int64_t proj_dim, uint32_t repetition) {
    // The last item that begins at or before the step.
    int first = 0, last = items.count - 1;
    while (first < last) {
        const int middle = (first + last + 1) / 2;
        if (items.item[middle].first_step <= step)
            first = middle;
        else
            last = middle - 1;
    }
    const Item& item = items.item[first];
    const int64_t chunks = num_chunks(item.cols), in_item = step - item.first_step, bucket_rows = proj_dim / kLanes;
    const int64_t local_row = in_item / chunks, chunk = in_item - local_row * chunks, row = item.row_begin + local_row;
    const int64_t block = row / bucket_rows, columns = item.cols - chunk * kLanes;
    const Tile tile = sketch_tile(item.key, repetition, block * chunks + chunk, bucket_rows);
    int64_t bucket_row = row - block * bucket_rows + tile.rotation;
    if (bucket_row >= bucket_rows) bucket_row -= bucket_rows;
    return Route{
        entry(item.grads, item.dtype, local_row * item.cols + chunk * kLanes),
        item.batch_stride,
        static_cast<int>(columns < kLanes ? columns : kLanes),
        static_cast<int>(bucket_row) * kLanes,
        tile.lane_mask,
        sketch_signs(item.key, repetition, row * chunks + chunk),
        item.dtype};
}

// Parallel over [batch, slices of steps]: a block is one warp, one sample and one slice, and owns proj_dim sums.
__global__ void __launch_bounds__(kLanes) sketch_many_kernel(
    const Items items,
    float* __restrict__ workspace,  // [batch, num_slices, proj_dim]
    const int64_t steps_per_slice,
    const int64_t first_slice,
    const int64_t num_slices,
    const int proj_dim,
    const uint32_t nnz) {
    __shared__ Route routes[kLanes];
    float* sums = dynamic_shared();
    const int lane = static_cast<int>(threadIdx.x);
    const int64_t b = blockIdx.x;
    for (int k = lane; k < proj_dim; k += kLanes) sums[k] = 0.0f;

    const int64_t begin = blockIdx.y * steps_per_slice;
    const int64_t end = begin + steps_per_slice < items.num_steps ? begin + steps_per_slice : items.num_steps;
    for (int64_t first = begin; first < end; first += kLanes) {
        for (uint32_t repetition = 0; repetition < nnz; ++repetition) {
            // The routes before have been used.
            __syncwarp();
            routes[lane] = first + lane < end ? make_route(items, first + lane, proj_dim, repetition) : Route{};
            // These are written, and so are the zeros.
            __syncwarp();
            for (int step = 0; step < kLanes; step += kReads) {
                float values[kReads];
#pragma unroll
                for (int i = 0; i < kReads; ++i) {
                    const Route& route = routes[step + i];
                    values[i] = lane < route.columns ? read(route.from, route.dtype, b * route.batch_stride + lane) : 0;
                }
#pragma unroll
                for (int i = 0; i < kReads; ++i) {
                    const Route& route = routes[step + i];
                    if (lane < route.columns)
                        sums[route.bucket + (lane ^ static_cast<int>(route.lane_mask))] +=
                            bits_float(float_bits(values[i]) ^ (route.signs >> lane << 31));
                    // The next step may meet the same buckets in other lanes.
                    __syncwarp();
                }
            }
        }
    }
    float* partial = workspace + (b * num_slices + first_slice + blockIdx.y) * proj_dim;
    for (int k = lane; k < proj_dim; k += kLanes) partial[k] = sums[k];
}

// Parameters [first, first + kMaxItems) as a launch sees them.
Items take_items(const SketchManyArgs& args, int64_t first) {
    Items items{};
    for (int64_t i = first; i < args.num_parameters && i < first + kMaxItems; ++i) {
        const SmallParameter& from = args.parameters[i];
        if (from.rows == 0 || from.cols == 0) continue;
        items.item[items.count++] = Item{from.grads, from.grads_batch_stride,     items.num_steps, from.row_begin,
                                         from.key,   static_cast<int>(from.cols), from.dtype};
        items.num_steps += from.rows * num_chunks(from.cols);
    }
    return items;
}

Slices slices_of(const Items& items) { return make_slices(items.num_steps, kMinSteps, kMaxSlices); }

int64_t count_slices(const SketchManyArgs& args) {
    int64_t count = 0;
    for (int64_t first = 0; first < args.num_parameters; first += kMaxItems)
        count += slices_of(take_items(args, first)).count;
    return count;
}

bool is_valid(const SketchManyArgs& args) {
    for (int64_t i = 0; i < args.num_parameters; ++i) {
        const DType dtype = args.parameters[i].dtype;
        if (dtype != DType::kFloat32 && dtype != DType::kFloat16 && dtype != DType::kBFloat16) return false;
        if (args.parameters[i].cols >= (int64_t{1} << 31)) return false;
    }
    return args.proj_dim % kLanes == 0 && args.nnz >= 1;
}

}  // namespace

int64_t sketch_many_workspace_floats(const SketchManyArgs& args) {
    return args.batch * count_slices(args) * args.proj_dim;
}

cudaError_t sketch_many(const SketchManyArgs& args, cudaStream_t stream) {
    if (!is_valid(args)) return cudaErrorInvalidValue;
    const int64_t num_slices = count_slices(args);
    if (args.batch == 0 || num_slices == 0 || args.proj_dim == 0) return cudaSuccess;
    if (args.workspace == nullptr) return cudaErrorInvalidValue;

    int64_t first_slice = 0;
    for (int64_t first = 0; first < args.num_parameters; first += kMaxItems) {
        const Items items = take_items(args, first);
        const Slices slices = slices_of(items);
        const cudaError_t status = launch(
            sketch_many_kernel, Grid{args.batch, slices.count}, kLanes,
            args.proj_dim * static_cast<int64_t>(sizeof(float)), stream, items, args.workspace, slices.length,
            first_slice, num_slices, static_cast<int>(args.proj_dim), static_cast<uint32_t>(args.nnz));
        if (status != cudaSuccess) return status;
        first_slice += slices.count;
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.nnz)));
    return sum_slices(
        args.workspace, args.features, args.batch, num_slices, args.proj_dim, args.features_stride, scale, stream);
}

}  // namespace journey::cuda
