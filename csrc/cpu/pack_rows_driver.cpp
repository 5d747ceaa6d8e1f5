// Splits packing over threads, by rows: the next ones to whoever is free. What a row gives depends on nothing else, so
// no split changes a bit.
#include "drivers.h"

namespace journey::cpu {

bool pack_rows(const PackRowsArgs& args, int num_threads) {
    if (args.num_rows == 0) return true;
    constexpr int64_t kEntriesPerThread = 1 << 15, kRows = 16;
    num_threads = worth_threads(num_threads, args.num_rows * args.proj_dim, kEntriesPerThread);
    const Kernels& kernels = chosen_kernels();
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (int64_t row = 0; row < args.num_rows; row += kRows)
        kernels.pack_rows(args, row, std::min(args.num_rows, row + kRows));
    return true;
}

}  // namespace journey::cpu
