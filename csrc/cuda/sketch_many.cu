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
// Status, November 2026: tested on the CPU by emulation, not measured on a GPU yet (docs/development/kernels.md).
// Reference: journey/ops/reference.py::sketch.
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
    const Placement placement = sketch_placement(item.key, repetition, block * chunks + chunk, bucket_rows);
    int64_t bucket_row = row - block * bucket_rows + placement.rotation;
    if (bucket_row >= bucket_rows) bucket_row -= bucket_rows;
    return Route{
        entry(item.grads, item.dtype, local_row * item.cols + chunk * kLanes),
        item.batch_stride,
        static_cast<int>(columns < kLanes ? columns : kLanes),
        static_cast<int>(bucket_row) * kLanes,
        placement.lane_mask,
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
            // The routes before have been used since the barrier of their last step.
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

using Parameters = std::vector<SketchArgs>;

// Parameters [first, first + kMaxItems) as a launch sees them.
Items take_items(const Parameters& parameters, size_t first) {
    Items items{};
    for (size_t i = first; i < parameters.size() && i < first + kMaxItems; ++i) {
        const SketchArgs& from = parameters[i];
        if (from.rows == 0 || from.cols == 0) continue;
        items.item[items.count++] = Item{from.grads, from.grads_batch_stride,     items.num_steps, from.row_begin,
                                         from.key,   static_cast<int>(from.cols), from.dtype};
        items.num_steps += from.rows * num_chunks(from.cols);
    }
    return items;
}

Slices slices_of(const Items& items) { return make_slices(items.num_steps, kMinSteps, kMaxSlices); }

int64_t count_slices(const Parameters& parameters) {
    int64_t count = 0;
    for (size_t first = 0; first < parameters.size(); first += kMaxItems)
        count += slices_of(take_items(parameters, first)).count;
    return count;
}

bool is_valid(const Parameters& parameters) {
    const auto shared = [](const SketchArgs& from) {
        return std::tie(from.features, from.batch, from.features_stride, from.proj_dim, from.nnz);
    };
    for (const SketchArgs& from : parameters) {
        if (from.dtype != DType::kFloat32 && from.dtype != DType::kFloat16 && from.dtype != DType::kBFloat16)
            return false;
        if (from.cols >= (int64_t{1} << 31) || shared(from) != shared(parameters[0])) return false;
    }
    return parameters.empty() || (parameters[0].proj_dim % kLanes == 0 && parameters[0].nnz >= 1);
}

}  // namespace

int64_t sketch_many_workspace_floats(const SketchManyArgs& args) {
    if (args.parameters.empty()) return 0;
    const SketchArgs& any = args.parameters[0];
    return any.batch * count_slices(args.parameters) * any.proj_dim;
}

cudaError_t sketch_many(const SketchManyArgs& args, Workspace workspace, cudaStream_t stream) {
    const Parameters& parameters = args.parameters;
    if (!is_valid(parameters)) return cudaErrorInvalidValue;
    const int64_t num_slices = count_slices(parameters);
    if (num_slices == 0 || parameters[0].batch == 0 || parameters[0].proj_dim == 0) return cudaSuccess;
    if (workspace.data == nullptr) return cudaErrorInvalidValue;

    const SketchArgs& any = parameters[0];
    int64_t first_slice = 0;
    for (size_t first = 0; first < parameters.size(); first += kMaxItems) {
        const Items items = take_items(parameters, first);
        const Slices slices = slices_of(items);
        const cudaError_t status = launch(
            sketch_many_kernel, Grid{any.batch, slices.count}, kLanes,
            any.proj_dim * static_cast<int64_t>(sizeof(float)), stream, items, workspace.data, slices.length,
            first_slice, num_slices, static_cast<int>(any.proj_dim), static_cast<uint32_t>(any.nnz));
        if (status != cudaSuccess) return status;
        first_slice += slices.count;
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(any.nnz)));
    return sum_slices(
        workspace.data, any.features, any.batch, num_slices, any.proj_dim, any.features_stride, scale, stream);
}

}  // namespace journey::cuda
