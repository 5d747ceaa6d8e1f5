// The kernels that are compiled once per instruction set, and the table through which the drivers call them.
//
// The files *_kernel.cpp are built several times with other compiler flags, each time with JOURNEY_ISA set to the
// namespace to live in. They include nothing of the standard library that could leave a wide instruction in a
// function shared with the rest of the program.
#pragma once

#include "../common/dense_map.h"
#include "../common/sketch_map.h"
#include "kernels.h"

namespace journey::cpu {

// Samples whose gradients are read side by side: signs are drawn once for them, and two streams keep more loads in
// flight.
constexpr int64_t kSketchSamples = 2;

// Consecutive chunks of some samples: chunks [chunk_begin, chunk_end) counted along the given rows.
struct SketchTask {
    const void* matrix;     // [samples, rows, cols]
    int64_t matrix_stride;  // of a sample, in elements
    float* sums;            // [samples, proj_dim], added to, unscaled
    int64_t sums_stride;
    int64_t samples;        // 1 to kSketchSamples
    Placement* placements;  // room for kPlacementCache
    DType dtype;
    int64_t cols;
    int64_t row_begin;
    int64_t proj_dim;
    int64_t chunk_begin;
    int64_t chunk_end;
    uint64_t key;
    uint32_t repetition;
};

// Placements of the tiles of one row block, looked up once and kept while the rows of the block pass by.
constexpr int64_t kPlacementCache = 8192;

// Rows [row_begin, row_end) of the weight gradient of one group, and of each the chunks of steps [step_begin, step_end)
// (unfold.h), which are some parts with sums of their own.
struct SketchOuterTask {
    const SketchOuterArgs* args;
    int64_t group;
    int64_t row_begin;
    int64_t row_end;
    int64_t step_begin;
    int64_t step_end;
    int64_t chunks_of_part;
    const uint32_t* signs;        // [nnz, chunks, row_end - row_begin]
    const Placement* placements;  // [nnz, tile rows that the rows touch, chunks]
    int64_t tile_rows;
    float* sums;     // [parts, proj_dim], added to, unscaled
    float* scratch;  // room for sketch_outer_scratch_floats()
};

constexpr int64_t kOuterMaxRows = 512;  // of one task: half a MiB of packed output gradients, a quarter of an L2 cache

// Entries of the tables of sign words and placements.
struct SketchTable {
    uint64_t key;
    uint32_t repetition;
    int64_t begin;
    int64_t count;
};

// Columns [column_begin, column_end) of the dense projection for samples [batch_begin, batch_end).
struct ProjectTask {
    const ProjectArgs* args;
    int64_t column_begin;  // a multiple of kSignColumns
    int64_t column_end;
    int64_t batch_begin;
    int64_t batch_end;
    float* scratch;  // room for kProjectScratchFloats floats
};

// Rows of the projection that are generated, used for every sample, and summed before they are added to the
// features: 64 columns of them fill two thirds of a 48 KiB L1 cache, and the sums stay short.
constexpr int64_t kProjectDepth = 128;
constexpr int64_t kProjectRows = 6;  // samples per pass: 6 x 4 accumulators leave registers for the operands
constexpr int64_t kProjectScratchFloats = kProjectDepth * (kSignColumns + kProjectRows);

// Columns of the features that are kept together, sample after sample, as float64: three AVX-512 vectors.
constexpr int64_t kGramPanel = 24;
// Panels to a side of a tile, at most: its sums are two thirds of a MiB, a third of an L2 cache.
constexpr int64_t kGramSide = 12;
constexpr int64_t kGramTileDoubles = kGramSide * kGramPanel * kGramSide * kGramPanel;

// Panels [row_begin, row_end) by [column_begin, column_end) of the upper triangle of the Gram matrix.
struct GramTile {
    const GramArgs* args;
    const double* packed;  // [panels, num_samples, kGramPanel], zeros beyond proj_dim
    double* sums;          // room for kGramTileDoubles
    int64_t row_begin;
    int64_t row_end;
    int64_t column_begin;
    int64_t column_end;
};

// Rows [row_begin, row_end) of the products with packed rows.
struct PackedTask {
    const PackedProductsArgs* args;
    const float* panels;  // the queries, as pack_queries lays them
    int64_t row_begin;
    int64_t row_end;
};

// Rows of a task: those of 4096 codes of 8 bits are a third of an L2 cache, where the next queries find them.
constexpr int64_t kPackedTaskRows = 96;

struct Kernels {
    const char* name;
    void (*run_sketch)(const SketchTask&);
    void (*add_scaled)(const float* sums, int64_t proj_dim, float scale, float* features);
    void (*run_sketch_outer)(const SketchOuterTask&);
    int64_t (*sketch_outer_scratch_floats)(const SketchOuterArgs&, int64_t rows, int64_t chunks);
    void (*fill_signs)(const SketchTable&, uint32_t* words);
    void (*fill_placements)(const SketchTable&, int64_t bucket_rows, Placement* placements);
    void (*run_project)(const ProjectTask&);
    void (*gram_pack)(const GramArgs&, int64_t panel_begin, int64_t panel_end, double* packed);
    void (*gram_tile)(const GramTile&);
    void (*philox_normal_row)(uint64_t key, uint32_t minor, int64_t numel, float* out);
    void (*pack_rows)(const PackRowsArgs&, int64_t row_begin, int64_t row_end);
    int64_t (*query_panel_floats)(const PackedProductsArgs&);
    void (*pack_queries)(const PackedProductsArgs&, float* panels);
    void (*packed_products)(const PackedTask&);
};

namespace baseline {
extern const Kernels kernels;
}
#ifdef JOURNEY_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#ifdef JOURNEY_AMX
namespace amx {
extern const Kernels kernels;
}
#endif
#endif

}  // namespace journey::cpu
