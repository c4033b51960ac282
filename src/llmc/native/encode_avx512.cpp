// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mpopcnt. Sixteen lanes to a register.
#include <immintrin.h>

#include <algorithm>

#include "encode.h"

namespace llmc {
namespace {

// Where what belongs to a symbol is found: in registers for 32 or 64 neighbouring symbols, or in memory.
enum class LookUp : std::uint8_t { kRegisters32, kRegisters64, kMemory, kTables };

__m512i load16(const std::uint8_t* bytes) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Entries of the only table from its first symbol on; they stay in registers.
template <LookUp How>
struct Entries {
    static constexpr std::size_t kCount = How == LookUp::kRegisters64 ? 4 : How == LookUp::kRegisters32 ? 2 : 1;
    __m512i pairs[kCount], inverses[kCount], first;

    explicit Entries(const EncodeTables& t) : first(_mm512_set1_epi32(static_cast<int>(t.first))) {
        if constexpr (How == LookUp::kMemory || How == LookUp::kTables) return;
        for (std::size_t i = 0; i < kCount; ++i) {
            const std::size_t at = t.first + 16 * i, left = at < 256 ? 256 - at : 0;
            const auto there = static_cast<__mmask16>(left >= 16 ? 0xFFFFu : (1u << left) - 1u);
            pairs[i] = _mm512_maskz_loadu_epi32(there, t.pairs.data() + std::min<std::size_t>(at, 255));
            inverses[i] = _mm512_maskz_loadu_epi32(there, t.inverses.data() + std::min<std::size_t>(at, 255));
        }
    }

    static __m512i entry(const __m512i* table, __m512i at) {
        const __m512i low = _mm512_permutex2var_epi32(table[0], at, table[1]);
        if constexpr (How != LookUp::kRegisters64) return low;
        const __m512i high = _mm512_permutex2var_epi32(table[2], at, table[3]);
        return _mm512_mask_mov_epi32(low, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), high);
    }

    // For the symbols of sixteen lanes: q | start << 16, and a little less than 1 / q.
    void find(const EncodeTables& t, const std::uint8_t* symbols, const std::uint8_t* tables_of, __m512i& pair,
              __m512& inverse) const {
        __m512i index = load16(symbols);
        if constexpr (How == LookUp::kRegisters32 || How == LookUp::kRegisters64) {
            index = _mm512_sub_epi32(index, first);
            pair = entry(pairs, index);
            inverse = _mm512_castsi512_ps(entry(inverses, index));
            return;
        }
        if constexpr (How == LookUp::kTables) index = _mm512_or_si512(index, _mm512_slli_epi32(load16(tables_of), 8));
        pair = _mm512_i32gather_epi32(index, t.pairs.data(), 4);
        inverse = _mm512_div_ps(_mm512_set1_ps(1.0F - 1.0F / (1 << 22)),
                                _mm512_cvtepi32_ps(_mm512_and_si512(pair, _mm512_set1_epi32(0xFFFF))));
    }
};

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

// V registers of lanes, last lane first: their arithmetic hides each other's latency.
template <LookUp How, std::size_t V>
inline __attribute__((always_inline)) std::uint8_t* group(const EncodeTables& t, const Entries<How>& entries, __m512i* x,
                                                          const std::uint8_t* symbols, const std::uint8_t* tables_of,
                                                          std::uint8_t* words) {
    const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(t.bits));
    const __m512i total = _mm512_set1_epi32(1 << t.bits);
    __m512i pair[V];
    __m512 inverse[V];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < V; ++v) {
        const std::uint8_t* chosen = How == LookUp::kTables ? tables_of + 16 * v : nullptr;
        entries.find(t, symbols + 16 * v, chosen, pair[v], inverse[v]);
    }
#pragma GCC unroll 4
    for (std::size_t k = 1; k <= V; ++k) {
        const std::size_t v = V - k;
        const __m512i q = _mm512_and_si512(pair[v], _mm512_set1_epi32(0xFFFF));
        words = spill(x[v], q, 32 - t.bits, words);
        // x / q, or one less; a slot more in the second case.
        const __m512i quotient = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_cvtepu32_ps(x[v]), inverse[v]));
        const __m512i rest = _mm512_sub_epi32(x[v], _mm512_mullo_epi32(quotient, q));
        const __m512i slot = _mm512_add_epi32(rest, _mm512_srli_epi32(pair[v], 16));
        const __m512i next = _mm512_add_epi32(_mm512_sll_epi32(quotient, bits), slot);
        x[v] = _mm512_mask_add_epi32(next, _mm512_cmpge_epu32_mask(rest, q), next, _mm512_sub_epi32(total, q));
    }
    return words;
}

template <LookUp How, std::size_t V>
std::uint8_t* run(const EncodeTables& t, std::uint32_t* states, std::size_t lanes, const std::uint8_t* symbols,
                  const std::uint8_t* tables_of, std::size_t steps, std::uint8_t* words) {
    const Entries<How> entries(t);
    auto* all = reinterpret_cast<__m512i*>(states);
    const std::size_t groups = lanes / (16 * V);
    for (std::size_t i = steps; i-- > 0;)
        for (std::size_t g = groups; g-- > 0;) {
            const std::size_t at = 16 * V * (i * groups + g);
            const std::uint8_t* chosen = How == LookUp::kTables ? tables_of + at : nullptr;
            words = group<How, V>(t, entries, all + V * g, symbols + at, chosen, words);
        }
    return words;
}

template <LookUp How>
EncodeSteps by_lanes(std::size_t lanes) {
    return lanes >= 64 ? &run<How, 4> : lanes == 32 ? &run<How, 2> : &run<How, 1>;
}

}  // namespace

EncodeSteps encode_steps_avx512(const EncodeTables& t, std::size_t lanes, bool several_tables) {
    if (lanes < 16) return nullptr;
    if (several_tables) return by_lanes<LookUp::kTables>(lanes);
    if (t.span > 64) return by_lanes<LookUp::kMemory>(lanes);
    return t.span > 32 ? by_lanes<LookUp::kRegisters64>(lanes) : by_lanes<LookUp::kRegisters32>(lanes);
}

}  // namespace llmc
