// One spelling for code that is compiled for the host and for the device, and the arithmetic operations that must round
// the same on both.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define JOURNEY_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define JOURNEY_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace journey {

// A product and a sum that no compiler may fuse into an FMA, and a division that none may approximate, so that host and
// device agree to the last bit. On the host the build passes -ffp-contract=off.
JOURNEY_HOST_DEVICE float mul_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

JOURNEY_HOST_DEVICE float add_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

JOURNEY_HOST_DEVICE float div_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

JOURNEY_HOST_DEVICE uint32_t float_bits(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    return bits;
#endif
}

JOURNEY_HOST_DEVICE float bits_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float x;
    __builtin_memcpy(&x, &bits, sizeof(x));
    return x;
#endif
}

}  // namespace journey
