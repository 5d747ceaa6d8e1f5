// Splits the sketch of a layer's per-sample weight gradients over threads.
//
// A task is one sample and some rows by some chunks of columns. Its columns are cut into parts of a size fixed by the
// shape, each with sums of its own, which are added to the features in order. So neither the batch nor the number of
// threads changes a result.
#include "drivers.h"

#include <cmath>
#include <cstring>

#include <omp.h>

namespace journey::cpu {
namespace {

// Sign words kept for the rows of a task, all repetitions: 1 MiB.
constexpr int64_t kSignWords = 1 << 18;
constexpr int64_t kRowUnit = 16;
// Entries of a part, at least: 32 to a bucket, so that adding a part's sums to the features costs little, and not many
// more, so that the sums stay short.
constexpr int64_t kPartEntries = 1 << 14;

struct SketchOuterPlan {
    int64_t chunks;  // of one row
    int64_t rows;    // of a task, at most
    int64_t chunks_of_part;
    int64_t parts;      // that share rows, each with sums of its own
    int64_t together;   // parts of a task, at most: output gradients are packed once for them
    int64_t tile_rows;  // of the map, that the rows of a task touch, at most
    float scale;
};

// A pointwise convolution sees a plane as one line: fewer and longer copies.
SketchOuterArgs with_long_lines(SketchOuterArgs args) {
    constexpr int64_t kLongLine = 1024;
    bool pointwise = !args.channels_last;
    for (int i = 0; i < 3; ++i)
        pointwise = pointwise && args.kernel[i] == 1 && args.stride[i] == 1 && args.padding[i] == 0;
    const int64_t plane = args.out_size[1] * args.out_size[2];
    if (pointwise && plane <= kLongLine) {
        args.in_size[1] = args.out_size[1] = 1;
        args.in_size[2] = args.out_size[2] = plane;
    }
    return args;
}

SketchOuterPlan make_plan(const SketchOuterArgs& args) {
    SketchOuterPlan plan{};
    const int64_t kernel_positions = args.kernel[0] * args.kernel[1] * args.kernel[2];
    plan.chunks = num_chunks(args.c_in / args.conv_groups * kernel_positions);
    const int64_t rows = args.c_out / args.conv_groups;
    const int64_t affordable = kSignWords / (plan.chunks * args.nnz) / kRowUnit * kRowUnit;
    plan.rows = std::min(rows, std::clamp(affordable, kRowUnit, kOuterMaxRows));
    const int64_t most = std::max(kPartEntries, 32 * args.proj_dim) / kLanes;
    plan.parts = std::min((plan.rows * plan.chunks + most - 1) / most, plan.chunks);
    plan.chunks_of_part = (plan.chunks + plan.parts - 1) / plan.parts;
    // All kernel positions of a block of channels (unfold.h), so that it is copied for one part alone.
    if (kernel_positions < plan.chunks_of_part)
        plan.chunks_of_part = (plan.chunks_of_part + kernel_positions - 1) / kernel_positions * kernel_positions;
    plan.parts = (plan.chunks + plan.chunks_of_part - 1) / plan.chunks_of_part;
    // The copied input of a convolution grows with its columns, and is to stay in L2.
    plan.together = std::min<int64_t>(plan.parts, args.channels_last ? 8 : 2);
    const int64_t bucket_rows = args.proj_dim / kLanes;
    plan.tile_rows = (plan.rows + bucket_rows - 1) / bucket_rows + 1;
    plan.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.nnz)));
    return plan;
}

struct Tables {
    Buffer<uint32_t> signs;        // [nnz, chunks, rows]
    Buffer<Placement> placements;  // [nnz, tile_rows, chunks]
};

// Sign words of rows [begin, end) of the task; they are drawn along rows, and kept so that a chunk's are consecutive.
void fill_rows(
    const SketchOuterArgs& args,
    const SketchOuterPlan& plan,
    const SketchOuterTask& task,
    uint32_t repetition,
    int64_t begin,
    int64_t end,
    uint32_t* signs) {
    constexpr int64_t kWords = 1024;
    uint32_t words[kWords];
    const int64_t rows = task.row_end - task.row_begin;
    int64_t row = begin, chunk = 0;
    for (int64_t next = begin * plan.chunks; next < end * plan.chunks; next += kWords) {
        const int64_t count = std::min(kWords, end * plan.chunks - next);
        chosen_kernels().fill_signs({args.key, repetition, task.row_begin * plan.chunks + next, count}, words);
        for (int64_t i = 0; i < count; ++i) {
            signs[chunk * rows + row] = words[i];
            if (++chunk == plan.chunks) chunk = 0, ++row;
        }
    }
}

void fill_tables(
    const SketchOuterArgs& args, const SketchOuterPlan& plan, SketchOuterTask& task, Tables& tables, int num_threads) {
    const int64_t bucket_rows = args.proj_dim / kLanes, rows = task.row_end - task.row_begin;
    const int64_t first_tile_row = task.row_begin / bucket_rows;
    task.signs = tables.signs.get();
    task.placements = tables.placements.get();
    task.tile_rows = (task.row_end - 1) / bucket_rows - first_tile_row + 1;
    constexpr int64_t kWordsPerThread = 1 << 13;
    num_threads =
        std::min(clamp_threads(num_threads, rows), worth_threads(num_threads, rows * plan.chunks, kWordsPerThread));
    const Kernels& kernels = chosen_kernels();
    for (int64_t repetition = 0; repetition < args.nnz; ++repetition) {
        const SketchTable table{
            args.key, static_cast<uint32_t>(repetition), first_tile_row * plan.chunks, task.tile_rows * plan.chunks};
        kernels.fill_placements(table, bucket_rows, tables.placements.get() + repetition * table.count);
        uint32_t* signs = tables.signs.get() + repetition * rows * plan.chunks;
#pragma omp parallel for num_threads(num_threads) schedule(static)
        for (int part = 0; part < num_threads; ++part)
            fill_rows(
                args, plan, task, table.repetition, rows * part / num_threads, rows * (part + 1) / num_threads, signs);
    }
}

// The sums of `count` parts, from `part` on, of the rows of `task`. [count, proj_dim]
void sum_parts(
    const SketchOuterPlan& plan,
    SketchOuterTask task,
    int64_t group,
    int64_t part,
    int64_t count,
    float* sums,
    float* scratch) {
    std::memset(sums, 0, static_cast<size_t>(count * task.args->proj_dim) * sizeof(float));
    task.group = group;
    task.step_begin = part * plan.chunks_of_part;
    task.step_end = std::min(plan.chunks, (part + count) * plan.chunks_of_part);
    task.chunks_of_part = plan.chunks_of_part;
    task.sums = sums;
    task.scratch = scratch;
    chosen_kernels().run_sketch_outer(task);
}

struct Workspace {
    int64_t scratch_floats;
    int num_threads;
    int64_t window;         // parts whose sums are kept at once, where threads share a sample
    Buffer<float> scratch;  // [num_threads, scratch_floats]
    Buffer<float> sums;     // [num_threads, together, proj_dim] or [window, proj_dim]
};

// Samples side by side, each on one thread.
void add_samples(const SketchOuterPlan& plan, const SketchOuterTask& task, const Workspace& space) {
    const SketchOuterArgs& args = *task.args;
#pragma omp parallel for num_threads(space.num_threads) schedule(dynamic)
    for (int64_t group = 0; group < args.num_groups; ++group) {
        float* sums = space.sums.get() + omp_get_thread_num() * plan.together * args.proj_dim;
        float* scratch = space.scratch.get() + omp_get_thread_num() * space.scratch_floats;
        for (int64_t part = 0; part < plan.parts; part += plan.together) {
            const int64_t count = std::min(plan.together, plan.parts - part);
            sum_parts(plan, task, group, part, count, sums, scratch);
            for (int64_t i = 0; i < count; ++i)
                add_sums(
                    sums + i * args.proj_dim, args.proj_dim, plan.scale, args.features + group * args.features_stride);
        }
    }
}

// The parts of one sample side by side, a window of them at a time.
void add_parts(const SketchOuterPlan& plan, const SketchOuterTask& task, const Workspace& space) {
    const SketchOuterArgs& args = *task.args;
    for (int64_t group = 0; group < args.num_groups; ++group)
        for (int64_t first = 0; first < plan.parts; first += space.window) {
            const int64_t count = std::min(space.window, plan.parts - first);
#pragma omp parallel for num_threads(space.num_threads) schedule(dynamic)
            for (int64_t i = 0; i < count; ++i) {
                float* scratch = space.scratch.get() + omp_get_thread_num() * space.scratch_floats;
                sum_parts(plan, task, group, first + i, 1, space.sums.get() + i * args.proj_dim, scratch);
            }
            for (int64_t i = 0; i < count; ++i)
                add_sums(
                    space.sums.get() + i * args.proj_dim, args.proj_dim, plan.scale,
                    args.features + group * args.features_stride);
        }
}

bool add_sketch(const SketchOuterArgs& given, int num_threads) {
    const SketchOuterArgs args = with_long_lines(given);
    const SketchOuterPlan plan = make_plan(args);
    const int64_t positions = args.rows_per_group * args.out_size[0] * args.out_size[1] * args.out_size[2];
    if (args.num_groups == 0 || plan.chunks == 0 || args.c_out == 0 || positions == 0) return true;
    constexpr int64_t kProductsPerThread = 1 << 19;
    const int64_t products = args.num_groups * positions * args.c_out * plan.chunks * kLanes;
    num_threads = worth_threads(num_threads, products, kProductsPerThread);
    const bool by_sample = plan.parts == 1 || args.num_groups >= num_threads;

    Workspace space{};
    space.num_threads = clamp_threads(num_threads, by_sample ? args.num_groups : plan.parts);
    space.window = std::min<int64_t>(plan.parts, 4 * space.num_threads);
    space.scratch_floats =
        chosen_kernels().sketch_outer_scratch_floats(args, plan.rows, plan.together * plan.chunks_of_part);
    space.scratch = allocate<float>(space.num_threads * space.scratch_floats);
    space.sums = allocate<float>(std::max(space.num_threads * plan.together, space.window) * args.proj_dim);
    Tables tables{
        allocate<uint32_t>(args.nnz * plan.rows * plan.chunks),
        allocate<Placement>(args.nnz * plan.tile_rows * plan.chunks)};
    if (!space.scratch || !space.sums || !tables.signs || !tables.placements) return false;

    const int64_t rows_of_group = args.c_out / args.conv_groups;
    for (int64_t begin = 0; begin < args.c_out; begin += rows_of_group)
        for (int64_t row = begin; row < begin + rows_of_group; row += plan.rows) {
            SketchOuterTask task{};
            task.args = &args;
            task.row_begin = row;
            task.row_end = std::min(begin + rows_of_group, row + plan.rows);
            fill_tables(args, plan, task, tables, num_threads);
            if (by_sample)
                add_samples(plan, task, space);
            else
                add_parts(plan, task, space);
        }
    return true;
}

}  // namespace

bool sketch_outer(const SketchOuterArgs& args, int num_threads) {
    if (args.scale == 1.0) return add_sketch(args, num_threads);
    // Summed apart and scaled once: the features are shorter than the layer's inputs and output gradients.
    const auto sums = allocate<float>(args.num_groups * args.proj_dim);
    if (!sums) return false;
    std::memset(sums.get(), 0, static_cast<size_t>(args.num_groups * args.proj_dim) * sizeof(float));
    SketchOuterArgs unscaled = args;
    unscaled.features = sums.get(), unscaled.features_stride = args.proj_dim;
    if (!add_sketch(unscaled, num_threads)) return false;
    for (int64_t i = 0; i < args.num_groups; ++i)
        chosen_kernels().add_scaled(
            sums.get() + i * args.proj_dim, args.proj_dim, static_cast<float>(args.scale),
            args.features + i * args.features_stride);
    return true;
}

bool sketch_outer_many(const SketchOuterManyArgs& args, int num_threads) {
    for (const SketchOuterArgs& layer : args.layers)
        if (!sketch_outer(layer, num_threads)) return false;
    return true;
}

}  // namespace journey::cpu
