// Count sketch of the gradients of many small parameters in one launch: biases, norms, embeddings.
//
//     features[b, bucket_p(row, col)] += sign_p(row, col) * scale_p * grads_p[b, row, col] / sqrt(nnz)
//
// for every parameter p.
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
    const float* grads;
    int64_t first_step;
    int64_t row_begin;
    uint64_t key;
    int cols;
    float scale;
};

struct Items {
    Item item[kMaxItems];
    int count;
    int64_t num_steps;
    int64_t grads_stride;
};
static_assert(sizeof(Items) <= 3800, "kernel arguments are at most 4 KiB");

// Where the entries of one step are, and where they go.
struct Route {
    const float* from;  // entry of lane 0, of sample 0
    float scale;
    int columns;  // 0 where there is no step
    int bucket;   // of lane 0 without the mask
    uint32_t lane_mask;
    uint32_t signs;
};

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
        item.grads + local_row * item.cols + chunk * kLanes,
        item.scale,
        static_cast<int>(columns < kLanes ? columns : kLanes),
        static_cast<int>(bucket_row) * kLanes,
        placement.lane_mask,
        sketch_signs(item.key, repetition, row * chunks + chunk)};
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
                    values[i] = lane < route.columns ? route.from[b * items.grads_stride + lane] : 0.0f;
                }
#pragma unroll
                for (int i = 0; i < kReads; ++i) {
                    const Route& route = routes[step + i];
                    if (lane < route.columns)
                        sums[route.bucket + (lane ^ static_cast<int>(route.lane_mask))] +=
                            bits_float(float_bits(mul_rn(route.scale, values[i])) ^ (route.signs >> lane << 31));
                    // The next step may meet the same buckets in other lanes.
                    __syncwarp();
                }
            }
        }
    }
    float* partial = workspace + (b * num_slices + first_slice + blockIdx.y) * proj_dim;
    for (int k = lane; k < proj_dim; k += kLanes) partial[k] = sums[k];
}

// Parameters [first, first + kMaxItems) as a launch sees them, and where the next one's gradients begin.
Items take_items(const SketchManyArgs& args, size_t first, const float*& grads) {
    Items items{};
    items.grads_stride = args.grads_stride;
    for (size_t i = first; i < args.rows.size() && i < first + kMaxItems; ++i) {
        if (args.rows[i] == 0 || args.cols[i] == 0) continue;
        const int cols = static_cast<int>(args.cols[i]);
        items.item[items.count++] =
            Item{grads, items.num_steps, args.row_begins[i], args.keys[i], cols, static_cast<float>(args.scales[i])};
        items.num_steps += args.rows[i] * num_chunks(args.cols[i]);
        grads += args.rows[i] * args.cols[i];
    }
    return items;
}

Slices slices_of(const Items& items) { return make_slices(items.num_steps, kMinSteps, kMaxSlices); }

int64_t count_slices(const SketchManyArgs& args) {
    int64_t count = 0;
    const float* grads = args.grads;
    for (size_t first = 0; first < args.rows.size(); first += kMaxItems)
        count += slices_of(take_items(args, first, grads)).count;
    return count;
}

bool is_valid(const SketchManyArgs& args) {
    if (!args.lists_agree() || args.proj_dim % kLanes != 0 || args.nnz < 1) return false;
    for (size_t i = 0; i < args.rows.size(); ++i)
        if (args.rows[i] < 0 || args.cols[i] < 0 || args.cols[i] >= (int64_t{1} << 31)) return false;
    return true;
}

}  // namespace

int64_t sketch_many_workspace_floats(const SketchManyArgs& args) {
    return is_valid(args) ? args.batch * count_slices(args) * args.proj_dim : 0;
}

cudaError_t sketch_many(const SketchManyArgs& args, Workspace workspace, cudaStream_t stream) {
    if (!is_valid(args)) return cudaErrorInvalidValue;
    const int64_t num_slices = count_slices(args);
    if (num_slices == 0 || args.batch == 0 || args.proj_dim == 0) return cudaSuccess;
    if (workspace.data == nullptr) return cudaErrorInvalidValue;

    int64_t first_slice = 0;
    const float* grads = args.grads;
    for (size_t first = 0; first < args.rows.size(); first += kMaxItems) {
        const Items items = take_items(args, first, grads);
        const Slices slices = slices_of(items);
        const cudaError_t status = launch(
            sketch_many_kernel, Grid{args.batch, slices.count}, kLanes,
            args.proj_dim * static_cast<int64_t>(sizeof(float)), stream, items, workspace.data, slices.length,
            first_slice, num_slices, static_cast<int>(args.proj_dim), static_cast<uint32_t>(args.nnz));
        if (status != cudaSuccess) return status;
        first_slice += slices.count;
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.nnz)));
    return sum_slices(
        workspace.data, args.features, args.batch, num_slices, args.proj_dim, args.features_stride, scale, stream);
}

}  // namespace journey::cuda
