// Weight and bias gradients of normalisation layers, per row: what a backward pass sums over all rows at once.
//
//     weight[n, c] = sum_p (x[n, c, p] - mean) * scale * g[n, c, p]        bias[n, c] = sum_p g[n, c, p]
//
// with scale = 1 / sqrt(variance + eps). A group norm has one mean and variance for some channels of a row over all
// positions, a layer norm one for all channels of a position, an RMS norm a mean of zero. Sums are in float32, each by
// one thread or in the order of a butterfly of 32.
//
// Group norm: a block owns the channels that are normalised together, which lie side by side, and goes through x twice,
// the second time from L1 or L2, and through g once: after the mean, it sums squares and products at once, since the
// scale is a factor of all. Layer norm: a block owns a slice of positions and goes through them 32 at a time, first a
// warp for each position, for its mean and scale, then a thread for some channels, for its sums over the 32.
//
// Two numbers, for 128 rows of 128 channels of 32x32 positions, bf16, in groups of 4 channels: 67 MB read once, and
// about 11 instructions for an entry of x and g in both passes. On an H200 (4.8 TB/s, 0.9 T warp instructions per
// second): 14 us, of which instructions take 6. Predicted on 30 November 2026, not yet measured on a GPU. Tested on the
// CPU by emulation.
// Reference: journey/ops/reference.py::norm_grads.
#include <cmath>

#include "tensor_core.h"

namespace journey::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kBatch = 4;                     // vectors of x and of g that are on their way before the first is used
constexpr int kChunk = 32;                    // positions of a layer norm between two barriers
constexpr int64_t kMinPerSlice = 4 * kChunk;  // positions: the sums of a slice cost as much traffic as one or two
constexpr int64_t kMaxSlices = 64;

// The sum over a warp, on every lane.
__device__ __forceinline__ float sum_warp(float x) {
#pragma unroll
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// The sum over a block, on every thread.
__device__ __forceinline__ float sum_block(float x, float* of_warps) {
    const float sum = sum_warp(x);
    if (lane_id() == 0) of_warps[warp_id()] = sum;
    // All warps have written.
    __syncthreads();
    return (of_warps[0] + of_warps[1]) + (of_warps[2] + of_warps[3]);
}

__device__ __forceinline__ float scale_of(float squares, int64_t count, float eps) {
    return div_rn(1.0f, sqrtf(squares / static_cast<float>(count) + eps));
}

// Parallel over [rows, groups]: a block owns one, a warp every fourth of its channels.
template <typename input_t, int kWidth>
__global__ void __launch_bounds__(kThreads) group_norm_kernel(const NormGradsArgs args, const int64_t group_channels) {
    __shared__ float sums[2][kWarps];
    const int64_t size = group_channels * args.positions, row = blockIdx.x / args.groups;
    const int64_t first_channel = (blockIdx.x - row * args.groups) * group_channels;
    const input_t* x = static_cast<const input_t*>(args.x) + blockIdx.x * size;
    const input_t* g = static_cast<const input_t*>(args.g) + blockIdx.x * size;
    float* weight = args.grads + row * 2 * args.channels + first_channel;
    float* bias = weight + args.channels;

    float mean = 0.0f;
    if (args.centered) {
        float sum = 0.0f;
        const auto add = [&](const Vector<input_t, kWidth>& entries) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) sum += to_float(entries.value[j]);
        };
        constexpr int64_t kStep = kThreads * kWidth;
        int64_t i = threadIdx.x * kWidth;
        for (; i + (2 * kBatch - 1) * kStep < size; i += 2 * kBatch * kStep) {
            Vector<input_t, kWidth> batch[2 * kBatch];
#pragma unroll
            for (int k = 0; k < 2 * kBatch; ++k) batch[k] = load_vector(vector_at<kWidth>(x + i + k * kStep));
#pragma unroll
            for (int k = 0; k < 2 * kBatch; ++k) add(batch[k]);
        }
        for (; i < size; i += kStep) add(load_vector(vector_at<kWidth>(x + i)));
        mean = sum_block(sum, sums[0]) / static_cast<float>(size);
    }

    // The sums of a channel, without the scale, by its warp.
    float squares = 0.0f;
    for (int64_t c = warp_id(); c < group_channels; c += kWarps) {
        float products = 0.0f, total = 0.0f;
        const auto add = [&](const Vector<input_t, kWidth>& inputs, const Vector<input_t, kWidth>& outputs) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                const float off = to_float(inputs.value[j]) - mean, grad = to_float(outputs.value[j]);
                squares = fmaf(off, off, squares);
                products = fmaf(off, grad, products);
                total += grad;
            }
        };
        const input_t *from_x = x + c * args.positions, *from_g = g + c * args.positions;
        constexpr int64_t kStep = kWarpLanes * kWidth;
        int64_t p = lane_id() * kWidth;
        for (; p + (kBatch - 1) * kStep < args.positions; p += kBatch * kStep) {
            Vector<input_t, kWidth> inputs[kBatch], outputs[kBatch];
#pragma unroll
            for (int k = 0; k < kBatch; ++k) {
                inputs[k] = load_vector(vector_at<kWidth>(from_x + p + k * kStep));
                outputs[k] = load_vector(vector_at<kWidth>(from_g + p + k * kStep));
            }
#pragma unroll
            for (int k = 0; k < kBatch; ++k) add(inputs[k], outputs[k]);
        }
        for (; p < args.positions; p += kStep)
            add(load_vector(vector_at<kWidth>(from_x + p)), load_vector(vector_at<kWidth>(from_g + p)));
        products = sum_warp(products), total = sum_warp(total);
        if (lane_id() == 0) weight[c] = products, bias[c] = total;
    }
    const float scale = scale_of(sum_block(squares, sums[1]), size, static_cast<float>(args.eps));
    // What this thread wrote.
    if (lane_id() == 0)
        for (int64_t c = warp_id(); c < group_channels; c += kWarps) weight[c] = mul_rn(weight[c], scale);
}

// Mean and scale of positions [first, first + count), a warp for each.
template <int kWidth, typename input_t>
__device__ __forceinline__ void find_statistics(
    const NormGradsArgs& args, const input_t* x, int count, float* means, float* scales) {
    const float share = 1.0f / static_cast<float>(args.channels);
    for (int p = warp_id(); p < count; p += kWarps) {
        const input_t* position = x + p * args.channels;
        float sum = 0.0f, squares = 0.0f;
        if (args.centered) {
#pragma unroll 4
            for (int64_t c = lane_id() * kWidth; c < args.channels; c += kWarpLanes * kWidth) {
                const Vector<input_t, kWidth> entries = load_vector(vector_at<kWidth>(position + c));
#pragma unroll
                for (int j = 0; j < kWidth; ++j) sum += to_float(entries.value[j]);
            }
        }
        const float mean = sum_warp(sum) * share;
#pragma unroll 4
        for (int64_t c = lane_id() * kWidth; c < args.channels; c += kWarpLanes * kWidth) {
            const Vector<input_t, kWidth> entries = load_vector(vector_at<kWidth>(position + c));
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                const float off = to_float(entries.value[j]) - mean;
                squares = fmaf(off, off, squares);
            }
        }
        const float scale = scale_of(sum_warp(squares), args.channels, static_cast<float>(args.eps));
        if (lane_id() == 0) means[p] = mean, scales[p] = scale;
    }
}

// Parallel over [rows, slices of positions]: a block owns one, and a thread the sums of every 128th kWidth channels, in
// memory between chunks.
template <typename input_t, int kWidth>
__global__ void __launch_bounds__(kThreads)
    layer_norm_kernel(const NormGradsArgs args, float* __restrict__ workspace, const Slices slices) {
    __shared__ float means[kChunk], scales[kChunk];
    const int64_t row = blockIdx.x, slice = blockIdx.y, begin = slice * slices.length;
    const int64_t end = begin + slices.length < args.positions ? begin + slices.length : args.positions;
    const bool alone = slices.count == 1;
    float* result = args.grads + row * 2 * args.channels;
    float* sums = alone ? result : workspace + (row * slices.count + slice) * 2 * args.channels;
    for (int64_t first = begin; first < end; first += kChunk) {
        const int count = static_cast<int>(end - first < kChunk ? end - first : kChunk);
        const int64_t offset = (row * args.positions + first) * args.channels;
        const input_t *x = static_cast<const input_t*>(args.x) + offset,
                      *g = static_cast<const input_t*>(args.g) + offset;
        find_statistics<kWidth>(args, x, count, means, scales);
        // Means and scales are written.
        __syncthreads();
        for (int64_t c = threadIdx.x * kWidth; c < args.channels; c += kThreads * kWidth) {
            float weight[kWidth], bias[kWidth];
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                weight[j] = first == begin ? 0.0f : sums[c + j];
                bias[j] = first == begin ? 0.0f : sums[args.channels + c + j];
            }
#pragma unroll 8
            for (int p = 0; p < count; ++p) {
                const Vector<input_t, kWidth> inputs = load_vector(vector_at<kWidth>(x + p * args.channels + c));
                const Vector<input_t, kWidth> outputs = load_vector(vector_at<kWidth>(g + p * args.channels + c));
#pragma unroll
                for (int j = 0; j < kWidth; ++j) {
                    const float grad = to_float(outputs.value[j]);
                    weight[j] = fmaf(mul_rn(to_float(inputs.value[j]) - means[p], scales[p]), grad, weight[j]);
                    bias[j] += grad;
                }
            }
#pragma unroll
            for (int j = 0; j < kWidth; ++j) sums[c + j] = weight[j], sums[args.channels + c + j] = bias[j];
        }
        // They have been used.
        __syncthreads();
    }
    // Several slices are added to zeros, by the launch that follows.
    if (!alone && slice == 0)
        for (int64_t i = threadIdx.x; i < 2 * args.channels; i += kThreads) result[i] = 0.0f;
}

Slices layer_slices(const NormGradsArgs& args) {
    return args.groups == 0 ? make_slices(args.positions, kMinPerSlice, kMaxSlices) : Slices{1, args.positions};
}

bool is_valid(const NormGradsArgs& args) {
    return args.groups >= 0 && args.channels > 0 && args.positions > 0 &&
           (args.groups == 0 || args.channels % args.groups == 0);
}

// Whether `count` entries that follow one another everywhere are whole vectors.
template <typename input_t, int kWidth>
bool has_vectors(const NormGradsArgs& args, int64_t count) {
    constexpr uintptr_t kBytes = sizeof(input_t) * kWidth;
    return count % kWidth == 0 && reinterpret_cast<uintptr_t>(args.x) % kBytes == 0 &&
           reinterpret_cast<uintptr_t>(args.g) % kBytes == 0;
}

template <typename input_t>
cudaError_t launch_norm(const NormGradsArgs& args, const Slices& slices, float* workspace, cudaStream_t stream) {
    if (args.groups == 0) {
        const auto kernel = has_vectors<input_t, 2>(args, args.channels) ? &layer_norm_kernel<input_t, 2>
                                                                         : &layer_norm_kernel<input_t, 1>;
        return launch(kernel, Grid{args.num_rows, slices.count}, kThreads, 0, stream, args, workspace, slices);
    }
    // Of few positions most lanes would have no vector.
    constexpr int kWidth = 16 / sizeof(input_t);
    const bool vectors = has_vectors<input_t, kWidth>(args, args.positions) && args.positions >= 8 * kWidth;
    const auto kernel = vectors ? &group_norm_kernel<input_t, kWidth> : &group_norm_kernel<input_t, 1>;
    const int64_t group_channels = args.channels / args.groups;
    return launch(kernel, Grid{args.num_rows * args.groups}, kThreads, 0, stream, args, group_channels);
}

}  // namespace

int64_t norm_grads_workspace_floats(const NormGradsArgs& args) {
    const int64_t count = is_valid(args) ? layer_slices(args).count : 1;
    return count > 1 ? args.num_rows * count * 2 * args.channels : 0;
}

cudaError_t norm_grads(const NormGradsArgs& args, Workspace workspace, cudaStream_t stream) {
    if (!is_valid(args)) return cudaErrorInvalidValue;
    const Slices slices = layer_slices(args);
    if (slices.count > 1 && workspace.data == nullptr && args.num_rows > 0) return cudaErrorInvalidValue;
    const cudaError_t status = dispatch(args.dtype, [&](auto type) {
        return launch_norm<typename decltype(type)::type>(args, slices, workspace.data, stream);
    });
    if (status != cudaSuccess || slices.count == 1) return status;
    const int64_t length = 2 * args.channels;
    return sum_slices(workspace.data, args.grads, args.num_rows, slices.count, length, length, 1.0f, stream);
}

}  // namespace journey::cuda
