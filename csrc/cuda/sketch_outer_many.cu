// Sketches of the weight gradients of several layers: a launch for each, and one that adds them all to the features.
//
// A layer's partial sketches (sketch_outer.cu) lie in the workspace until those of 64 layers, or as many as 64 MiB
// hold, are summed by one launch, in the layers' order: the bits are those of layer by layer, however many there are at
// once. For 100 small layers that saves 100 launches of 2 to 4 us on the host, and as many on the device. Status,
// November 2026: tested on the CPU by emulation, not measured on a GPU yet (docs/development/kernels.md).
#include <cmath>

#include "outer_partials.h"

namespace journey::cuda {
namespace {

constexpr int64_t kMaxFloats = 1 << 24;  // of the workspace, or of one layer

int64_t floats_of(const SketchOuterArgs& layer) {
    return layer.num_groups * count_outer_slices(layer) * layer.proj_dim;
}

// The layers from `first` on that are summed by one launch.
struct Run {
    size_t end;
    int64_t floats;
};

Run next_run(const SketchOuterArgs* layers, size_t count, size_t first) {
    Run run{first, 0};
    while (run.end < count && run.end - first < kMaxSliceSums) {
        const int64_t floats = floats_of(layers[run.end]);
        if (run.end > first && run.floats + floats > kMaxFloats) break;
        run.floats += floats;
        ++run.end;
    }
    return run;
}

int64_t most_floats(const SketchOuterArgs* layers, size_t count) {
    int64_t most = 0;
    for (size_t first = 0; first < count;) {
        const Run run = next_run(layers, count, first);
        most = std::max(most, run.floats);
        first = run.end;
    }
    return most;
}

bool are_valid(const SketchOuterArgs* layers, size_t count) {
    const auto shared = [](const SketchOuterArgs& of) {
        return std::tie(of.features, of.num_groups, of.features_stride, of.proj_dim, of.nnz);
    };
    for (size_t i = 0; i < count; ++i)
        if (!is_valid_layer(layers[i]) || shared(layers[i]) != shared(layers[0])) return false;
    return true;
}

cudaError_t add_layers(const SketchOuterArgs* layers, size_t count, Workspace workspace, cudaStream_t stream) {
    if (!are_valid(layers, count)) return cudaErrorInvalidValue;
    const int64_t floats = most_floats(layers, count);
    if (floats == 0) return cudaSuccess;
    if (workspace.data == nullptr || workspace.floats < floats) return cudaErrorInvalidValue;

    const SketchOuterArgs& any = layers[0];
    for (size_t first = 0; first < count;) {
        const Run run = next_run(layers, count, first);
        SliceSums sums{};
        float* partials = workspace.data;
        for (size_t i = first; i < run.end; ++i) {
            const int64_t num_slices = count_outer_slices(layers[i]);
            if (num_slices == 0) continue;
            const cudaError_t status = write_outer_partials(layers[i], partials, stream);
            if (status != cudaSuccess) return status;
            const double scale = layers[i].scale / std::sqrt(static_cast<double>(any.nnz));
            sums.sum[sums.count++] = SliceSum{partials, num_slices, static_cast<float>(scale)};
            partials += floats_of(layers[i]);
        }
        const cudaError_t status =
            add_slice_sums(sums, any.features, any.num_groups, any.proj_dim, any.features_stride, stream);
        if (status != cudaSuccess) return status;
        first = run.end;
    }
    return cudaSuccess;
}

}  // namespace

int64_t sketch_outer_workspace_floats(const SketchOuterArgs& args) { return floats_of(args); }

cudaError_t sketch_outer(const SketchOuterArgs& args, Workspace workspace, cudaStream_t stream) {
    return add_layers(&args, 1, workspace, stream);
}

int64_t sketch_outer_many_workspace_floats(const SketchOuterManyArgs& args) {
    return most_floats(args.layers.data(), args.layers.size());
}

cudaError_t sketch_outer_many(const SketchOuterManyArgs& args, Workspace workspace, cudaStream_t stream) {
    return add_layers(args.layers.data(), args.layers.size(), workspace, stream);
}

}  // namespace journey::cuda
