// Warp instructions of csrc/cuda/tensor_core.h on the CPU. Every lane leaves its operands, waits for its warp, and
// computes its own results from those of all lanes.
//
// Products are exact. A sum is rounded towards zero once, or, if the machine is told so, every addend is cut to the
// bits of the largest and some more, as hardware does: how many it keeps is not documented. A number converted to TF32
// has arbitrary bits where TF32 has none. Asynchronous copies happen as late as they may, when their thread waits for
// them, or as early, when they are started: by the machine's order.
#pragma once

namespace emulation {

struct Operands {
    uint32_t a[4], b[2];
    const uint32_t* row;
};

struct Warp {
    // Two sets in turn: a lane that is one instruction ahead must not overwrite what others still read.
    Operands lanes[2][kWarp];
    int calls[kWarp];
};

inline Warp warps[kMaxThreads / kWarp];

inline void clear_warps() {
    for (Warp& warp : warps) std::fill(warp.calls, warp.calls + kWarp, 0);
}

// Leaves this lane's operands and returns those of the warp.
inline const Operands* exchange(const Operands& own) {
    const int lane = machine.current % kWarp;
    Warp& warp = warps[machine.current / kWarp];
    Operands* set = warp.lanes[warp.calls[lane]++ % 2];
    set[lane] = own;
    pause(State::kAtExchange);
    return set;
}

inline void load_matrices(uint32_t (&words)[4], const uint32_t* row) {
    Operands own{};
    own.row = row;
    const Operands* lanes = exchange(own);
    const int lane = machine.current % kWarp;
    for (int matrix = 0; matrix < 4; ++matrix) {
        const uint32_t* source = lanes[matrix * 8 + lane / 4].row;
        if (reinterpret_cast<uintptr_t>(source) % 16 != 0) fail("a matrix row is not aligned to 16 bytes");
        words[matrix] = source[lane % 4];
    }
}

// The value of the lane whose number differs in the bits of `mask`.
template <typename value_t>
inline value_t shuffle_xor(value_t x, int mask) {
    static_assert(sizeof(value_t) == sizeof(uint32_t), "a register");
    Operands own{};
    std::memcpy(own.a, &x, sizeof(x));
    const Operands* lanes = exchange(own);
    std::memcpy(&x, lanes[machine.current % kWarp ^ mask].a, sizeof(x));
    return x;
}

// Byte i is that of the eight of a and b whose number is in bits [4 i, 4 i + 3) of the selector.
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i)
        result |= static_cast<uint32_t>(both >> (selector >> (4 * i) & 7u) * 8 & 0xFFu) << (8 * i);
    return result;
}

inline uint32_t to_tf32(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return (((bits & 0x7F800000u) == 0x7F800000u ? bits : bits + 0x1000u) & ~0x1FFFu) | 0x1234u;
}

inline float truncated(double x) {
    const float nearest = static_cast<float>(x);
    return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0f) : nearest;
}

// The sum of the first `count` addends as a tensor core forms it.
inline float sum_of(const double* addends, int count) {
    double largest = 0.0, sum = 0.0;
    for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(addends[i]));
    const bool cuts = machine.addend_bits >= 0 && std::isfinite(largest) && largest > 0.0;
    const double unit = cuts ? std::ldexp(1.0, std::ilogb(largest) - 23 - machine.addend_bits) : 0.0;
    for (int i = 0; i < count; ++i) sum += cuts ? std::trunc(addends[i] / unit) * unit : addends[i];
    return truncated(sum);
}

template <typename input_t>
struct Elements;

template <>
struct Elements<float> {
    static constexpr int kPerWord = 1;
    static double at(uint32_t word, int) {
        word &= ~0x1FFFu;  // the rest is not read
        float value;
        std::memcpy(&value, &word, sizeof(value));
        return value;
    }
};

template <>
struct Elements<__half> {
    static constexpr int kPerWord = 2;
    static double at(uint32_t word, int half) {
        return __half2float(__half{static_cast<uint16_t>(word >> (16 * half))});
    }
};

template <>
struct Elements<__nv_bfloat16> {
    static constexpr int kPerWord = 2;
    static double at(uint32_t word, int half) {
        return __bfloat162float(__nv_bfloat16{static_cast<uint16_t>(word >> (16 * half))});
    }
};

template <typename input_t>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Operands own{};
    std::copy(a, a + 4, own.a);
    std::copy(b, b + 2, own.b);
    const Operands* lanes = exchange(own);
    const int lane = machine.current % kWarp;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double addends[17] = {c[i]};
        int count = 1;
        for (int word = 0; word < 8; ++word) {
            const uint32_t left = lanes[row % 8 * 4 + word % 4].a[row / 8 + word / 4 * 2];
            const uint32_t right = lanes[column * 4 + word % 4].b[word / 4];
            for (int half = 0; half < Elements<input_t>::kPerWord; ++half)
                addends[count++] = Elements<input_t>::at(left, half) * Elements<input_t>::at(right, half);
        }
        c[i] = sum_of(addends, count);
    }
}

struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool landed;
};

inline void land(Copy& copy) {
    if (copy.landed) return;
    copy.landed = true;
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
}

// Of each thread: groups of copies, the youngest still open.
inline std::vector<std::vector<Copy>> copies[kMaxThreads];

inline void copy_async(void* to, const void* from, int bytes) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
        fail("a copy of 16 bytes is not aligned");
    note_access(to, 16, true);  // it may land from here on, whenever it does
    auto& groups = copies[machine.current];
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back(Copy{to, from, bytes, false});
    const bool early = machine.order == Order::kBackward || (machine.order == Order::kShuffled && chance(2) == 0);
    if (early) land(groups.back().back());
}

inline void commit_copies() {
    auto& groups = copies[machine.current];
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}

inline void wait_for_copies(int younger) {
    auto& groups = copies[machine.current];
    while (static_cast<int>(groups.size()) > younger + 1) {
        for (Copy& copy : groups.front()) {
            note_access(copy.to, 16, true);
            land(copy);
        }
        groups.erase(groups.begin());
    }
}

// Copies that a thread did not wait for are an error: they may land after the block's end.
inline void end_copies(int thread) {
    for (const auto& group : copies[thread])
        if (!group.empty()) fail("a thread ended before its copies");
    copies[thread].clear();
}

}  // namespace emulation
