// Chooses the instruction set and splits the work over threads.
//
// No split changes a result: a sum belongs to one sample (or one segment of it, of a size fixed by the shape), segments
// are added in order, and how many threads there are only decides who computes which.
#include "drivers.h"

#include <cmath>
#include <cstring>
#include <vector>

#include <omp.h>
#ifdef JOURNEY_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace journey::cpu {
namespace {

#ifdef JOURNEY_AMX
// Whether the processor has the matrix unit and the system lets this process use it: its registers are large, so
// programs must ask.
bool may_use_amx() {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr uint32_t kTile = 1u << 24, kBFloat16 = 1u << 22;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kTile) || !(edx & kBFloat16)) return false;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// The sets that this build and processor have, the widest first.
std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found;
#ifdef JOURNEY_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef JOURNEY_AMX
    if (avx512 && may_use_amx()) found.push_back(&amx::kernels);
#endif
    if (avx512) found.push_back(&avx512::kernels);
    if (avx2) found.push_back(&avx2::kernels);
#endif
    found.push_back(&baseline::kernels);
    return found;
}

const std::vector<const Kernels*> g_available = available_kernels();
const Kernels* g_kernels = g_available.front();

// Entries of one sample that are summed apart, so that threads can share a large parameter and sums stay short. At
// least 64 times the sketch, so that adding the sums to the features costs little.
int64_t segment_chunks(int64_t proj_dim) {
    constexpr int64_t kSegmentEntries = 1 << 17;
    return std::max(kSegmentEntries, 64 * proj_dim) / kLanes;
}

struct SketchPlan {
    int64_t chunks;        // of one sample
    int64_t per_segment;   // chunks
    int64_t num_segments;  // of one sample
    int64_t element_bytes;
    bool direct;  // so few entries that they are added to the features without sums of their own
    float scale;
};

// Of samples [b, b + samples).
SketchRun make_run(const SketchArgs& args, const SketchPlan& plan, int64_t b, int64_t samples, int64_t segment) {
    SketchRun run{};
    run.matrix = static_cast<const char*>(args.grads) + b * args.grads_batch_stride * plan.element_bytes;
    run.matrix_stride = args.grads_batch_stride;
    run.samples = samples;
    run.dtype = args.dtype;
    run.cols = args.cols;
    run.row_begin = args.row_begin;
    run.proj_dim = args.proj_dim;
    run.chunk_begin = segment * plan.per_segment;
    run.chunk_end = std::min(plan.chunks, run.chunk_begin + plan.per_segment);
    run.key = args.key;
    return run;
}

// Sums of one segment, all repetitions. [run.samples, proj_dim]
void sum_segment(const SketchArgs& args, SketchRun run, float* sums, Tile* tiles) {
    std::memset(sums, 0, static_cast<size_t>(run.samples * args.proj_dim) * sizeof(float));
    run.sums = sums;
    run.sums_stride = args.proj_dim;
    run.tiles = tiles;
    for (int64_t repetition = 0; repetition < args.nnz; ++repetition) {
        run.repetition = static_cast<uint32_t>(repetition);
        g_kernels->sketch_run(run);
    }
}

bool sketch_samples(const SketchArgs& args, const SketchPlan& plan, int num_threads) {
    bool allocated = true;
    num_threads = clamp_threads(num_threads, args.batch);
    const int64_t together = args.batch >= kSketchSamples * num_threads ? kSketchSamples : 1;
#pragma omp parallel num_threads(num_threads) reduction(&& : allocated)
    {
        const auto tiles = allocate<Tile>(kTileCache);
        const auto sums = allocate<float>(together * args.proj_dim);
        allocated = tiles && sums;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < args.batch; b += together) {
            if (!allocated) continue;
            const int64_t samples = std::min(together, args.batch - b);
            float* features = args.features + b * args.features_stride;
            if (plan.direct) {
                SketchRun run = make_run(args, plan, b, samples, 0);
                run.sums = features;
                run.sums_stride = args.features_stride;
                run.tiles = tiles.get();
                g_kernels->sketch_run(run);
                continue;
            }
            for (int64_t segment = 0; segment < plan.num_segments; ++segment) {
                sum_segment(args, make_run(args, plan, b, samples, segment), sums.get(), tiles.get());
                for (int64_t i = 0; i < samples; ++i)
                    add_sums(
                        sums.get() + i * args.proj_dim, args.proj_dim, plan.scale, features + i * args.features_stride);
            }
        }
    }
    return allocated;
}

bool sketch_segments(const SketchArgs& args, const SketchPlan& plan, int num_threads) {
    // A window of segments at a time bounds the memory.
    const int64_t window = std::min<int64_t>(plan.num_segments, 4 * num_threads);
    const auto sums = allocate<float>(window * args.proj_dim);
    if (!sums) return false;
    bool allocated = true;
    for (int64_t b = 0; b < args.batch; ++b) {
        for (int64_t first = 0; first < plan.num_segments; first += window) {
            const int64_t count = std::min(window, plan.num_segments - first);
#pragma omp parallel num_threads(clamp_threads(num_threads, count)) reduction(&& : allocated)
            {
                const auto tiles = allocate<Tile>(kTileCache);
                allocated = tiles != nullptr;
#pragma omp for schedule(static)
                for (int64_t i = 0; i < count; ++i)
                    if (allocated)
                        sum_segment(
                            args, make_run(args, plan, b, 1, first + i), sums.get() + i * args.proj_dim, tiles.get());
            }
            if (!allocated) return false;
            for (int64_t i = 0; i < count; ++i)
                add_sums(
                    sums.get() + i * args.proj_dim, args.proj_dim, plan.scale,
                    args.features + b * args.features_stride);
        }
    }
    return true;
}

}  // namespace

const Kernels& chosen_kernels() { return *g_kernels; }

bool sketch(const SketchArgs& args, int num_threads) {
    SketchPlan plan{};
    plan.chunks = args.rows * num_chunks(args.cols);
    if (args.batch == 0 || plan.chunks == 0) return true;
    const int64_t most = segment_chunks(args.proj_dim);
    plan.num_segments = (plan.chunks + most - 1) / most;
    plan.per_segment = (plan.chunks + plan.num_segments - 1) / plan.num_segments;
    plan.element_bytes = args.dtype == DType::kFloat32 ? 4 : 2;
    plan.direct = args.nnz == 1 && plan.chunks * kLanes <= 4 * args.proj_dim;
    plan.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.nnz)));
    constexpr int64_t kEntriesPerThread = 1 << 15;
    num_threads = worth_threads(num_threads, args.batch * args.nnz * plan.chunks * kLanes, kEntriesPerThread);
    const bool by_sample = plan.num_segments == 1 || args.batch >= num_threads;
    return by_sample ? sketch_samples(args, plan, num_threads) : sketch_segments(args, plan, num_threads);
}

bool project(const ProjectArgs& args, int num_threads) {
    if (args.batch == 0 || args.grad_dim == 0 || args.proj_dim == 0) return true;
    constexpr int64_t kProductsPerThread = 1 << 18;
    num_threads = worth_threads(num_threads, args.batch * args.grad_dim * args.proj_dim, kProductsPerThread);
    // Threads own columns, so that each entry of the projection is generated once; with fewer column blocks than
    // threads they share the samples instead, and a block is generated by each.
    const int64_t blocks = (args.proj_dim + kSignColumns - 1) / kSignColumns;
    const int64_t batch_parts = blocks >= num_threads ? 1 : std::min<int64_t>(args.batch, num_threads / blocks);
    const int64_t column_parts = std::min<int64_t>(blocks, num_threads);
    const int64_t items = batch_parts * column_parts;
    bool allocated = true;
#pragma omp parallel num_threads(clamp_threads(num_threads, items)) reduction(&& : allocated)
    {
        const auto scratch = allocate<float>(kProjectScratchFloats);
        allocated = scratch != nullptr;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items; ++item) {
            if (!allocated) continue;
            const int64_t c = item % column_parts, b = item / column_parts;
            ProjectRun run{};
            run.args = &args;
            run.column_begin = blocks * c / column_parts * kSignColumns;
            run.column_end = std::min(args.proj_dim, blocks * (c + 1) / column_parts * kSignColumns);
            run.batch_begin = args.batch * b / batch_parts;
            run.batch_end = args.batch * (b + 1) / batch_parts;
            run.scratch = scratch.get();
            g_kernels->project_run(run);
        }
    }
    return allocated;
}

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
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t i = 0; i < args.n; ++i)
        g_kernels->normal_row(args.keys[i], args.minors[i], args.numel, args.out + i * args.numel);
    return true;
}

const char* isa_name() { return g_kernels->name; }

bool set_isa(const char* name) {
    for (const Kernels* kernels : g_available)
        if (std::strcmp(kernels->name, name) == 0) {
            g_kernels = kernels;
            return true;
        }
    return false;
}

}  // namespace journey::cpu
