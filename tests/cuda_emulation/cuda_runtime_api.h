// Runs CUDA kernels on the CPU, one block after another, so that tests need no device.
//
// Every thread of a block is a fiber that runs alone until it reaches a barrier or its end, from the first thread to
// the last or, when a test asks, from the last to the first, and blocks likewise: a missing barrier, a race or a read
// of shared memory that the block has not written shows as results that differ, because static shared memory keeps what
// the block before left there and dynamic shared memory is NaN. A barrier that not all threads reach is an error, as
// are grids and blocks beyond the limits of the hardware.
// warp.h beside this file adds matrix products and asynchronous copies.
// Not emulated: the memory model, atomics, warp shuffles, several blocks at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
};

using cudaStream_t = struct EmulatedStream*;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStackBytes = 64 << 10;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Fiber {
    std::vector<char> stack;
    jmp_buf at;
    State state = State::kDone;
};

struct Machine {
    bool reversed = false;             // threads and blocks run from the last to the first
    bool tensor_cores = true;          // of the device
    int max_shared_bytes = 227 << 10;  // of a block of the device
    const char* failure = nullptr;     // what a thread did wrong
    std::vector<Fiber> fibers{kMaxThreads};
    jmp_buf scheduler;
    int current = 0;
    std::vector<char> dynamic_shared;
    const std::function<void()>* kernel = nullptr;
};

inline Machine machine;

inline void* dynamic_shared() { return machine.dynamic_shared.data(); }

// Gives control back to the scheduler; returns when the thread goes on.
inline void pause(State state) {
    Fiber& fiber = machine.fibers[machine.current];
    fiber.state = state;
    if (_setjmp(fiber.at) == 0) _longjmp(machine.scheduler, 1);
}

// The launch goes on, and its status tells.
inline void fail(const char* what) { machine.failure = what; }

inline void end_copies(int thread);

// A fiber lives on and runs one thread of each block.
inline void fiber_main() {
    for (;;) {
        (*machine.kernel)();
        end_copies(machine.current);
        pause(State::kDone);
    }
}

// Runs thread `i` until it pauses. A fiber is entered through its own stack once; from then on jumps, which unlike
// swapcontext make no system call, are enough.
inline void resume(int i) {
    machine.current = i;
    threadIdx = dim3(static_cast<unsigned>(i), 0, 0);
    Fiber& fiber = machine.fibers[i];
    if (_setjmp(machine.scheduler) != 0) return;
    if (!fiber.stack.empty()) _longjmp(fiber.at, 1);
    fiber.stack.resize(kStackBytes);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.data();
    context.uc_stack.ss_size = fiber.stack.size();
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    setcontext(&context);
}

// Lets threads [begin, end) go on if all of them wait at this barrier; returns how many may.
inline int release(int begin, int end, State barrier) {
    for (int i = begin; i < end; ++i)
        if (machine.fibers[i].state != barrier) return 0;
    for (int i = begin; i < end; ++i) machine.fibers[i].state = State::kReady;
    return end - begin;
}

inline bool run_block(int threads) {
    std::fill(machine.dynamic_shared.begin(), machine.dynamic_shared.end(), static_cast<char>(0xFF));
    for (int i = 0; i < threads; ++i) machine.fibers[i].state = State::kReady;

    for (int done = 0, ready = threads; done < threads;) {
        if (ready == 0) {
            std::fprintf(
                stderr, "cuda emulation: %d of %d threads wait at a barrier the others miss\n", threads - done,
                threads);
            for (Fiber& fiber : machine.fibers) fiber.stack.clear();  // they hang in the kernel: start afresh
            return false;
        }
        for (int i = 0; i < threads; ++i) {
            const int thread = machine.reversed ? threads - 1 - i : i;
            if (machine.fibers[thread].state != State::kReady) continue;
            resume(thread);
            done += machine.fibers[thread].state == State::kDone;
        }
        ready = release(0, threads, State::kAtBlockBarrier);
        for (int warp = 0; warp < threads; warp += kWarp)
            ready += release(warp, warp + kWarp < threads ? warp + kWarp : threads, State::kAtWarpBarrier);
    }
    return true;
}

inline cudaError_t run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
    if (threads < 1 || threads > kMaxThreads || shared_bytes > static_cast<size_t>(machine.max_shared_bytes) ||
        grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535 || grid.x == 0 || grid.y == 0 || grid.z == 0)
        return cudaErrorInvalidConfiguration;
    gridDim = grid;
    blockDim = dim3(static_cast<unsigned>(threads));
    machine.dynamic_shared.resize(shared_bytes);
    machine.kernel = &kernel;
    machine.failure = nullptr;
    const uint64_t plane = uint64_t{grid.x} * grid.y, blocks = plane * grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t block = machine.reversed ? blocks - 1 - i : i;
        blockIdx = dim3(
            static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block % plane / grid.x),
            static_cast<unsigned>(block / plane));
        if (!run_block(threads)) return cudaErrorLaunchFailure;
    }
    if (machine.failure == nullptr) return cudaSuccess;
    std::fprintf(stderr, "cuda emulation: %s\n", machine.failure);
    return cudaErrorLaunchFailure;
}

}  // namespace emulation

inline void __syncthreads() { emulation::pause(emulation::State::kAtBlockBarrier); }
inline void __syncwarp() { emulation::pause(emulation::State::kAtWarpBarrier); }

struct __half {
    uint16_t bits;
};

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                            : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                            : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return x.bits >> 15 ? -magnitude : magnitude;
}

inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

#include "warp.h"
