// The CPU operations: raw pointers and sizes in, no torch, no Python, no exceptions.
//
// Each kernel is compiled once per instruction set (see isa.h) and works on a range of rows, columns or samples;
// the drivers declared here choose the instruction set at run time and split the work over threads in a way that
// never changes the result.
#pragma once

#include <cstdint>

namespace journey::cpu {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

enum class Dense : int { kRademacher = 0, kNormal = 1 };

struct SketchArgs {
    const void* grads;  // [batch, rows, cols], each [rows, cols] contiguous
    float* features;    // [batch, proj_dim], added to
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

// features[b, :] += sketch of grads[b], see common/sketch_map.h. False when memory for the sums could not be had.
[[nodiscard]] bool sketch(const SketchArgs& args, int num_threads);

struct OuterArgs {
    const void* a;    // layer input, contiguous: [rows, c_in, *in_size], or [rows, positions, c_in] with channels last
    const void* g;    // output gradient, contiguous: [rows, c_out, *out_size], or [rows, positions, c_out]
    float* features;  // [num_groups, proj_dim], added to
    DType dtype;      // of a and g
    bool channels_last;  // a linear layer, with its positions in out_size[2] and a kernel of one
    int64_t num_groups;
    int64_t rows_per_group;  // consecutive rows whose gradients are summed
    int64_t c_in;
    int64_t c_out;
    int64_t conv_groups;  // blocks of channels that do not see each other
    int64_t in_size[3];   // leading dimensions are 1 where there are fewer than three
    int64_t out_size[3];
    int64_t kernel[3];
    int64_t stride[3];
    int64_t padding[3];
    int64_t dilation[3];
    int64_t features_stride;  // in elements
    int64_t proj_dim;         // a multiple of 32
    uint64_t key;
    int64_t nnz;
};

// features[i, :] += sketch of the weight gradient of the rows of group i, which is never stored. False when memory
// could not be had.
[[nodiscard]] bool sketch_outer(const OuterArgs& args, int num_threads);

struct ProjectArgs {
    const void* grads;  // [batch, grad_dim]
    float* features;    // [batch, proj_dim], added to
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

// features[b, k] += sum_d grads[b, d] * P[row_begin + d, k] / sqrt(proj_dim), P from common/dense_map.h.
[[nodiscard]] bool project(const ProjectArgs& args, int num_threads);

struct GramArgs {
    const void* features;  // [num_samples, proj_dim]
    double* gram;          // [proj_dim, proj_dim], its upper triangle is added to
    DType dtype;           // of features
    int64_t num_samples;
    int64_t proj_dim;
    int64_t features_stride;  // in elements
    int64_t gram_stride;      // in elements
};

// gram[i, j] += sum over s of features[s, i] * features[s, j] for i <= j. False when memory could not be had.
[[nodiscard]] bool accumulate_gram(const GramArgs& args, int num_threads);

// out[i, 0..3] = Philox words of (keys[i], indices[i], minors[i], stream).
void philox_words(
    const uint64_t* keys,     // [n]
    const uint64_t* indices,  // [n]
    const uint32_t* minors,   // [n]
    uint32_t stream,
    int64_t n,
    int64_t* out);  // [n, 4]

// out[i, e] = standard normal e of the noise stream (keys[i], minors[i]).
void philox_normal(
    const uint64_t* keys,    // [n]
    const uint32_t* minors,  // [n]
    int64_t n,
    int64_t numel,
    float* out,  // [n, numel], contiguous
    int num_threads);

// The instruction set chosen at run time: "amx" (AVX-512 and the matrix unit), "avx512", "avx2" or "baseline".
const char* isa_name();

// Chooses another one, for tests and benches; false if this machine or build lacks it.
bool set_isa(const char* name);

}  // namespace journey::cpu
