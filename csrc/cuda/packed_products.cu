// Products of a few queries with packed rows.
//
//     out[q, i] = scales[i] * sum over k of queries[q, k] * code k of row i
//
// A warp owns four rows and eight queries (one or four where there are not more). In a step a lane takes 16 bytes of
// each row, 16 or 32 codes. They and the queries of a step are copied to shared memory asynchronously, a step ahead;
// queries are laid out so that the lanes of a warp read neighbouring vectors, and are shared by the 64 rows of a block.
// Bytes become floats as the low bits of 2^23, because conversions have an eighth of the rate of other instructions. At
// the end the lanes of a warp fold their sums in halves, so that a lane keeps the sum of one row and query.
//
// A product is summed in 32 lanes in the order of k, then folded: what comes with it changes no bit. Its error is at
// most (proj_dim / 32 + 40) * 2^-24 of the sum of magnitudes.
//
// Floor: proj_dim * bits / 8 bytes of each row; for a million rows of 4096 in 8 bits 4.1 GB, on an H200 (4.8 TB/s)
// 0.85 ms. By instructions (docs/results/machine-code.md; 0.9 T of warps in a second) 0.5 ms for one query, 1 ms for
// four and 1.6 ms for eight, which are bound by arithmetic. Predicted on 30 November 2026, not yet measured on a GPU.
// Tested on the CPU by emulation. Reference: journey/ops/reference_packed.py::packed_products.
#include <cmath>

#include "../common/packed.h"
#include "tensor_core.h"

namespace journey::cuda {
namespace {

constexpr int kMostWarps = 16;  // of a block; half of them where shared memory is small
constexpr int kMostThreads = kMostWarps * kWarpLanes;
constexpr int kRows = 4;  // of a warp: at this number shared memory is read as fast as FMAs use it
constexpr int kLoadBytes = 16;
constexpr uint32_t kFloatOf2To23 = 0x4B000000u;

template <int kBits>
constexpr int kLaneCodes = kLoadBytes * 8 / kBits;  // of a row in a step
template <int kBits>
constexpr int kStepCodes = kWarpLanes * kLaneCodes<kBits>;
template <int kBits, int kQueries>
constexpr int kStageVectors = kQueries * kStepCodes<kBits> / 4;  // of four floats

struct alignas(16) Codes {
    uint32_t word[kLoadBytes / 4];
};

struct alignas(8) Word2 {
    uint32_t word[2];
};

// Starts to copy the queries of the step at `k`: vector j of a lane lies at [query, j, lane]. Zeros beyond the queries
// and their ends.
template <int kBits, int kQueries>
__device__ __forceinline__ void copy_queries(
    const PackedProductsArgs& args, int64_t first_query, int64_t k, Float4* stage) {
    constexpr int kVectors = kStepCodes<kBits> / 4;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    // A block is a multiple of kVectors threads, so a thread copies the same columns of some queries.
    const int64_t column = k + thread % kWarpLanes * kLaneCodes<kBits> + thread % kVectors / kWarpLanes * 4;
    int64_t query = first_query + thread / kVectors;
    const float* from = args.queries + query * args.queries_stride + column;
#pragma unroll 1  // saves registers
    for (int at = thread; at < kStageVectors<kBits, kQueries>; at += threads) {
        const bool inside = query < args.num_queries && column < args.proj_dim;
        copy_async(stage + at, inside ? from : args.queries, inside ? 16 : 0);
        query += threads / kVectors;
        from += threads / kVectors * args.queries_stride;
    }
}

// Starts to copy this lane's codes of the step at `k` of each row, the last row again where there are not enough; zeros
// beyond their end. Where rows are is computed again in each step, which saves registers.
template <int kBits>
__device__ __forceinline__ void copy_codes(const PackedProductsArgs& args, int64_t first_row, int64_t k, Codes* stage) {
    const int64_t column = k + lane_id() * kLaneCodes<kBits>;
    const bool inside = column < args.proj_dim;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const int64_t row = first_row + r < args.num_rows ? first_row + r : args.num_rows - 1;
        copy_async(
            stage + (warp_id() * kRows + r) * kWarpLanes + lane_id(),
            args.packed + row * args.packed_stride + (inside ? column * kBits / 8 : 0), inside ? kLoadBytes : 0);
    }
}

// The four codes of a word as floats; of 4 bits those in the low halves of its bytes.
template <int kBits>
__device__ __forceinline__ Float4 floats_of(uint32_t word) {
    constexpr uint32_t kOffset = kBits == 8 ? 128u : 8u;  // makes two's complement a number without sign
    constexpr uint32_t kOffsets = kBits == 8 ? 0x80808080u : 0x88888888u;
    uint32_t bytes = word ^ kOffsets;
    if (kBits == 4) bytes &= 0x0F0F0F0Fu;
    Float4 floats;
#pragma unroll
    for (uint32_t b = 0; b < 4; ++b)
        floats.value[b] =
            bits_float(permute_bytes(bytes, kFloatOf2To23, 0x7440u + b)) - bits_float(kFloatOf2To23 + kOffset);
    return floats;
}

// Adds a step to the sums of rows and queries, two words of each row at a time: in 4 bits first the low halves of all
// bytes, then the high ones.
template <int kBits, int kQueries>
__device__ __forceinline__ void multiply_step(
    const Codes* code_stage, const Float4* query_stage, float (&sums)[kRows * kQueries]) {
    constexpr int kVectors = kLaneCodes<kBits> / 4;
#pragma unroll 1  // saves registers
    for (int pair = 0; pair < kVectors / 2; ++pair) {
        uint32_t words[kRows][2];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const Codes& codes = code_stage[(warp_id() * kRows + r) * kWarpLanes + lane_id()];
            const Word2 two = *reinterpret_cast<const Word2*>(codes.word + pair % 2 * 2);
            words[r][0] = two.word[0] >> (pair / 2 * 4);
            words[r][1] = two.word[1] >> (pair / 2 * 4);
        }
#pragma unroll
        for (int w = 0; w < 2; ++w) {
            Float4 row[kRows];
#pragma unroll
            for (int r = 0; r < kRows; ++r) row[r] = floats_of<kBits>(words[r][w]);
#pragma unroll
            for (int q = 0; q < kQueries; ++q) {
                const Float4 query = query_stage[(q * kVectors + pair * 2 + w) * kWarpLanes + lane_id()];
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    float& sum = sums[r * kQueries + q];
#pragma unroll
                    for (int e = 0; e < 4; ++e) sum = fmaf(row[r].value[e], query.value[e], sum);
                }
            }
        }
    }
}

// Folds the first kCount sums of the lanes: the half of them goes to the lanes whose bit kMask is not set, the other
// half to the others; a single one to all. What a lane keeps in the end is number `index`.
template <int kMask, int kCount, int kSums>
__device__ __forceinline__ void fold(float (&sums)[kSums], int& index) {
    if constexpr (kCount == 1) {
        sums[0] = add_rn(sums[0], shuffle_xor(sums[0], kMask));
    } else {
        const bool upper = (lane_id() & kMask) != 0;
#pragma unroll
        for (int i = 0; i < kCount / 2; ++i) {
            const float kept = upper ? sums[i + kCount / 2] : sums[i];
            const float given = upper ? sums[i] : sums[i + kCount / 2];
            sums[i] = add_rn(kept, shuffle_xor(given, kMask));
        }
        if (upper) index += kCount / 2;
    }
    if constexpr (kMask > 1) fold<kMask / 2, kCount == 1 ? 1 : kCount / 2>(sums, index);
}

// Parallel over [rows, queries], queries first, so that blocks that read the same rows meet in L2: a block is 64 rows
// (32 of half the warps) and kQueries queries, a warp owns 4 of the rows, a lane 16 bytes of each in every step.
template <int kBits, int kQueries>
__global__ void __launch_bounds__(kMostThreads, 1)
    packed_products_kernel(const PackedProductsArgs args, const int64_t query_blocks) {
    const int num_warps = static_cast<int>(blockDim.x) / kWarpLanes;
    const int code_vectors = num_warps * kRows * kWarpLanes;
    Float4* query_stages = reinterpret_cast<Float4*>(dynamic_shared());
    Codes* code_stages = reinterpret_cast<Codes*>(query_stages + 2 * kStageVectors<kBits, kQueries>);
    const int64_t first_query = blockIdx.x % query_blocks * kQueries;
    const int64_t first_row = (blockIdx.x / query_blocks * num_warps + warp_id()) * kRows;
    float sums[kRows * kQueries] = {};
    copy_queries<kBits, kQueries>(args, first_query, 0, query_stages);
    copy_codes<kBits>(args, first_row, 0, code_stages);
    commit_copies();
    int stage = 0;
    for (int64_t k = 0; k < args.proj_dim; k += kStepCodes<kBits>, stage ^= 1) {
        wait_for_copies<0>();
        // The stage is written by all, and nobody reads the other any more.
        __syncthreads();
        const int64_t next = k + kStepCodes<kBits>;
        if (next < args.proj_dim) {
            copy_queries<kBits, kQueries>(
                args, first_query, next, query_stages + (stage ^ 1) * kStageVectors<kBits, kQueries>);
            copy_codes<kBits>(args, first_row, next, code_stages + (stage ^ 1) * code_vectors);
            commit_copies();
        }
        multiply_step<kBits, kQueries>(
            code_stages + stage * code_vectors, query_stages + stage * kStageVectors<kBits, kQueries>, sums);
    }

    int index = 0;
    fold<kWarpLanes / 2, kRows * kQueries>(sums, index);
    const int64_t row = first_row + index / kQueries, query = first_query + index % kQueries;
    constexpr int kSame = kWarpLanes / (kRows * kQueries);  // neighbouring lanes with the same sum
    if (lane_id() % kSame == 0 && row < args.num_rows && query < args.num_queries)
        args.out[query * args.out_stride + row] = mul_rn(args.scales[row], sums[0]);
}

template <int kBits, int kQueries>
constexpr int64_t shared_bytes(int num_warps) {
    return 2 * (kStageVectors<kBits, kQueries> * sizeof(Float4) + num_warps * kRows * kWarpLanes * sizeof(Codes));
}

template <int kBits, int kQueries>
cudaError_t launch_products(const PackedProductsArgs& args, int max_bytes, cudaStream_t stream) {
    const int warps = shared_bytes<kBits, kQueries>(kMostWarps) <= max_bytes ? kMostWarps : kMostWarps / 2;
    const int64_t query_blocks = ceil_div(args.num_queries, kQueries);
    const Grid grid{query_blocks * ceil_div(args.num_rows, warps * kRows)};
    return launch(
        &packed_products_kernel<kBits, kQueries>, grid, warps * kWarpLanes, shared_bytes<kBits, kQueries>(warps),
        stream, args, query_blocks);
}

template <int kBits>
cudaError_t launch_bits(const PackedProductsArgs& args, cudaStream_t stream) {
    int max_bytes = 0;
    const cudaError_t status = max_shared_bytes(&max_bytes);
    if (status != cudaSuccess) return status;
    if (args.num_queries == 1) return launch_products<kBits, 1>(args, max_bytes, stream);
    if (args.num_queries <= 4 || shared_bytes<kBits, 8>(kMostWarps / 2) > max_bytes)
        return launch_products<kBits, 4>(args, max_bytes, stream);
    return launch_products<kBits, 8>(args, max_bytes, stream);
}

}  // namespace

cudaError_t packed_products(const PackedProductsArgs& args, Workspace, cudaStream_t stream) {
    if (args.proj_dim % kPackedBlock != 0) return cudaErrorInvalidValue;
    if (args.bits == 8) return launch_bits<8>(args, stream);
    if (args.bits == 4) return launch_bits<4>(args, stream);
    return cudaErrorInvalidValue;
}

}  // namespace journey::cuda
