// What every kernel file shares: the one place that launches, reading of the three input types, and the split of work
// into slices with its ordered sum.
//
// With JOURNEY_CUDA_EMULATION the same sources compile for the CPU, where tests run every kernel without a device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <set>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/host_device.h"
#include "kernels.h"

#ifndef JOURNEY_CUDA_EMULATION
#include <cuda_runtime.h>
#endif

namespace journey::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#ifndef JOURNEY_CUDA_EMULATION
// Allows a kernel all the dynamic shared memory that the current device has, once for each kernel and device: a limit
// that each launch set for itself could be lowered by another thread before the launch.
[[nodiscard]] inline cudaError_t allow_shared(const void* kernel) {
    static std::mutex mutex;
    static std::set<std::pair<const void*, int>> allowed;
    int device = 0, most = 0;
    cudaError_t status = cudaGetDevice(&device);
    const std::lock_guard<std::mutex> lock(mutex);
    if (status != cudaSuccess || allowed.count({kernel, device}) != 0) return status;
    cudaFuncAttributes attributes{};
    status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, kernel);
    const int dynamic = most - static_cast<int>(attributes.sharedSizeBytes);
    if (status == cudaSuccess)
        status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic);
    if (status == cudaSuccess) allowed.insert({kernel, device});
    return status;
}
#endif

struct Grid {
    int64_t x;
    int64_t y = 1;
    int64_t z = 1;
};

// Launches unless the grid is empty; a grid that the hardware cannot address is an error, not a wrap-around.
template <typename... params_t, typename... args_t>
[[nodiscard]] cudaError_t launch(
    void (*kernel)(params_t...),
    const Grid& grid,
    int threads,
    int64_t shared_bytes,
    cudaStream_t stream,
    const args_t&... args) {
    constexpr int64_t kMaxX = 0x7FFFFFFF, kMaxYZ = 65535;
    if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return cudaSuccess;
    if (grid.x > kMaxX || grid.y > kMaxYZ || grid.z > kMaxYZ) return cudaErrorInvalidConfiguration;
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
#ifdef JOURNEY_CUDA_EMULATION
    (void)stream;
    return emulation::run(blocks, threads, static_cast<size_t>(shared_bytes), [&] { kernel(args...); });
#else
    // More than 48 KiB, with what a kernel declares (16 KiB at most beside dynamic memory), go to those who ask.
    if (shared_bytes > (32 << 10)) {
        const cudaError_t status = allow_shared(reinterpret_cast<const void*>(kernel));
        if (status != cudaSuccess) return status;
    }
    kernel<<<blocks, static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), stream>>>(args...);
    return cudaGetLastError();
#endif
}

// The most dynamic shared memory that a block may have on the current device.
[[nodiscard]] inline cudaError_t max_shared_bytes(int* bytes) {
#ifdef JOURNEY_CUDA_EMULATION
    *bytes = emulation::machine.max_shared_bytes;
    return cudaSuccess;
#else
    int device = 0;
    const cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess) return status;
    return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
#endif
}

// The dynamic shared memory of a block, as floats, aligned to 16 bytes.
__device__ __forceinline__ float* dynamic_shared() {
#ifdef JOURNEY_CUDA_EMULATION
    return static_cast<float*>(emulation::dynamic_shared());
#else
    extern __shared__ __align__(16) float shared_floats[];
    return shared_floats;
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename input_t>
struct TypeOf {
    using type = input_t;
};

// Calls run(TypeOf<input_t>{}) with the C++ type of a dtype.
template <typename function_t>
[[nodiscard]] cudaError_t dispatch(DType dtype, const function_t& run) {
    switch (dtype) {
        case DType::kFloat32:
            return run(TypeOf<float>{});
        case DType::kFloat16:
            return run(TypeOf<__half>{});
        case DType::kBFloat16:
            return run(TypeOf<__nv_bfloat16>{});
    }
    return cudaErrorInvalidValue;
}

// The same with whether float32 operands are split for a product of float32 precision, as std::bool_constant.
template <typename function_t>
[[nodiscard]] cudaError_t dispatch(DType dtype, Precision precision, const function_t& run) {
    switch (dtype) {
        case DType::kFloat32:
            if (precision == Precision::kFloat32) return run(TypeOf<float>{}, std::true_type{});
            if (precision == Precision::kTf32) return run(TypeOf<float>{}, std::false_type{});
            return cudaErrorInvalidValue;
        case DType::kFloat16:
            return run(TypeOf<__half>{}, std::false_type{});
        case DType::kBFloat16:
            return run(TypeOf<__nv_bfloat16>{}, std::false_type{});
    }
    return cudaErrorInvalidValue;
}

// Four consecutive floats that move between shared memory and registers at once.
struct alignas(16) Float4 {
    float value[4];
};

struct alignas(8) Float2 {
    float value[2];
};

// A pointer to global memory whose parts the compiler forgets: it would add them up anew for every load.
__device__ __forceinline__ const char* computed(const char* pointer) {
#ifdef JOURNEY_CUDA_EMULATION
    return pointer;
#else
    size_t address = __cvta_generic_to_global(pointer);
    asm("" : "+l"(address));
    return static_cast<const char*>(__cvta_global_to_generic(address));
#endif
}

#ifndef JOURNEY_CUDA_EMULATION
template <size_t kBytes>
struct WordsOf;
template <>
struct WordsOf<16> {
    using type = uint4;
};
template <>
struct WordsOf<8> {
    using type = uint2;
};
template <>
struct WordsOf<4> {
    using type = uint32_t;
};
template <>
struct WordsOf<2> {
    using type = uint16_t;
};
#endif

// A struct of 2 to 16 bytes by one instruction. A plain copy may become one of each member, or sink behind a branch.
template <typename vector_t>
__device__ __forceinline__ vector_t load_vector(const vector_t* from) {
#ifdef JOURNEY_CUDA_EMULATION
    return *from;
#else
    using words_t = typename WordsOf<sizeof(vector_t)>::type;
    const words_t words = *reinterpret_cast<const words_t*>(from);
    vector_t vector;
    memcpy(&vector, &words, sizeof(vector));
    return vector;
#endif
}

// kWidth entries that are loaded at once.
template <typename input_t, int kWidth>
struct alignas(sizeof(input_t) * kWidth) Vector {
    input_t value[kWidth];
};

template <int kWidth, typename input_t>
__device__ __forceinline__ const Vector<input_t, kWidth>* vector_at(const input_t* at) {
    return reinterpret_cast<const Vector<input_t, kWidth>*>(at);
}

// Work items cut into runs of equal length, a function of their number alone.
struct Slices {
    int64_t count;
    int64_t length;
};

inline Slices make_slices(int64_t items, int64_t min_length, int64_t max_count) {
    const int64_t length = std::max(min_length, ceil_div(items, max_count));
    return Slices{ceil_div(items, length), length};
}

// Partial features of one operation, and what their sum is multiplied by.
struct SliceSum {
    const float* partials;  // [batch, num_slices, proj_dim]
    int64_t num_slices;
    float scale;
};

constexpr int kMaxSliceSums = 64;

// Those of several operations, in the order in which they are added.
struct SliceSums {
    SliceSum sum[kMaxSliceSums];
    int count;
};

// features[b, k] += scale * (partials[b, 0, k] + partials[b, 1, k] + ...), in this order, sum after sum.
[[nodiscard]] cudaError_t add_slice_sums(
    const SliceSums& sums,
    float* features,  // [batch, proj_dim], added to
    int64_t batch,
    int64_t proj_dim,
    int64_t features_stride,
    cudaStream_t stream);

// The same of one operation.
[[nodiscard]] inline cudaError_t sum_slices(
    const float* partials,
    float* features,
    int64_t batch,
    int64_t num_slices,
    int64_t proj_dim,
    int64_t features_stride,
    float scale,
    cudaStream_t stream) {
    SliceSums sums{};
    sums.sum[sums.count++] = SliceSum{partials, num_slices, scale};
    return add_slice_sums(sums, features, batch, proj_dim, features_stride, stream);
}

}  // namespace journey::cuda
