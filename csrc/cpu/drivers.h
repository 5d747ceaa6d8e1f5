// What the drivers share: the chosen kernels, memory, and how many threads some work is worth.
#pragma once

#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

namespace journey::cpu {

// The kernels of the instruction set in use, see dispatch.cpp.
const Kernels& chosen_kernels();

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

template <typename value_t>
using Buffer = std::unique_ptr<value_t[], Free>;

// Memory that begins at a cache line, so that no vector of a packed buffer straddles two; null when there is none.
template <typename value_t>
Buffer<value_t> allocate(int64_t count) {
    constexpr size_t kLine = 64;
    const size_t bytes = static_cast<size_t>(count) * sizeof(value_t);
    return Buffer<value_t>(static_cast<value_t*>(std::aligned_alloc(kLine, (bytes + kLine) / kLine * kLine)));
}

inline int clamp_threads(int num_threads, int64_t items) {
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_threads, items)));
}

// Fewer threads for so little work that waking one would cost more than it does.
inline int worth_threads(int num_threads, int64_t work, int64_t work_per_thread) {
    return clamp_threads(num_threads, work / work_per_thread);
}

// features += scale * sums
inline void add_sums(const float* sums, int64_t proj_dim, float scale, float* features) {
    for (int64_t k = 0; k < proj_dim; ++k) features[k] += scale * sums[k];
}

}  // namespace journey::cpu
