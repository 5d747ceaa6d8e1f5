// What the emulation test can call beside the bindings: single instructions, and the maps of csrc/common as the CPU
// computes them.
#include "../../../csrc/common/dense_map.h"
#include "../../../csrc/common/sketch_map.h"
#include "../../../csrc/cuda/layer_operand.h"

using namespace journey;

namespace {

// Eight values travel to thread t from thread t ^ 33, in another warp: with the barriers that this takes, or without
// one of them.
void exchange(bool before_reading, bool before_writing, float* out) {
    __shared__ float shared[64];
    const int thread = static_cast<int>(threadIdx.x);
    for (int round = 0; round < 8; ++round) {
        shared[thread] = static_cast<float>(100 * round + thread);
        if (before_reading) __syncthreads();
        __syncwarp();
        out[8 * thread + round] = shared[thread ^ 33];
        if (before_writing) __syncthreads();
    }
}

}  // namespace

extern "C" {

// What the compiler's checks call, which the build chooses.
#define JOURNEY_CHECK(name, what) \
    void __ubsan_handle_##name(...) { emulation::fail(what); }
JOURNEY_CHECK(type_mismatch_v1, "an address is not aligned to what is read or written there")
JOURNEY_CHECK(shift_out_of_bounds, "a shift by more bits than there are")
JOURNEY_CHECK(add_overflow, "a sum overflows")
JOURNEY_CHECK(sub_overflow, "a difference overflows")
JOURNEY_CHECK(mul_overflow, "a product overflows")
JOURNEY_CHECK(negate_overflow, "a negation overflows")
JOURNEY_CHECK(divrem_overflow, "a division by zero")
JOURNEY_CHECK(out_of_bounds, "an index beyond its array")
#undef JOURNEY_CHECK

// See emulation::Order.
void set_order(int order) { emulation::machine.order = static_cast<emulation::Order>(order); }

// The device that this thread's next launches would go to.
int get_current_device() { return current_device; }

int run_exchange(int before_reading, int before_writing, float* out) {
    return emulation::run(dim3(1), 64, 0, [&] { exchange(before_reading != 0, before_writing != 0, out); });
}

int run_misaligned(const float* from, float* out) {
    return emulation::run(dim3(1), 1, 0, [&] { *out = reinterpret_cast<const cuda::Float4*>(from)->value[0]; });
}

// Of the device that is emulated; 1, 227 KiB and -1 at first.
void set_device(int tensor_cores, int max_shared_bytes, int addend_bits) {
    emulation::machine.addend_bits = addend_bits;
    emulation::machine.tensor_cores = tensor_cores != 0;
    emulation::machine.max_shared_bytes = max_shared_bytes;
}

// One product of fragments, given and returned as what each lane holds: a [32, 4], b [32, 2], c [32, 4].
int run_mma(int dtype, const uint32_t* a, const uint32_t* b, float* c) {
    return emulation::run(dim3(1), 32, 0, [&] {
        const int lane = cuda::lane_id();
        uint32_t own_a[4], own_b[2];
        float own_c[4];
        std::copy(a + 4 * lane, a + 4 * lane + 4, own_a);
        std::copy(b + 2 * lane, b + 2 * lane + 2, own_b);
        std::copy(c + 4 * lane, c + 4 * lane + 4, own_c);
        const auto status = cuda::dispatch(static_cast<DType>(dtype), [&](auto type) {
            cuda::mma<typename decltype(type)::type>(own_c, own_a, own_b);
            return cudaSuccess;
        });
        if (status != cudaSuccess) emulation::fail("no such dtype");
        std::copy(own_c, own_c + 4, c + 4 * lane);
    });
}

// Four matrices of 8 rows of 4 words, one after another, aligned to 16 bytes, as what each lane receives [32, 4].
int run_load_matrices(const uint32_t* matrices, uint32_t* words) {
    return emulation::run(dim3(1), 32, 0, [&] {
        uint32_t own[4];
        cuda::load_matrices(own, matrices + 4 * cuda::lane_id());
        std::copy(own, own + 4, words + 4 * cuda::lane_id());
    });
}

// The first part of x in place.
void split_tf32(float* x, float* low, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const cuda::Split split = cuda::split_tf32(float_bits(x[i]));
        x[i] = bits_float(split.high);
        low[i] = bits_float(split.low & cuda::kTf32Bits);
    }
}

// n / divisor, as the kernels divide.
int divide(int n, int64_t divisor) { return cuda::divide(n, cuda::make_divisor(divisor)); }

// Copies 16 bytes asynchronously and reads them too early if told so.
int run_copy(const void* from, int bytes, int waits, void* out) {
    return emulation::run(dim3(1), 1, 16, [&] {
        cuda::copy_async(emulation::dynamic_shared(), from, bytes);
        cuda::commit_copies();
        if (waits != 0) cuda::wait_for_copies<0>();
        std::memcpy(out, emulation::dynamic_shared(), 16);
    });
}

void host_normal(uint64_t key, uint32_t minor, float* out, int64_t numel) {
    for (int64_t e = 0; e < numel; ++e) {
        const Slot at = slot(static_cast<uint64_t>(e));
        const Philox4 draw = philox(key, at.index, minor, kStreamNoise);
        const int pair = at.word / 2 * 2;
        out[e] = normal2(draw.word[pair], draw.word[pair + 1]).value[at.word % 2];
    }
}

void host_sketch_map(
    uint64_t key,
    uint32_t repetition,
    int64_t row_begin,
    int64_t rows,
    int64_t cols,
    int64_t proj_dim,
    int64_t* buckets,
    double* signs) {
    for (int64_t i = 0; i < rows * cols; ++i) {
        const Bucket bucket = sketch_bucket(key, repetition, row_begin + i / cols, i % cols, cols, proj_dim);
        buckets[i] = bucket.index;
        signs[i] = bucket.negative ? -1.0 : 1.0;
    }
}

// Entry (d, k) of the dense projections.
void host_projection(int kind, uint64_t key, int64_t row_begin, int64_t rows, int64_t columns, double* out) {
    for (int64_t i = 0; i < rows * columns; ++i) {
        const int64_t d = row_begin + i / columns, k = i % columns;
        if (kind == 0) {
            const Philox4 draw = dense_signs(key, d, k / kSignColumns);
            out[i] = (draw.word[k % kSignColumns / 32] >> (k % 32)) & 1u ? -1.0 : 1.0;
        } else {
            const Slot at = slot(static_cast<uint64_t>(k));
            out[i] = dense_normals(key, d, static_cast<uint32_t>(at.index)).value[at.word];
        }
    }
}

}  // extern "C"
