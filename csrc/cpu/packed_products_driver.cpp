// Splits the products with packed rows over threads, by rows: the next ones to whoever is free. A row belongs to one
// task and its products depend on nothing else, so no split changes a bit.
#include "drivers.h"

namespace journey::cpu {

bool packed_products(const PackedProductsArgs& args, int num_threads) {
    if (args.num_rows == 0 || args.num_queries == 0) return true;
    constexpr int64_t kProductsPerThread = 1 << 18;
    num_threads = worth_threads(num_threads, args.num_rows * args.num_queries * args.proj_dim, kProductsPerThread);
    const Kernels& kernels = chosen_kernels();
    const auto panels = allocate<float>(kernels.query_panel_floats(args));
    if (!panels) return false;
    kernels.pack_queries(args, panels.get());
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (int64_t row = 0; row < args.num_rows; row += kPackedTaskRows)
        kernels.packed_products({&args, panels.get(), row, std::min(args.num_rows, row + kPackedTaskRows)});
    return true;
}

}  // namespace journey::cpu
