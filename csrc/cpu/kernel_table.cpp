// The table of this instruction set's kernels.
#include "sketch_chunk.h"

namespace journey::cpu::JOURNEY_ISA {

void sketch_run(const SketchRun& run);
void outer_run(const OuterRun& run);
int64_t outer_scratch_floats(const OuterArgs& args, int64_t rows, int64_t chunks);
void project_run(const ProjectRun& run);
void gram_pack(const GramArgs& args, int64_t panel_begin, int64_t panel_end, double* packed);
void gram_tile(const GramTile& tile);
void normal_row(uint64_t key, uint32_t minor, int64_t numel, float* out);

#define JOURNEY_STRINGIFY(x) #x
#define JOURNEY_NAME(x) JOURNEY_STRINGIFY(x)

const Kernels kernels = {
    JOURNEY_NAME(JOURNEY_ISA),
    sketch_run,
    outer_run,
    outer_scratch_floats,
    fill_signs,
    fill_tiles,
    project_run,
    gram_pack,
    gram_tile,
    normal_row};

}  // namespace journey::cpu::JOURNEY_ISA
