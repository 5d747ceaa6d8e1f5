// Splits draws and rows of noise over threads.
#include "drivers.h"

#include <omp.h>

namespace journey::cpu {

bool philox_words(const PhiloxWordsArgs& args, int num_threads) {
    constexpr int64_t kDrawsPerThread = 1 << 13;
#pragma omp parallel for num_threads(worth_threads(num_threads, args.n, kDrawsPerThread)) schedule(static)
    for (int64_t i = 0; i < args.n; ++i) {
        const Philox4 draw = philox(args.keys[i], args.indices[i], args.minors[i], static_cast<Stream>(args.stream));
        for (int w = 0; w < 4; ++w) args.out[i * 4 + w] = draw.word[w];
    }
    return true;
}

bool philox_normal(const PhiloxNormalArgs& args, int num_threads) {
    constexpr int64_t kNormalsPerThread = 1 << 13;
    num_threads = std::min(
        clamp_threads(num_threads, args.n), worth_threads(num_threads, args.n * args.numel, kNormalsPerThread));
    const Kernels& kernels = chosen_kernels();
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t i = 0; i < args.n; ++i)
        kernels.philox_normal_row(args.keys[i], args.minors[i], args.numel, args.out + i * args.numel);
    return true;
}

}  // namespace journey::cpu
