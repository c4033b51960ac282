// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mpopcnt.
#include <immintrin.h>

#include "encode.h"

namespace llmc {
namespace {

// floor(x / q), and the remainder: the quotient of floats is off by one at most, because it is below 2^20.
__m512i divide(__m512i x, __m512i q, __m512i& remainder) {
    const __m512 ratio = _mm512_div_ps(_mm512_cvtepu32_ps(x), _mm512_cvtepi32_ps(q));
    const __m512i one = _mm512_set1_epi32(1);
    __m512i quotient = _mm512_cvttps_epi32(ratio);
    remainder = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, q));
    const __mmask16 above = _mm512_movepi32_mask(remainder);
    quotient = _mm512_mask_sub_epi32(quotient, above, quotient, one);
    remainder = _mm512_mask_add_epi32(remainder, above, remainder, q);
    const __mmask16 below = _mm512_cmpge_epi32_mask(remainder, q);
    quotient = _mm512_mask_add_epi32(quotient, below, quotient, one);
    remainder = _mm512_mask_sub_epi32(remainder, below, remainder, q);
    return quotient;
}

// Stores the low words of the lanes that are too high for their symbol, in lane order, below `words`.
std::uint8_t* spill(__m512i& x, __m512i q, unsigned high, std::uint8_t* words) {
    const __mmask16 due = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, high), q);
    const auto count = static_cast<unsigned>(_mm_popcnt_u32(due));
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(due, x));
    words -= 2 * static_cast<std::size_t>(count);
    _mm256_mask_storeu_epi16(words, static_cast<__mmask16>((1u << count) - 1u), low);
    x = _mm512_mask_srli_epi32(x, due, x, 16);
    return words;
}

__m512i load16(const std::uint8_t* bytes) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// V registers of lanes, last lane first: their divisions hide each other's latency.
template <bool Tables, std::size_t V>
inline __attribute__((always_inline)) std::uint8_t* group(const EncodeTables& t, __m512i* x, const std::uint8_t* symbols,
                                                          const std::uint8_t* tables_of, std::uint8_t* words) {
    const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(t.bits));
    __m512i pair[V];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < V; ++v) {
        __m512i index = load16(symbols + 16 * v);
        if constexpr (Tables) index = _mm512_or_si512(index, _mm512_slli_epi32(load16(tables_of + 16 * v), 8));
        pair[v] = _mm512_i32gather_epi32(index, t.pairs.data(), 4);
    }
#pragma GCC unroll 4
    for (std::size_t k = 1; k <= V; ++k) {
        const std::size_t v = V - k;
        const __m512i q = _mm512_and_si512(pair[v], _mm512_set1_epi32(0xFFFF));
        __m512i remainder;
        words = spill(x[v], q, 32 - t.bits, words);
        const __m512i quotient = divide(x[v], q, remainder);
        const __m512i slot = _mm512_add_epi32(remainder, _mm512_srli_epi32(pair[v], 16));
        x[v] = _mm512_add_epi32(_mm512_sll_epi32(quotient, bits), slot);
    }
    return words;
}

template <bool Tables, std::size_t V>
std::uint8_t* run(const EncodeTables& t, std::uint32_t* states, std::size_t lanes, const std::uint8_t* symbols,
                  const std::uint8_t* tables_of, std::size_t steps, std::uint8_t* words) {
    auto* all = reinterpret_cast<__m512i*>(states);
    const std::size_t groups = lanes / (16 * V);
    for (std::size_t i = steps * groups; i-- > 0;) {
        const std::uint8_t* chosen = Tables ? tables_of + 16 * V * i : nullptr;
        words = group<Tables, V>(t, all + V * (i % groups), symbols + 16 * V * i, chosen, words);
    }
    return words;
}

template <bool Tables>
EncodeSteps by_lanes(std::size_t lanes) {
    return lanes >= 64 ? &run<Tables, 4> : lanes == 32 ? &run<Tables, 2> : &run<Tables, 1>;
}

}  // namespace

std::uint8_t* encode_steps_avx512(const EncodeTables& t, std::uint32_t* x, std::size_t lanes,
                                  const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t steps,
                                  std::uint8_t* words) {
    return (tables_of ? by_lanes<true> : by_lanes<false>)(lanes)(t, x, lanes, symbols, tables_of, steps, words);
}

}  // namespace llmc
