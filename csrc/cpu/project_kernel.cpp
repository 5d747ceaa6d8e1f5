// Dense random projection of gradients with a matrix that is generated as it is used.
//
//     features[b, k] += sum_d grads[b, d] * P[row_begin + d, k] / sqrt(proj_dim)      P: common/dense_map.h
//
// A block of 128 x 128 entries of P is generated into L2 and used for every sample, six samples at a time in registers.
// Floor: 2 * batch * grad_dim * proj_dim FLOPs; generating costs about one draw (ten rounds) per 128 signs or 4
// normals. Sums run over 128 entries in registers and then over blocks. Reference: journey/ops/reference.py::project.
#include "philox_kernel.h"
#include "simd.h"

#include <cmath>

namespace journey::cpu::JOURNEY_ISA {
namespace {

constexpr int kVectors = 4;  // vectors of 16 columns that a pass holds in registers, per sample
constexpr int kPassColumns = 16 * kVectors;
static_assert(kSignColumns % kPassColumns == 0 && kSignColumns % kNormalColumns == 0, "a block is whole passes");

void generate_signs(const ProjectArgs& args, int64_t d, int64_t depth, int64_t column, float* block) {
    Philox16 draws;
    const Vec16 one = fill16(1.0f);
    for (int64_t begin = 0; begin < depth; begin += kDraws) {
        philox16_indices(
            args.key, static_cast<uint64_t>(args.row_begin + d + begin), static_cast<uint32_t>(column / kSignColumns),
            kStreamDenseSign, draws);
        for (int64_t i = 0; i < kDraws && begin + i < depth; ++i) {
            float* row = block + (begin + i) * kSignColumns;
            for (int w = 0; w < 4; ++w) {
                store16(row + w * 32, negate16(one, draws.word[w][i] & 0xFFFFu));
                store16(row + w * 32 + 16, negate16(one, draws.word[w][i] >> 16));
            }
        }
    }
}

void generate_normals(const ProjectArgs& args, int64_t d, int64_t depth, int64_t column, float* block) {
    Philox16 draws;
    for (int64_t i = 0; i < depth; ++i) {
        for (int64_t c = 0; c < kSignColumns; c += kNormalColumns) {
            philox16_minors(
                args.key, static_cast<uint64_t>(args.row_begin + d + i),
                static_cast<uint32_t>((column + c) / kNormalColumns * kDraws), kStreamDenseNormal, draws);
            normals16(draws, block + i * kSignColumns + c);
        }
    }
}

// Copies `depth` entries of one sample as fp32.
template <typename input_t>
void load_entries(const input_t* grads, int64_t depth, float* out) {
    int64_t i = 0;
    for (; i + 16 <= depth; i += 16) store16(out + i, load_input16(grads + i));
    if (i < depth) {
        input_t padded[16] = {};
        float tail[16];
        for (int64_t j = i; j < depth; ++j) padded[j - i] = grads[j];
        store16(tail, load_input16(padded));
        for (int64_t j = i; j < depth; ++j) out[j] = tail[j - i];
    }
}

// sums[r][v] = sum over d of entries[r][d] * block[d][16 v ...], added scaled to the features of kRows samples.
template <int kRows>
void multiply(
    const float* entries, const float* block, int64_t depth, int64_t columns, float scale, float* out, int64_t stride) {
    Vec16 sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) sums[r][v] = zero16();

    for (int64_t d = 0; d < depth; ++d) {
        Vec16 p[kVectors];
        for (int v = 0; v < kVectors; ++v) p[v] = load16(block + d * kSignColumns + 16 * v);
        for (int r = 0; r < kRows; ++r) {
            const Vec16 g = fill16(entries[r * kProjectDepth + d]);
            for (int v = 0; v < kVectors; ++v) sums[r][v] = fma16(g, p[v], sums[r][v]);
        }
    }

    for (int r = 0; r < kRows; ++r) {
        float total[kPassColumns];
        for (int v = 0; v < kVectors; ++v) store16(total + 16 * v, sums[r][v]);
        for (int64_t k = 0; k < columns; ++k) out[r * stride + k] += scale * total[k];
    }
}

using multiply_t = void (*)(const float*, const float*, int64_t, int64_t, float, float*, int64_t);
constexpr multiply_t kMultiply[kProjectRows] = {multiply<1>, multiply<2>, multiply<3>,
                                                multiply<4>, multiply<5>, multiply<6>};

template <typename input_t>
void run_typed(const ProjectTask& task) {
    const ProjectArgs& args = *task.args;
    const input_t* grads = static_cast<const input_t*>(args.grads);
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.proj_dim)));
    float* block = task.scratch;
    float* entries = task.scratch + kProjectDepth * kSignColumns;

    for (int64_t d = 0; d < args.grad_dim; d += kProjectDepth) {
        const int64_t depth = args.grad_dim - d < kProjectDepth ? args.grad_dim - d : kProjectDepth;
        for (int64_t column = task.column_begin; column < task.column_end; column += kSignColumns) {
            if (args.kind == Dense::kRademacher)
                generate_signs(args, d, depth, column, block);
            else
                generate_normals(args, d, depth, column, block);

            for (int64_t b = task.batch_begin; b < task.batch_end; b += kProjectRows) {
                const int64_t rows = task.batch_end - b < kProjectRows ? task.batch_end - b : kProjectRows;
                for (int64_t r = 0; r < rows; ++r)
                    load_entries(grads + (b + r) * args.grads_stride + d, depth, entries + r * kProjectDepth);
                for (int64_t c = 0; c < kSignColumns && column + c < task.column_end; c += kPassColumns) {
                    const int64_t left = task.column_end - column - c;
                    kMultiply[rows - 1](
                        entries, block + c, depth, left < kPassColumns ? left : kPassColumns, scale,
                        args.features + b * args.features_stride + column + c, args.features_stride);
                }
            }
        }
    }
}

}  // namespace

void run_project(const ProjectTask& task) {
    switch (task.args->dtype) {
        case DType::kFloat32:
            return run_typed<float>(task);
        case DType::kFloat16:
            return run_typed<Half>(task);
        case DType::kBFloat16:
            return run_typed<BFloat>(task);
    }
}

}  // namespace journey::cpu::JOURNEY_ISA
