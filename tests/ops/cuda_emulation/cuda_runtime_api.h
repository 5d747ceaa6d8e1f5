// Runs CUDA kernels on the CPU, one block after another, so that tests need no device.
//
// Every thread of a block is a fiber that runs alone until it reaches a barrier or its end. A warp runs as far ahead of
// the others as block barriers let it: the first warp before all others, the last before all others, or, in the third
// order, by chance; threads of a warp between its barriers, and blocks, likewise. So a missing barrier, a race or a
// read of shared memory that the block has not written shows as results that differ from one order to the next, or as
// NaN, which all shared memory is at a block's start. A barrier that not all threads
// reach is an error, as are grids and blocks beyond the limits of the hardware, and whatever the compiler's sanitizer
// reports (emulation_api.cpp): vectors that are not aligned, overflow, shifts by too much.
// warp.h beside this file adds matrix products, shuffles and asynchronous copies.
// Not emulated: the memory model, atomics, several blocks at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include "races.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // so that it is found, by shared_statics

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
};

using cudaStream_t = struct EmulatedStream*;

// What the bindings ask the runtime.
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorInvalidValue           ? "cudaErrorInvalidValue"
           : error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
                                                    : "cudaErrorLaunchFailure";
}
inline const char* cudaGetErrorString(cudaError_t) { return "see stderr"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline int current_device = 0;
inline cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    if (device > 7) return cudaErrorInvalidValue;
    return current_device = device, cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 0, cudaSuccess; }

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStackBytes = 128 << 10;

enum class Order : int { kForward = 0, kBackward = 1, kShuffled = 2 };

// An exchange is where the lanes of a warp meet in an instruction, which orders no accesses to memory.
enum class State { kReady, kAtWarpBarrier, kAtExchange, kAtBlockBarrier, kDone };

struct Fiber {
    std::vector<char> stack;
    jmp_buf at;
    State state = State::kDone;
};

struct Machine {
    Order order = Order::kForward;     // in which threads and blocks run
    uint64_t random = 1;               // state of the generator of the third
    bool tensor_cores = true;          // of the device
    int max_shared_bytes = 227 << 10;  // of a block of the device
    int addend_bits = -1;              // beyond a float's that tensor cores keep of each addend; -1 keeps all
    const char* failure = nullptr;     // what a thread did wrong
    std::vector<Fiber> fibers{kMaxThreads};
    jmp_buf scheduler;
    int current = 0;
    std::vector<char> dynamic_shared;
    const std::function<void()>* kernel = nullptr;
};

inline Machine machine;

// One of `count` numbers from 0, by Knuth's congruential generator.
inline int chance(uint64_t count) {
    machine.random = machine.random * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int>((machine.random >> 33) % count);
}

// Asks the race detector, if the kernels are compiled for it.
inline void note_access(const void* at, uintptr_t bytes, bool writes) {
    races.access(reinterpret_cast<uintptr_t>(at), bytes, writes, machine.current);
}

inline void* dynamic_shared() { return machine.dynamic_shared.data(); }

// Gives control back to the scheduler; returns when the thread goes on.
inline void pause(State state) {
    races.running = false;
    Fiber& fiber = machine.fibers[machine.current];
    fiber.state = state;
    if (_setjmp(fiber.at) == 0) _longjmp(machine.scheduler, 1);
    races.running = true;
}

// The launch goes on, and its status tells.
inline void fail(const char* what) { machine.failure = what; }

inline void end_copies(int thread);
inline void clear_warps();

// A fiber lives on and runs one thread of each block.
inline void fiber_main() {
    for (;;) {
        races.running = true;
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

// Lets threads [begin, end) go on if all of them wait at this barrier.
inline bool release(int begin, int end, State barrier) {
    for (int i = begin; i < end; ++i)
        if (machine.fibers[i].state != barrier) return false;
    for (int i = begin; i < end; ++i) machine.fibers[i].state = State::kReady;
    return true;
}

// A permutation of `count` things in the order that the machine is set to: step i is number at(i).
struct Permutation {
    uint64_t count, start = 0, stride = 1;

    explicit Permutation(uint64_t count_) : count(count_) {
        if (machine.order == Order::kBackward) start = count - 1, stride = count - 1;
        if (machine.order != Order::kShuffled) return;
        start = chance(count), stride = 1 + chance(count);
        while (std::gcd(stride, count) != 1) ++stride;
    }
    uint64_t at(uint64_t i) const { return (start + i * stride) % count; }
};

// Runs every thread of a warp to its next barrier, and on if that is the warp's and all have reached it.
inline bool run_warp(int begin, int end) {
    const Permutation order(end - begin);
    for (int i = 0; i < end - begin; ++i) resume(begin + static_cast<int>(order.at(i)));
    if (release(begin, end, State::kAtExchange)) return true;
    if (!release(begin, end, State::kAtWarpBarrier)) return false;
    races.pass_warp_barrier(begin / kWarp);
    return true;
}

// Where the static shared memory of all kernels lies: among the thread-local variables of the library that this is part
// of. Those of pybind11 are there too.
inline Races::Range shared_statics() {
    static thread_local char anchor;
    Races::Range found{reinterpret_cast<uintptr_t>(&anchor), 0};
    dl_iterate_phdr(
        [](dl_phdr_info* library, size_t, void* into) {
            Races::Range& range = *static_cast<Races::Range*>(into);
            const auto begin = reinterpret_cast<uintptr_t>(library->dlpi_tls_data);
            for (int i = 0; i < library->dlpi_phnum; ++i) {
                const uintptr_t end = begin + library->dlpi_phdr[i].p_memsz;
                if (library->dlpi_phdr[i].p_type != PT_TLS || range.first < begin || range.first >= end) continue;
                range = {begin, end};
                return 1;
            }
            return 0;
        },
        &found);
    return found;
}

inline bool run_block(int threads, const Races::Range& statics) {
    std::fill(machine.dynamic_shared.begin(), machine.dynamic_shared.end(), static_cast<char>(0xFF));
    std::memset(reinterpret_cast<void*>(statics.first), 0xFF, statics.second - statics.first);
    const auto dynamic = reinterpret_cast<uintptr_t>(machine.dynamic_shared.data());
    races.begin_block(statics, {dynamic, dynamic + machine.dynamic_shared.size()});
    for (int i = 0; i < threads; ++i) machine.fibers[i].state = State::kReady;
    clear_warps();

    std::vector<int> ready;
    do {
        races.pass_block_barrier();
        for (int warp = (threads + kWarp - 1) / kWarp - 1; warp >= 0; --warp) ready.push_back(warp);
        if (machine.order == Order::kBackward) std::reverse(ready.begin(), ready.end());
        // The warp at the end runs.
        while (!ready.empty()) {
            if (machine.order == Order::kShuffled && chance(4) == 0)
                std::swap(ready[chance(ready.size())], ready.back());
            const int begin = ready.back() * kWarp;
            if (!run_warp(begin, std::min(begin + kWarp, threads))) ready.pop_back();
        }
    } while (release(0, threads, State::kAtBlockBarrier));

    int waiting = 0;
    for (int i = 0; i < threads; ++i) waiting += machine.fibers[i].state != State::kDone;
    if (waiting == 0) return true;
    std::fprintf(stderr, "cuda emulation: %d of %d threads wait at a barrier the others miss\n", waiting, threads);
    for (int i = 0; i < threads; ++i) {
        machine.fibers[i].stack.clear();  // they hang in the kernel: start afresh
        end_copies(i);
    }
    return false;
}

inline cudaError_t run_grid(dim3 grid, int threads, const Races::Range& statics) {
    const uint64_t plane = uint64_t{grid.x} * grid.y;
    const Permutation order(plane * grid.z);
    for (uint64_t i = 0; i < order.count; ++i) {
        const uint64_t block = order.at(i);
        blockIdx = dim3(
            static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block % plane / grid.x),
            static_cast<unsigned>(block / plane));
        if (!run_block(threads, statics)) return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
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
    races.begin_launch();
    // Blocks poison what is not theirs too, which nobody looks at meanwhile.
    const Races::Range statics = shared_statics();
    char* begin = reinterpret_cast<char*>(statics.first);
    const std::vector<char> kept(begin, begin + (statics.second - statics.first));
    const cudaError_t status = run_grid(grid, threads, statics);
    std::copy(kept.begin(), kept.end(), begin);
    if (status != cudaSuccess) return status;
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
