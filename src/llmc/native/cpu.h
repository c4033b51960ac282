// What this processor can do, asked once.
#pragma once

namespace llmc {

struct Cpu {
    bool sse42 = false, avx2 = false, avx512 = false;
};

inline const Cpu& cpu() {
#ifdef LLMC_X86
    static const Cpu found = [] {
        __builtin_cpu_init();
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
        const bool sse42 = __builtin_cpu_supports("sse4.2");
        return Cpu{sse42, avx2, avx2 && avx512 && sse42};
    }();
#else
    static const Cpu found{};
#endif
    return found;
}

}  // namespace llmc
