// Vectors for the search and for the decoder of trellises. Included once per instruction set.
#pragma once

#ifdef LLMC_X86
#include <immintrin.h>
#endif

#include "grid_lanes.h"

namespace llmc {
namespace LLMC_ISA {

using I = std::int32_t __attribute__((vector_size(4 * LLMC_WIDTH)));

// Entry `at` of a table of 32.
inline F entry(const float* table, I at) {
#if defined(__AVX512F__)
    return (F)_mm512_permutex2var_ps(_mm512_loadu_ps(table), (__m512i)at, _mm512_loadu_ps(table + 16));
#elif defined(__AVX2__)
    const auto eight = [&](std::size_t i) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8 * i), (__m256i)at); };
    const __m256 third = (__m256)(at << 28), fourth = (__m256)(at << 27);  // bits 3 and 4 as signs: a gather is slower
    const __m256 low = _mm256_blendv_ps(eight(0), eight(1), third), high = _mm256_blendv_ps(eight(2), eight(3), third);
    return (F)_mm256_blendv_ps(low, high, fourth);
#else
    F out;
    for (std::size_t i = 0; i < kWidth; ++i) out[i] = table[at[i]];
    return out;
#endif
}

}  // namespace LLMC_ISA
}  // namespace llmc
