// What each operation is told, on every device. Python gives each field by its name (read_args.h), so nothing depends
// on their order.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

// Lists the fields of a struct once more, for what goes through all of them. Every call compares this list with the
// names that Python gives (read_args.h); test_op_contracts.py tests that a difference is refused by name.
#define JOURNEY_FIELDS(...)                                   \
    static const char* field_names() { return #__VA_ARGS__; } \
    auto fields() { return std::tie(__VA_ARGS__); }

namespace journey {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// How CUDA kernels may form products of float32 inputs; half types are multiplied exactly and summed in float32 anyway,
// and the CPU always keeps float32 or better.
enum class Precision : int {
    kFloat32 = 0,  // to the rounding of float32 (3xTF32 on tensor cores)
    kTf32 = 1,     // operands rounded to 11 significant bits
};

enum class Dense : int { kRademacher = 0, kNormal = 1 };

// out[i, 0..3] = Philox words of (keys[i], indices[i], minors[i], stream).
struct PhiloxWordsArgs {
    const uint64_t* keys;     // [n]
    const uint64_t* indices;  // [n]
    const uint32_t* minors;   // [n]
    int64_t* out;             // [n, 4], contiguous, overwritten
    int64_t n;
    uint32_t stream;  // of random numbers, see philox.h

    JOURNEY_FIELDS(keys, indices, minors, out, n, stream)
};

// out[i, e] = standard normal e of the noise stream (keys[i], minors[i]).
struct PhiloxNormalArgs {
    const uint64_t* keys;    // [n]
    const uint32_t* minors;  // [n]
    float* out;              // [n, numel], contiguous, overwritten
    int64_t n;
    int64_t numel;

    JOURNEY_FIELDS(keys, minors, out, n, numel)
};

// features[b, :] += sketch of grads[b], see sketch_map.h.
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

    JOURNEY_FIELDS(
        grads, features, dtype, batch, rows, cols, grads_batch_stride, features_stride, row_begin, proj_dim, key, nnz)
};

// The sketches of many small parameters, whose gradients lie side by side, each times its scale. The lists have a
// number for each parameter.
struct SketchManyArgs {
    const float* grads;  // [batch, sum of rows * cols]
    float* features;     // [batch, proj_dim], added to
    int64_t batch;
    int64_t grads_stride;     // in elements
    int64_t features_stride;  // in elements
    int64_t proj_dim;         // a multiple of 32
    int64_t nnz;              // independent sketches, summed and divided by sqrt(nnz)
    std::vector<int64_t> rows;
    std::vector<int64_t> cols;
    std::vector<int64_t> row_begins;
    std::vector<uint64_t> keys;
    std::vector<double> scales;

    JOURNEY_FIELDS(
        grads, features, batch, grads_stride, features_stride, proj_dim, nnz, rows, cols, row_begins, keys, scales)

    bool lists_agree() const {
        const size_t count = rows.size();
        return cols.size() == count && row_begins.size() == count && keys.size() == count && scales.size() == count;
    }
};

// features[b, k] += sum_d grads[b, d] * P[row_begin + d, k] / sqrt(proj_dim), P from dense_map.h.
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

    JOURNEY_FIELDS(
        grads, features, dtype, kind, batch, grad_dim, proj_dim, grads_stride, features_stride, row_begin, key)
};

using Size3 = int64_t[3];     // leading ones (zeros of a padding) where there are fewer dimensions
using Strides4 = int64_t[4];  // of rows, channels, lines and columns, in elements

// features[i, :] += scale * sketch of the weight gradient of the rows of group i, which is never stored. A Linear is a
// convolution with a kernel of one and its positions as columns.
struct SketchOuterArgs {
    const void* a;    // layer input [num_groups * rows_per_group, c_in, *in_size]
    const void* g;    // output gradient [num_groups * rows_per_group, c_out, *out_size]
    float* features;  // [num_groups, proj_dim], added to
    DType dtype;      // of a and g
    Precision precision;
    bool channels_last;  // a Linear. The CPU takes contiguous tensors, here [rows, positions, c_in]
    Strides4 a_strides;  // CUDA takes any, but no third dimension
    Strides4 g_strides;
    int64_t num_groups;
    int64_t rows_per_group;  // consecutive rows whose gradients are summed
    int64_t c_in;
    int64_t c_out;
    int64_t conv_groups;  // blocks of channels that do not see each other
    Size3 in_size;
    Size3 out_size;
    Size3 kernel;
    Size3 stride;
    Size3 padding;
    Size3 dilation;
    int64_t features_stride;  // in elements
    int64_t proj_dim;         // a multiple of 32
    uint64_t key;
    int64_t nnz;  // independent sketches, summed and divided by sqrt(nnz)
    double scale;
    float* sums;  // of g over positions and the rows of a group [num_groups, c_out], overwritten; CUDA alone, or null
    int64_t sums_stride;  // in elements

    JOURNEY_FIELDS(
        a,
        g,
        features,
        dtype,
        precision,
        channels_last,
        a_strides,
        g_strides,
        num_groups,
        rows_per_group,
        c_in,
        c_out,
        conv_groups,
        in_size,
        out_size,
        kernel,
        stride,
        padding,
        dilation,
        features_stride,
        proj_dim,
        key,
        nnz,
        scale,
        sums,
        sums_stride)
};

// The sketches of several layers, added one after the other to the same features.
struct SketchOuterManyArgs {
    std::vector<SketchOuterArgs> layers;  // alike in features, num_groups, features_stride, proj_dim and nnz

    JOURNEY_FIELDS(layers)
};

// Weight and bias gradients of a normalisation layer, of each row or of what is given as one.
struct NormGradsArgs {
    const void* x;  // layer input [num_rows, channels, positions], or [num_rows, positions, channels] without groups
    const void* g;  // output gradient, likewise; both contiguous
    float* grads;   // [num_rows, 2, channels], overwritten
    DType dtype;    // of x and g
    int64_t num_rows;
    int64_t channels;
    int64_t positions;
    int64_t groups;  // of channels that are normalised together, over all positions; 0: all channels, at each position
    bool centered;   // the mean is subtracted first
    double eps;

    JOURNEY_FIELDS(x, g, grads, dtype, num_rows, channels, positions, groups, centered, eps)
};

// gram[i, j] += sum over s of features[s, i] * features[s, j] for i <= j; entries below the diagonal are not touched.
struct GramArgs {
    const void* features;  // [num_samples, proj_dim]
    double* gram;          // [proj_dim, proj_dim], its upper triangle is added to
    DType dtype;           // of features
    Precision precision;
    int64_t num_samples;
    int64_t proj_dim;
    int64_t features_stride;  // in elements
    int64_t gram_stride;      // in elements

    JOURNEY_FIELDS(features, gram, dtype, precision, num_samples, proj_dim, features_stride, gram_stride)
};

// packed[i], scales[i] = rows[i] in few bits, see packed.h. A row with an entry that is not finite has scale NaN.
struct PackRowsArgs {
    const float* rows;  // [num_rows, proj_dim]
    uint8_t* packed;    // [num_rows, proj_dim * bits / 8], contiguous, overwritten
    float* scales;      // [num_rows], overwritten
    int64_t bits;       // 8 or 4
    int64_t num_rows;
    int64_t proj_dim;     // a multiple of 32
    int64_t rows_stride;  // in elements

    JOURNEY_FIELDS(rows, packed, scales, bits, num_rows, proj_dim, rows_stride)
};

// out[q, i] = scales[i] * sum over k of queries[q, k] * code k of packed[i]
struct PackedProductsArgs {
    const float* queries;   // [num_queries, proj_dim]
    const uint8_t* packed;  // [num_rows, proj_dim * bits / 8]
    const float* scales;    // [num_rows], contiguous
    float* out;             // [num_queries, num_rows], overwritten
    int64_t bits;           // 8 or 4
    int64_t num_queries;
    int64_t num_rows;
    int64_t proj_dim;        // a multiple of 32
    int64_t queries_stride;  // in elements
    int64_t packed_stride;   // in bytes
    int64_t out_stride;      // in elements

    JOURNEY_FIELDS(
        queries, packed, scales, out, bits, num_queries, num_rows, proj_dim, queries_stride, packed_stride, out_stride)
};

}  // namespace journey
