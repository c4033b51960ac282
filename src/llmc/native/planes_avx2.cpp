// Compiled with -mavx2 -mpopcnt.
#define LLMC_ISA avx2
#include <immintrin.h>

#include "planes_loops.h"

namespace llmc {

extern const PlaneLoops kAvx2Loops = {&avx2::take_any, &avx2::put_any, &avx2::put_symbols, &avx2::code};

// Interleaving bytes works within halves of a register, so the halves are loaded crosswise first.
void stream_bf16(const std::uint8_t* exponents, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers) {
    for (std::size_t i = 0; i < n; i += 32) {
        const __m256i e = _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(exponents + i)), 0xD8);
        const __m256i r = _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(raw + i)), 0xD8);
        const __m256i low = _mm256_unpacklo_epi8(r, e), high = _mm256_unpackhi_epi8(r, e);
        auto* out = reinterpret_cast<__m256i*>(numbers + 2 * i);
        _mm256_stream_si256(out, _mm256_or_si256(_mm256_srli_epi16(low, 1), _mm256_slli_epi16(low, 15)));
        _mm256_stream_si256(out + 1, _mm256_or_si256(_mm256_srli_epi16(high, 1), _mm256_slli_epi16(high, 15)));
    }
    _mm_sfence();
}

}  // namespace llmc
