// Rows of float32 in 8 or 4 bits with a scale for each, see common/packed.h for what they are.
//
// A warp owns a row and goes through it twice: for its largest magnitude and, most of it now in L1 or L2, for its
// codes; in 4 bits once more between the two, for the squared errors of all clips at once. Lane l is lane l of the sums
// that common/packed.h fixes, so that the bits are those of the CPU.
//
// Two numbers, for 65,536 rows of 4096: 1.1 GB read and 0.27 GB (8 bits) or 0.13 GB (4 bits) written, and in 4 bits
// 9 operations on each entry for each of 16 clips. On an H200 (4.8 TB/s, 0.9 T warp instructions per second): 0.28 ms
// in 8 bits, 1.4 ms in 4. Predicted on 30 November 2026, not yet measured on a GPU. Tested on the CPU by emulation.
// Reference: journey/ops/reference_packed.py::pack_rows.
#include "../common/packed.h"
#include "tensor_core.h"

namespace journey::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpLanes;
static_assert(kWarpLanes == kPackedBlock, "a lane of the warp is a lane of the sums");

__device__ __forceinline__ Float4 entries_at(const float* row, int64_t i) {
    return load_vector(reinterpret_cast<const Float4*>(row + i));
}

// Magnitudes of floats are ordered as their bits are, infinity and NaN last.
__device__ __forceinline__ float largest_magnitude(const float* row, int64_t count) {
    uint32_t most = 0;
#pragma unroll 4
    for (int64_t i = lane_id() * 4; i < count; i += kWarpLanes * 4) {
        const Float4 entries = entries_at(row, i);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const uint32_t magnitude = float_bits(entries.value[e]) & 0x7FFFFFFFu;
            most = most > magnitude ? most : magnitude;
        }
    }
#pragma unroll
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
        const uint32_t other = shuffle_xor(most, mask);
        most = most > other ? most : other;
    }
    return bits_float(most);
}

// Scale of the clip with the least squared error, the same in every lane.
__device__ __forceinline__ float choose_scale(const float* row, int64_t count, float largest) {
    float inverse[kClips], sums[kClips];
#pragma unroll
    for (int c = 0; c < kClips; ++c) {
        inverse[c] = div_rn(1.0f, packed_scale(mul_rn(largest, clip(c)), largest_code(4)));
        sums[c] = 0.0f;
    }
#pragma unroll 2
    for (int64_t i = lane_id(); i < count; i += kWarpLanes) {
        const float entry = row[i];
#pragma unroll
        for (int c = 0; c < kClips; ++c) {
            const float exact = mul_rn(entry, inverse[c]);
            const float code = add_rn(add_rn(clamp_code(exact, largest_code(4)), kRounder), -kRounder);
            const float error = add_rn(exact, -code);
            sums[c] = add_rn(sums[c], mul_rn(error, error));
        }
    }
    float best = packed_scale(largest, largest_code(4)), least = 0.0f;
#pragma unroll
    for (int c = 0; c < kClips; ++c) {
#pragma unroll
        for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) sums[c] = add_rn(sums[c], shuffle_xor(sums[c], mask));
        const float scale = packed_scale(mul_rn(largest, clip(c)), largest_code(4));
        const float error = mul_rn(sums[c], mul_rn(clip(c), clip(c)));
        if (scale > 0.0f && (c == 0 || error < least)) {
            least = error;
            best = scale;
        }
    }
    return best;
}

// Four codes as the bytes of a word, the lowest first.
__device__ __forceinline__ uint32_t four_codes(const Float4& entries, float inverse, int bits) {
    uint32_t word = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const uint32_t kept = bits == 8 ? 255u : 15u;
        word |= (packed_code(entries.value[e], inverse, largest_code(bits)) & kept) << (8 * e);
    }
    return word;
}

// Parallel over rows: a warp owns one, a lane four entries of every 128 (in 8 bits) or eight of every 256 (in 4).
template <int kBits>
__global__ void __launch_bounds__(kThreads) pack_rows_kernel(const PackRowsArgs args) {
    const int64_t i = int64_t{blockIdx.x} * kWarps + warp_id();
    if (i >= args.num_rows) return;
    const float* row = args.rows + i * args.rows_stride;
    uint8_t* packed = args.packed + i * (args.proj_dim * kBits / 8);
    const float largest = largest_magnitude(row, args.proj_dim);
    float scale;
    if constexpr (kBits == 8)
        scale = packed_scale(largest, largest_code(8));
    else
        scale = choose_scale(row, args.proj_dim, largest);
    if (lane_id() == 0) args.scales[i] = scale;

    const bool empty = !(scale > 0.0f);  // or not finite
    const float inverse = div_rn(1.0f, scale);
    constexpr int kLaneBytes = 4, kBytes = kWarpLanes * kLaneBytes;
#pragma unroll 4
    for (int64_t at = lane_id() * kLaneBytes; at < args.proj_dim * kBits / 8; at += kBytes) {
        uint32_t word;
        if constexpr (kBits == 8) {
            word = four_codes(entries_at(row, at), inverse, 8);
        } else {
            const int64_t low = at / 16 * kPackedBlock + at % 16;
            word = four_codes(entries_at(row, low), inverse, 4) | four_codes(entries_at(row, low + 16), inverse, 4)
                                                                      << 4;
        }
        *reinterpret_cast<uint32_t*>(packed + at) = empty ? 0u : word;
    }
}

}  // namespace

cudaError_t pack_rows(const PackRowsArgs& args, Workspace, cudaStream_t stream) {
    if ((args.bits != 8 && args.bits != 4) || args.proj_dim % kPackedBlock != 0) return cudaErrorInvalidValue;
    const auto kernel = args.bits == 8 ? &pack_rows_kernel<8> : &pack_rows_kernel<4>;
    return launch(kernel, Grid{ceil_div(args.num_rows, kWarps)}, kThreads, 0, stream, args);
}

}  // namespace journey::cuda
