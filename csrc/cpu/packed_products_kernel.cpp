// Products of a few queries with packed rows.
//
//     out[q, i] = scales[i] * sum over k of queries[q, k] * code k of row i
//
// Floor: reading proj_dim * bits / 8 bytes of each row once, and with many queries the rate of float32 FMAs, of which
// there are num_queries for each code. A vector of codes is converted once for eight queries (four on AVX2) and kept in
// a register, three rows at a time, so that a vector of queries serves three FMAs.
//
// A product is summed in as many lanes as a register has, in the order of k, and the lanes are folded in halves:
// neither threads nor the rows and queries beside it change a bit of it. Its error is at most
// (proj_dim / 8 + 8) * 2^-24 of the sum of magnitudes; codes times a scale are exact (common/packed.h).
//
// Reference: journey/ops/reference_packed.py::packed_products.
#include "../common/packed.h"
#include "packed_simd.h"

namespace journey::cpu::JOURNEY_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kMostQueries = 8;  // 24 sums, three rows and a query of 32 registers
#else
constexpr int kMostQueries = 4;  // 12 sums, three rows and a query of 16 registers
#endif
constexpr int kRows = 3;
constexpr int kParts = kPackedBlock / kFloats;

// Queries that are done together, the next of `left`; zeros make up for those that are not there.
int64_t block_queries(int64_t left) {
    int64_t count = 1;
    while (count < left && count < kMostQueries) count *= 2;
    return count;
}

template <int kQueries>
using Sums = VecF[kRows][kQueries];

template <int kBits, int kQueries, int kPart>
inline void multiply_part(const uint8_t* const (&rows)[kRows], int64_t at, const float*& panel, Sums<kQueries>& sums) {
    VecF row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = codes<kBits, kPart>(rows[r] + at);
    for (int q = 0; q < kQueries; ++q, panel += kFloats) {
        const VecF query = load_f(panel);
        for (int r = 0; r < kRows; ++r) sums[r][q] = fma_f(row[r], query, sums[r][q]);
    }
}

// Rows from `first`, the last again where there are not enough; `panel` is that of queries from `query` on.
template <int kBits, int kQueries>
void multiply_rows(const PackedTask& task, int64_t first, int64_t query, const float* panel) {
    const PackedProductsArgs& args = *task.args;
    const uint8_t* rows[kRows];
    for (int r = 0; r < kRows; ++r)
        rows[r] = args.packed + (first + r < task.row_end ? first + r : task.row_end - 1) * args.packed_stride;
    const int64_t row_bytes = args.proj_dim * kBits / 8, ahead = kRows * args.packed_stride;
    const bool more = first + 2 * kRows <= args.num_rows;
    Sums<kQueries> sums;
    for (int r = 0; r < kRows; ++r)
        for (int q = 0; q < kQueries; ++q) sums[r][q] = zero_f();
    for (int64_t at = 0; at < row_bytes; at += kPackedBlock * kBits / 8) {
        // No prefetcher looks beyond a page of memory, and a row is one.
        if (more && at % 64 == 0)
            for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[r] + ahead + at);
        multiply_part<kBits, kQueries, 0>(rows, at, panel, sums);
        multiply_part<kBits, kQueries, 1>(rows, at, panel, sums);
        if constexpr (kParts == 4) {
            multiply_part<kBits, kQueries, 2>(rows, at, panel, sums);
            multiply_part<kBits, kQueries, 3>(rows, at, panel, sums);
        }
    }
    for (int r = 0; r < kRows && first + r < task.row_end; ++r)
        for (int q = 0; q < kQueries && query + q < args.num_queries; ++q)
            args.out[(query + q) * args.out_stride + first + r] = args.scales[first + r] * sum_f(sums[r][q]);
}

template <int kBits>
void multiply(const PackedTask& task) {
    const PackedProductsArgs& args = *task.args;
    const float* panel = task.panels;
    for (int64_t query = 0; query < args.num_queries;) {
        const int64_t count = block_queries(args.num_queries - query);
        const auto run = count == 8   ? &multiply_rows<kBits, kMostQueries>
                         : count == 4 ? &multiply_rows<kBits, 4>
                         : count == 2 ? &multiply_rows<kBits, 2>
                                      : &multiply_rows<kBits, 1>;
        for (int64_t row = task.row_begin; row < task.row_end; row += kRows) run(task, row, query, panel);
        query += count;
        panel += count * args.proj_dim;
    }
}

}  // namespace

int64_t query_panel_floats(const PackedProductsArgs& args) {
    int64_t queries = 0;
    while (queries < args.num_queries) queries += block_queries(args.num_queries - queries);
    return queries * args.proj_dim;
}

// Of each block of queries a panel [proj_dim / kFloats, queries, kFloats].
void pack_queries(const PackedProductsArgs& args, float* panels) {
    for (int64_t query = 0; query < args.num_queries;) {
        const int64_t count = block_queries(args.num_queries - query);
        for (int64_t k = 0; k < args.proj_dim; k += kFloats)
            for (int64_t q = 0; q < count; ++q, panels += kFloats) {
                const float* from = args.queries + (query + q) * args.queries_stride + k;
                for (int i = 0; i < kFloats; ++i) panels[i] = query + q < args.num_queries ? from[i] : 0.0f;
            }
        query += count;
    }
}

void packed_products(const PackedTask& task) { task.args->bits == 8 ? multiply<8>(task) : multiply<4>(task); }

}  // namespace journey::cpu::JOURNEY_ISA
