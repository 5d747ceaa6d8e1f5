// Warp instructions: matrix products of small fragments, their loads and asynchronous copies (sm_80 and later),
// shuffles.
//
// A fragment is spread over the 32 lanes of a warp. With group = lane / 4, t = lane % 4, and a word of 4 bytes holding
// two consecutive k of a half type or one of TF32, k in words:
//
//     a[16, 8 words]   word 0: (group, t)   1: (group + 8, t)   2: (group, t + 4)   3: (group + 8, t + 4)
//     b[8 words, 8]    word 0: (t, group)   1: (t + 4, group)
//     c[16, 8]         value 0: (group, 2 t)   1: (group, 2 t + 1)   2: (group + 8, 2 t)   3: (group + 8, 2 t + 1)
//
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 / mma.m16n8k8".) In words the half types and TF32 have one layout, so
// what loads fragments need not know the type. Below sm_80 there are no such products of bf16 and TF32:
// has_tensor_cores() is false and callers multiply with FMAs; copies are synchronous there.
// With JOURNEY_CUDA_EMULATION tests/ops/cuda_emulation/warp.h stands in for the instructions.
#pragma once

#include "launch.h"

namespace journey::cuda {

constexpr int kWarpLanes = 32;
constexpr uint32_t kTf32Bits = 0xFFFFE000u;  // of a float: sign, 8 bits of exponent, 10 of fraction

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarpLanes; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarpLanes; }

#ifdef JOURNEY_CUDA_EMULATION

inline bool has_tensor_cores() { return emulation::machine.tensor_cores; }
inline void load_matrices(uint32_t (&words)[4], const uint32_t* row) { emulation::load_matrices(words, row); }
inline uint32_t to_tf32(float x) { return emulation::to_tf32(x); }
template <typename value_t>
inline value_t shuffle_xor(value_t x, int mask) {
    return emulation::shuffle_xor(x, mask);
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    return emulation::permute_bytes(a, b, selector);
}

template <typename input_t>
inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulation::mma<input_t>(c, a, b);
}

inline void copy_async(void* to, const void* from, int bytes) { emulation::copy_async(to, from, bytes); }
inline void commit_copies() { emulation::commit_copies(); }

template <int kYounger>
inline void wait_for_copies() {
    emulation::wait_for_copies(kYounger);
}

#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define JOURNEY_BEFORE_SM80
#endif

__device__ __forceinline__ constexpr bool has_tensor_cores() {
#ifdef JOURNEY_BEFORE_SM80
    return false;
#else
    return true;
#endif
}

// The value of the lane whose number differs in the bits of `mask`; the whole warp calls.
template <typename value_t>
__device__ __forceinline__ value_t shuffle_xor(value_t x, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, x, mask);
}

// Byte i is that of the eight of a and b, those of a first, whose number is in bits [4 i, 4 i + 3) of the selector.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}

// Where something lies in shared memory, as the instructions want it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four matrices of 8 rows of 4 words: lane l gives the first word of row l % 8 of matrix l / 8, in shared memory and
// aligned to 16 bytes, and receives word l % 4 of row l / 4 of each. The whole warp calls.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const uint32_t* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The nearest TF32 number, ties away from zero, as the bits of a float; those outside kTf32Bits mean nothing.
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t bits = 0;
#ifndef JOURNEY_BEFORE_SM80
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#endif
    return bits;
}

#define JOURNEY_MMA(shape_and_types)                               \
    asm volatile("mma.sync.aligned." shape_and_types               \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
                 "{%0, %1, %2, %3};"                               \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// c += a * b; products are exact, sums in fp32 that may round towards zero. The whole warp calls: volatile keeps the
// compiler from moving a product into a branch that not all lanes take. Of TF32 operands only kTf32Bits are read.
template <typename input_t>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#ifdef JOURNEY_BEFORE_SM80
template <typename input_t>
__device__ __forceinline__ void mma(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {}
#else
template <>
__device__ __forceinline__ void mma<float>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    JOURNEY_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}

template <>
__device__ __forceinline__ void mma<__half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    JOURNEY_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}

template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    JOURNEY_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
#endif
#undef JOURNEY_MMA

// Copies the first `bytes` (0 to 16) of 16 bytes to shared memory and zeros behind them; both ends aligned to 16 bytes,
// `from` readable only as far as it is copied. Below sm_80 at once, else done after wait_for_copies.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
#ifdef JOURNEY_BEFORE_SM80
    uint4 words = make_uint4(0, 0, 0, 0);
    if (bytes == 16) {
        words = *static_cast<const uint4*>(from);
    } else {
        uint32_t part[4] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (2 * i < bytes)
                part[i / 2] |= static_cast<uint32_t>(static_cast<const unsigned short*>(from)[i]) << (i % 2 * 16);
        words = make_uint4(part[0], part[1], part[2], part[3]);
    }
    *static_cast<uint4*>(to) = words;
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
#endif
}

// Makes one group of this thread's copies since the last.
__device__ __forceinline__ void commit_copies() {
#ifndef JOURNEY_BEFORE_SM80
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but for the youngest kYounger groups. Other threads see them after a barrier.
template <int kYounger>
__device__ __forceinline__ void wait_for_copies() {
#ifndef JOURNEY_BEFORE_SM80
    asm volatile("cp.async.wait_group %0;" ::"n"(kYounger) : "memory");
#endif
}

#undef JOURNEY_BEFORE_SM80
#endif

}  // namespace journey::cuda
