// Launchers of the CUDA kernels: raw device pointers, sizes and a stream in, status out. No torch, no Python.
//
// No launcher allocates, synchronises or copies to the host, so all can be captured in a CUDA graph. Results are
// bitwise equal from run to run and do not depend on the number of multiprocessors: no float atomics, and work is split
// by the shape alone. What a sample's features are does not depend on the batch it came in. A workspace is
// uninitialised memory of the caller's, of the size that the function beside the launcher gives; null where that size
// is 0.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace journey::cuda {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// How products of float32 inputs are formed; half types are multiplied exactly and summed in float32 anyway.
enum class Precision : int {
    kFloat32 = 0,  // to the rounding of float32 (3xTF32 on tensor cores)
    kTf32 = 1,     // operands rounded to 11 significant bits
};

enum class Dense : int { kRademacher = 0, kNormal = 1 };

// out[i, 0..3] = Philox words of (keys[i], indices[i], minors[i], philox_stream).
[[nodiscard]] cudaError_t philox_words(
    const uint64_t* keys,     // [n]
    const uint64_t* indices,  // [n]
    const uint32_t* minors,   // [n]
    int64_t* out,             // [n, 4], contiguous, overwritten
    int64_t n,
    uint32_t philox_stream,
    cudaStream_t stream);

// out[i, e] = standard normal e of the noise stream (keys[i], minors[i]).
[[nodiscard]] cudaError_t philox_normal(
    const uint64_t* keys,    // [n]
    const uint32_t* minors,  // [n]
    float* out,              // [n, numel], contiguous, overwritten
    int64_t n,
    int64_t numel,
    cudaStream_t stream);

struct SketchArgs {
    const void* grads;  // [batch, rows, cols], each [rows, cols] contiguous
    float* features;    // [batch, proj_dim], added to
    float* workspace;   // [sketch_workspace_floats]
    DType dtype;        // of grads
    int64_t batch;
    int64_t rows;
    int64_t cols;
    int64_t grads_batch_stride;  // in elements
    int64_t features_stride;     // in elements
    int64_t row_begin;           // which row of the parameter the first given row is
    int64_t proj_dim;            // a multiple of 32
    uint64_t key;
    int64_t nnz;  // independent sketches, summed and divided by sqrt(nnz)
};

// Reads batch, rows, cols, row_begin and proj_dim.
int64_t sketch_workspace_floats(const SketchArgs& args);

// features[b, :] += sketch of grads[b], see common/sketch_map.h.
[[nodiscard]] cudaError_t sketch(const SketchArgs& args, cudaStream_t stream);

// Gradients of one of many small parameters; fields as in SketchArgs.
struct SmallParameter {
    const void* grads;  // [batch, rows, cols], each [rows, cols] contiguous
    DType dtype;
    int64_t rows;
    int64_t cols;
    int64_t grads_batch_stride;
    int64_t row_begin;
    uint64_t key;
};

struct SketchManyArgs {
    const SmallParameter* parameters;  // [num_parameters], in host memory
    int64_t num_parameters;
    float* features;   // [batch, proj_dim], added to
    float* workspace;  // [sketch_many_workspace_floats]
    int64_t batch;
    int64_t features_stride;  // in elements
    int64_t proj_dim;         // a multiple of 32; a block needs 4 * proj_dim bytes of shared memory
    int64_t nnz;
};

// Reads the parameters' shapes, batch and proj_dim.
int64_t sketch_many_workspace_floats(const SketchManyArgs& args);

// features[b, :] += sketches of the gradients of all parameters, in one launch for each 64 of them and one more.
[[nodiscard]] cudaError_t sketch_many(const SketchManyArgs& args, cudaStream_t stream);

struct ProjectArgs {
    const void* grads;  // [batch, grad_dim]
    float* features;    // [batch, proj_dim], added to
    float* workspace;   // [project_workspace_floats]
    DType dtype;        // of grads
    Dense kind;
    int64_t batch;
    int64_t grad_dim;
    int64_t proj_dim;
    int64_t grads_stride;     // in elements
    int64_t features_stride;  // in elements
    int64_t row_begin;        // which row of the projection the first gradient entry meets
    uint64_t key;
};

// Reads batch, grad_dim and proj_dim.
int64_t project_workspace_floats(const ProjectArgs& args);

// features[b, k] += sum_d grads[b, d] * P[row_begin + d, k] / sqrt(proj_dim), P from common/dense_map.h.
[[nodiscard]] cudaError_t project(const ProjectArgs& args, cudaStream_t stream);

// Where element (row, channel, y, x) of a layer's input or output gradient lies, in elements.
struct Strides {
    int64_t row;
    int64_t channel;
    int64_t y;
    int64_t x;
};

// A Conv2d; a Conv1d has height 1; a Linear is a 1x1 kernel with y = position, one x, no padding.
struct SketchOuterArgs {
    const void* a;     // layer input [num_groups * rows_per_group, in_channels, in_height, in_width]
    const void* g;     // output gradient [num_groups * rows_per_group, out_channels, out_height, out_width]
    float* features;   // [num_groups, proj_dim], added to
    float* workspace;  // [sketch_outer_workspace_floats]
    DType dtype;       // of a and g
    Precision precision;
    Strides a_strides;
    Strides g_strides;
    int64_t num_groups;
    int64_t rows_per_group;  // consecutive rows whose gradients are summed
    int64_t in_channels;
    int64_t in_height;
    int64_t in_width;
    int64_t out_channels;
    int64_t out_height;
    int64_t out_width;
    int64_t kernel_h;
    int64_t kernel_w;
    int64_t stride_h;
    int64_t stride_w;
    int64_t pad_h;
    int64_t pad_w;
    int64_t dilation_h;
    int64_t dilation_w;
    int64_t conv_groups;
    int64_t features_stride;  // in elements
    int64_t proj_dim;         // a multiple of 32
    uint64_t key;
    int64_t nnz;  // independent sketches, summed and divided by sqrt(nnz)
};

// Reads num_groups, in_channels, out_channels, the kernel's size, conv_groups and proj_dim.
int64_t sketch_outer_workspace_floats(const SketchOuterArgs& args);

// features[group, :] += sketch of the weight gradient of the group's rows; the gradient is never in memory.
[[nodiscard]] cudaError_t sketch_outer(const SketchOuterArgs& args, cudaStream_t stream);

struct GramArgs {
    const void* features;  // [num_samples, proj_dim]
    double* gram;          // [proj_dim, proj_dim], added to
    float* workspace;      // [workspace_floats]
    int64_t workspace_floats;
    DType dtype;  // of features
    Precision precision;
    int64_t num_samples;
    int64_t proj_dim;
    int64_t features_stride;  // in elements
    int64_t gram_stride;      // in elements
};

// The most that helps, at most 2^24; less is slower and gives the same bits. Reads num_samples and proj_dim.
int64_t gram_workspace_floats(const GramArgs& args);

// gram[i, j] += sum_n features[n, i] * features[n, j] for j >= i; entries below the diagonal are not touched.
[[nodiscard]] cudaError_t accumulate_gram(const GramArgs& args, cudaStream_t stream);

}  // namespace journey::cuda
