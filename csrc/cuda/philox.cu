// Random words and the noise of samples, as pure functions of (key, counter).
//
//     words:   out[i, :] = philox(keys[i], indices[i], minors[i], philox_stream)
//     normals: out[i, e] = normal e of the noise stream (keys[i], minors[i]), placed by common/philox.h::slot
//
// Bitwise equal to the CPU kernels: common/philox.h and normal.h compute both.
//
// Two numbers, for 20 draws of 256 images of 3 x 32 x 32: 63 MB written, and 3.9 M draws of ten rounds and two
// Box-Muller pairs, about 200 instructions each. On an H200 (4.8 TB/s; 132 SMs issue four warps' instructions at 1.8
// GHz): 13 us of memory, 26 us of arithmetic, which bounds it.
// Status, November 2026: tested on the CPU by emulation, not measured on a GPU yet (docs/development/kernels.md).
// Reference: journey/ops/reference.py::philox, noise. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC
// 2011.
#include "../common/normal.h"
#include "launch.h"

namespace journey::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSlotNumbers = 64, kSlotDraws = 16;  // 64 consecutive numbers come from 16 draws, see slot()

// Parallel over [n]: a thread owns one draw.
__global__ void __launch_bounds__(kThreads) philox_words_kernel(
    const uint64_t* __restrict__ keys,
    const uint64_t* __restrict__ indices,
    const uint32_t* __restrict__ minors,
    int64_t* __restrict__ out,  // [n, 4]
    const int64_t n,
    const Stream philox_stream) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= n) return;

    const Philox4 draw = philox(keys[i], indices[i], minors[i], philox_stream);
#pragma unroll
    for (int w = 0; w < 4; ++w) out[i * 4 + w] = draw.word[w];
}

// Parallel over [n, draws of a row]: a thread owns one draw, whose four normals lie 16 elements apart, so that 16
// threads write 16 consecutive elements.
__global__ void __launch_bounds__(kThreads) philox_normal_kernel(
    const uint64_t* __restrict__ keys,
    const uint32_t* __restrict__ minors,
    float* __restrict__ out,  // [n, numel]
    const int64_t n,
    const int64_t numel,
    const int64_t draws_per_row) {
    const int64_t draw_index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t i = draw_index / draws_per_row;
    if (i >= n) return;

    const int64_t index = draw_index - i * draws_per_row;
    const Philox4 draw = philox(keys[i], static_cast<uint64_t>(index), minors[i], kStreamNoise);
    const Normal2 low = normal2(draw.word[0], draw.word[1]), high = normal2(draw.word[2], draw.word[3]);
    const float normal[4] = {low.value[0], low.value[1], high.value[0], high.value[1]};
    const int64_t first = index / kSlotDraws * kSlotNumbers + index % kSlotDraws;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const int64_t e = first + w * kSlotDraws;
        if (e < numel) out[i * numel + e] = normal[w];
    }
}

}  // namespace

cudaError_t philox_words(const PhiloxWordsArgs& args, Workspace, cudaStream_t stream) {
    const Grid grid{ceil_div(args.n, kThreads)};
    const Stream use = static_cast<Stream>(args.stream);
    return launch(
        philox_words_kernel, grid, kThreads, 0, stream, args.keys, args.indices, args.minors, args.out, args.n, use);
}

cudaError_t philox_normal(const PhiloxNormalArgs& args, Workspace, cudaStream_t stream) {
    const int64_t draws_per_row = ceil_div(args.numel, kSlotNumbers) * kSlotDraws;
    const Grid grid{ceil_div(args.n * draws_per_row, kThreads)};
    return launch(
        philox_normal_kernel, grid, kThreads, 0, stream, args.keys, args.minors, args.out, args.n, args.numel,
        draws_per_row);
}

}  // namespace journey::cuda
