// What -fsanitize=thread calls, in place of its own library: see races.h.
#include "cuda_runtime_api.h"

extern "C" {

#define JOURNEY_ACCESS(bytes)                                                                 \
    void __tsan_read##bytes(void* at) { emulation::note_access(at, bytes, false); }           \
    void __tsan_write##bytes(void* at) { emulation::note_access(at, bytes, true); }           \
    void __tsan_unaligned_read##bytes(void* at) { emulation::note_access(at, bytes, false); } \
    void __tsan_unaligned_write##bytes(void* at) { emulation::note_access(at, bytes, true); } \
    void __tsan_volatile_read##bytes(void* at) { emulation::note_access(at, bytes, false); }  \
    void __tsan_volatile_write##bytes(void* at) { emulation::note_access(at, bytes, true); }
JOURNEY_ACCESS(1)
JOURNEY_ACCESS(2)
JOURNEY_ACCESS(4)
JOURNEY_ACCESS(8)
JOURNEY_ACCESS(16)
#undef JOURNEY_ACCESS

void __tsan_read_range(void* at, uintptr_t bytes) { emulation::note_access(at, bytes, false); }
void __tsan_write_range(void* at, uintptr_t bytes) { emulation::note_access(at, bytes, true); }
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Of the guards of functions' static variables; kernels have no atomics.
uint8_t __tsan_atomic8_load(const volatile uint8_t* at, int) { return *at; }

// The memory of the next launches in which blocks must not meet.
void clear_outputs() { emulation::races.outputs.clear(); }
void add_output(uintptr_t begin, int64_t bytes) {
    emulation::races.outputs.push_back({begin, begin + static_cast<uintptr_t>(bytes)});
}
uint64_t count_races() { return emulation::races.found; }
uint64_t count_accesses() { return emulation::races.seen; }
}
