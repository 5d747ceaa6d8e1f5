// Chooses the instruction set, once, at the first use: the widest that this build and processor have.
#include <cstring>
#include <vector>

#include "drivers.h"
#ifdef JOURNEY_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace journey::cpu {
namespace {

#ifdef JOURNEY_AMX
// Whether the processor has the matrix unit and the system lets this process use it: its registers are large, so
// programs must ask.
bool may_use_amx() {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr uint32_t kTile = 1u << 24, kBFloat16 = 1u << 22;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kTile) || !(edx & kBFloat16)) return false;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// The sets that this build and processor have, the widest first.
std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found;
#ifdef JOURNEY_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef JOURNEY_AMX
    if (avx512 && may_use_amx()) found.push_back(&amx::kernels);
#endif
    if (avx512) found.push_back(&avx512::kernels);
    if (avx2) found.push_back(&avx2::kernels);
#endif
    found.push_back(&baseline::kernels);
    return found;
}

struct Dispatch {
    const std::vector<const Kernels*> available = available_kernels();
    const Kernels* chosen = available.front();
};

Dispatch& dispatch() {
    static Dispatch once;
    return once;
}

}  // namespace

const Kernels& chosen_kernels() { return *dispatch().chosen; }

const char* isa_name() { return chosen_kernels().name; }

bool set_isa(const char* name) {
    for (const Kernels* kernels : dispatch().available)
        if (std::strcmp(kernels->name, name) == 0) {
            dispatch().chosen = kernels;
            return true;
        }
    return false;
}

}  // namespace journey::cpu
