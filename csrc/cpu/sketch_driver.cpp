// Splits the sketch of a parameter's gradients over threads.
//
// No split changes a result: a sum belongs to one sample (or one segment of it, of a size fixed by the shape), segments
// are added in order, and how many threads there are only decides who computes which.
#include "drivers.h"

#include <cmath>
#include <cstring>

#include <omp.h>

namespace journey::cpu {
namespace {

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
SketchTask make_task(const SketchArgs& args, const SketchPlan& plan, int64_t b, int64_t samples, int64_t segment) {
    SketchTask task{};
    task.matrix = static_cast<const char*>(args.grads) + b * args.grads_batch_stride * plan.element_bytes;
    task.matrix_stride = args.grads_batch_stride;
    task.samples = samples;
    task.dtype = args.dtype;
    task.cols = args.cols;
    task.row_begin = args.row_begin;
    task.proj_dim = args.proj_dim;
    task.chunk_begin = segment * plan.per_segment;
    task.chunk_end = std::min(plan.chunks, task.chunk_begin + plan.per_segment);
    task.key = args.key;
    return task;
}

// Sums of one segment, all repetitions. [task.samples, proj_dim]
void sum_segment(const SketchArgs& args, SketchTask task, float* sums, Placement* placements) {
    std::memset(sums, 0, static_cast<size_t>(task.samples * args.proj_dim) * sizeof(float));
    task.sums = sums;
    task.sums_stride = args.proj_dim;
    task.placements = placements;
    for (int64_t repetition = 0; repetition < args.nnz; ++repetition) {
        task.repetition = static_cast<uint32_t>(repetition);
        chosen_kernels().run_sketch(task);
    }
}

bool sketch_samples(const SketchArgs& args, const SketchPlan& plan, int num_threads) {
    bool allocated = true;
    num_threads = clamp_threads(num_threads, args.batch);
    const int64_t together = args.batch >= kSketchSamples * num_threads ? kSketchSamples : 1;
#pragma omp parallel num_threads(num_threads) reduction(&& : allocated)
    {
        const auto placements = allocate<Placement>(kPlacementCache);
        const auto sums = allocate<float>(together * args.proj_dim);
        allocated = placements && sums;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < args.batch; b += together) {
            if (!allocated) continue;
            const int64_t samples = std::min(together, args.batch - b);
            float* features = args.features + b * args.features_stride;
            if (plan.direct) {
                SketchTask task = make_task(args, plan, b, samples, 0);
                task.sums = features;
                task.sums_stride = args.features_stride;
                task.placements = placements.get();
                chosen_kernels().run_sketch(task);
                continue;
            }
            for (int64_t segment = 0; segment < plan.num_segments; ++segment) {
                sum_segment(args, make_task(args, plan, b, samples, segment), sums.get(), placements.get());
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
                const auto placements = allocate<Placement>(kPlacementCache);
                allocated = placements != nullptr;
#pragma omp for schedule(static)
                for (int64_t i = 0; i < count; ++i)
                    if (allocated)
                        sum_segment(
                            args, make_task(args, plan, b, 1, first + i), sums.get() + i * args.proj_dim,
                            placements.get());
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

bool sketch_many(const SketchManyArgs& args, int num_threads) {
    if (!args.lists_agree()) return false;
    int64_t most = 0;
    for (size_t i = 0; i < args.rows.size(); ++i)
        if (args.scales[i] != 1.0) most = std::max(most, args.rows[i] * args.cols[i]);
    const auto scaled = allocate<float>(args.batch * most);
    if (!scaled) return false;
    const float* grads = args.grads;
    for (size_t i = 0; i < args.rows.size(); ++i) {
        const int64_t entries = args.rows[i] * args.cols[i];
        const float scale = static_cast<float>(args.scales[i]);
        SketchArgs one{};
        one.grads = grads, one.grads_batch_stride = args.grads_stride;
        if (args.scales[i] != 1.0) {
            for (int64_t b = 0; b < args.batch; ++b)
                for (int64_t k = 0; k < entries; ++k)
                    scaled[b * entries + k] = scale * grads[b * args.grads_stride + k];
            one.grads = scaled.get(), one.grads_batch_stride = entries;
        }
        one.features = args.features, one.features_stride = args.features_stride;
        one.dtype = DType::kFloat32;
        one.batch = args.batch, one.rows = args.rows[i], one.cols = args.cols[i];
        one.row_begin = args.row_begins[i], one.key = args.keys[i];
        one.proj_dim = args.proj_dim, one.nnz = args.nnz;
        if (!sketch(one, num_threads)) return false;
        grads += entries;
    }
    return true;
}

}  // namespace journey::cpu
