// The table of this instruction set's kernels.
#include "sketch_chunk.h"

namespace journey::cpu::JOURNEY_ISA {

void run_sketch(const SketchTask& run);
void add_scaled(const float* sums, int64_t proj_dim, float scale, float* features);
void run_sketch_outer(const SketchOuterTask& run);
int64_t sketch_outer_scratch_floats(const SketchOuterArgs& args, int64_t rows, int64_t chunks);
void run_project(const ProjectTask& run);
void gram_pack(const GramArgs& args, int64_t panel_begin, int64_t panel_end, double* packed);
void gram_tile(const GramTile& tile);
void philox_normal_row(uint64_t key, uint32_t minor, int64_t numel, float* out);
void pack_rows(const PackRowsArgs& args, int64_t row_begin, int64_t row_end);
int64_t query_panel_floats(const PackedProductsArgs& args);
void pack_queries(const PackedProductsArgs& args, float* panels);
void packed_products(const PackedTask& task);

#define JOURNEY_STRINGIFY(x) #x
#define JOURNEY_NAME(x) JOURNEY_STRINGIFY(x)

const Kernels kernels = {
    JOURNEY_NAME(JOURNEY_ISA), run_sketch,   add_scaled,     run_sketch_outer, sketch_outer_scratch_floats, fill_signs,
    fill_placements,           run_project,  gram_pack,      gram_tile,        philox_normal_row,           pack_rows,
    query_panel_floats,        pack_queries, packed_products};

}  // namespace journey::cpu::JOURNEY_ISA
