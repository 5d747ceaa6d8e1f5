// A race detector for the emulated kernels, which are then compiled with -fsanitize=thread: the compiler calls the
// functions of races.cpp at every access, and these ask here.
//
// Two accesses of which one is a write race unless a barrier orders them: one of the block, or, of threads of one warp,
// one of the warp. So an access is remembered with the number of barriers that its block and its warp have passed;
// whether the schedule at hand shows the race does not matter. Looked at are shared memory, of one block, and the
// outputs and the workspace that the test names, of one launch, in whose different blocks nothing is ordered.
#pragma once

#include <cstdint>
#include <cstdio>
#include <unordered_map>
#include <utility>
#include <vector>

namespace emulation {

struct Access {
    uint64_t block;  // in the order in which they ran
    int thread;
    uint64_t block_barriers;
    uint64_t warp_barriers;
};

class Races {
public:
    using Range = std::pair<uintptr_t, uintptr_t>;

    std::vector<Range> outputs;
    uint64_t found = 0, seen = 0;
    bool running = false;  // a thread of a kernel

    void begin_launch() { in_outputs_.clear(); }

    void begin_block(const Range& statics, const Range& dynamic) {
        shared_ = {statics, dynamic};
        in_shared_.clear();
        ++block_, block_barriers_ = 0;
        for (uint64_t& barriers : warp_barriers_) barriers = 0;
    }

    void pass_block_barrier() { ++block_barriers_; }
    void pass_warp_barrier(int warp) { ++warp_barriers_[warp]; }

    void access(uintptr_t address, uintptr_t bytes, bool writes, int thread) {
        if (!running) return;
        Cells* cells = within(shared_, address) ? &in_shared_ : within(outputs, address) ? &in_outputs_ : nullptr;
        if (cells == nullptr) return;
        running = false;  // what follows is instrumented where a kernel's file has compiled it
        ++seen;
        const Access now{block_, thread, block_barriers_, warp_barriers_[thread / 32]};
        for (uintptr_t word = address / 4; word <= (address + bytes - 1) / 4; ++word) look(cells, word, now, writes);
        running = true;
    }

private:
    struct Cell {
        bool written = false;
        Access write{};
        std::vector<Access> reads;  // since, the last of each thread
    };
    using Cells = std::unordered_map<uintptr_t, Cell>;

    static bool within(const std::vector<Range>& ranges, uintptr_t address) {
        for (const Range& range : ranges)
            if (address >= range.first && address < range.second) return true;
        return false;
    }

    static bool ordered(const Access& first, const Access& then) {
        if (first.block != then.block) return false;
        if (first.thread == then.thread || first.block_barriers < then.block_barriers) return true;
        return first.thread / 32 == then.thread / 32 && first.warp_barriers < then.warp_barriers;
    }

    void report(const char* what, const Access& first, const Access& then) {
        if (found++ > 0) return;
        std::fprintf(
            stderr, "cuda emulation: a race, %s, of threads %d and %d of blocks %llu and %llu\n", what, first.thread,
            then.thread, static_cast<unsigned long long>(first.block), static_cast<unsigned long long>(then.block));
    }

    void look(Cells* cells, uintptr_t word, const Access& now, bool writes) {
        Cell& cell = (*cells)[word];
        if (cell.written && !ordered(cell.write, now))
            report(writes ? "two writes" : "a read of a write", cell.write, now);
        if (writes) {
            for (const Access& read : cell.reads)
                if (!ordered(read, now)) report("a write of what is read", read, now);
            cell.reads.clear();
            cell.written = true;
            cell.write = now;
            return;
        }
        for (Access& read : cell.reads)
            if (read.thread == now.thread && read.block == now.block) {
                read = now;
                return;
            }
        cell.reads.push_back(now);
    }

    std::vector<Range> shared_;
    Cells in_shared_, in_outputs_;
    uint64_t block_ = 0, block_barriers_ = 0, warp_barriers_[32] = {};
};

inline Races races;

}  // namespace emulation
