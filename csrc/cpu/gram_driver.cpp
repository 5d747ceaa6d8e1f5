// Splits the Gram matrix over threads: first the conversion of the features, then tiles of the upper triangle, the next
// one to whoever is free. An entry belongs to one tile and is summed in one order, so no split changes a bit.
#include "drivers.h"

namespace journey::cpu {
namespace {

// Panels to a side: fewer where there would not be enough tiles to keep all threads busy.
int64_t tile_side(int64_t panels, int num_threads) {
    constexpr int64_t kTilesPerThread = 8;
    int64_t side = kGramSide;
    while (side > 1 && panels * panels < 2 * side * side * kTilesPerThread * num_threads) side /= 2;
    return side;
}

}  // namespace

bool accumulate_gram(const GramArgs& args, int num_threads) {
    if (args.num_samples == 0 || args.proj_dim == 0) return true;
    const int64_t panels = (args.proj_dim + kGramPanel - 1) / kGramPanel;
    const auto packed = allocate<double>(panels * args.num_samples * kGramPanel);
    if (!packed) return false;
    constexpr int64_t kProductsPerThread = 1 << 19;
    const int64_t products = args.num_samples * args.proj_dim * args.proj_dim / 2;
    num_threads = worth_threads(num_threads, products, kProductsPerThread);
    const int64_t side = tile_side(panels, num_threads), tiles = (panels + side - 1) / side;
    const int64_t pairs = (panels + 1) / 2;  // of panels, which are converted together
    const Kernels& kernels = chosen_kernels();
    bool allocated = true;
#pragma omp parallel num_threads(num_threads) reduction(&& : allocated)
    {
        const auto sums = allocate<double>(kGramTileDoubles);
        allocated = sums != nullptr;
#pragma omp for schedule(static)
        for (int part = 0; part < num_threads; ++part) {
            const int64_t begin = pairs * part / num_threads * 2, end = pairs * (part + 1) / num_threads * 2;
            kernels.gram_pack(args, begin, std::min(panels, end), packed.get());
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < tiles * tiles; ++item) {
            const int64_t row = item / tiles * side, column = item % tiles * side;
            if (row > column || !allocated) continue;
            GramTile tile{};
            tile.args = &args;
            tile.packed = packed.get();
            tile.sums = sums.get();
            tile.row_begin = row;
            tile.row_end = std::min(panels, row + side);
            tile.column_begin = column;
            tile.column_end = std::min(panels, column + side);
            kernels.gram_tile(tile);
        }
    }
    return allocated;
}

}  // namespace journey::cpu
