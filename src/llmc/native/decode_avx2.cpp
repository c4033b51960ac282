// Compiled with -mavx2 -mpopcnt. Eight lanes to a register; two registers at a time hide each other's latency.
#include <immintrin.h>

#include "avx2_places.h"
#include "decode.h"

namespace llmc {
namespace {

__m256i gather(const std::uint32_t* table, __m256i index) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, 4);
}

// The symbols of eight lanes, in 32 bits each; advances `x`.
template <bool Packed>
__m256i look_up(const DecodeTables& t, __m256i& x, __m256i base, __m256i slot, __m128i bits) {
    const __m256i index = _mm256_add_epi32(base, slot), high = _mm256_srl_epi32(x, bits);
    if constexpr (Packed) {
        const __m256i entry = gather(t.lut.data(), index), twelve = _mm256_set1_epi32(0xFFF);
        const __m256i q1 = _mm256_and_si256(_mm256_srli_epi32(entry, 12), twelve);
        const __m256i offset = _mm256_add_epi32(high, _mm256_and_si256(entry, twelve));
        x = _mm256_add_epi32(_mm256_mullo_epi32(q1, high), offset);
        return _mm256_srli_epi32(entry, 24);
    } else {
        const __m256i wide = _mm256_i32gather_epi32(reinterpret_cast<const int*>(t.symbols.data()), index, 1);
        const __m256i symbol = _mm256_and_si256(wide, _mm256_set1_epi32(0xFF));
        const __m256i row = _mm256_slli_epi32(_mm256_srl_epi32(base, bits), 8);
        const __m256i pair = gather(t.pairs.data(), _mm256_add_epi32(row, symbol));
        const __m256i q = _mm256_and_si256(pair, _mm256_set1_epi32(0xFFFF));
        const __m256i offset = _mm256_sub_epi32(slot, _mm256_srli_epi32(pair, 16));
        x = _mm256_add_epi32(_mm256_mullo_epi32(q, high), offset);
        return symbol;
    }
}

// Gives the lanes of `x` below the interval their words.
const std::uint8_t* refill(__m256i& x, const std::uint8_t* words) {
    const __m256i due = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
    const auto mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(due)));
    const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    const __m256i place = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces[mask].data())));
    const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_permutevar8x32_epi32(next, place));
    x = _mm256_blendv_epi8(x, refilled, due);
    return words + 2 * static_cast<std::size_t>(_mm_popcnt_u32(mask));
}

void store_symbols(std::uint8_t* out, __m256i symbol) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(symbol), _mm256_extracti128_si256(symbol, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}

template <Selector S, bool Packed, std::size_t V>
void step(const DecodeTables& t, __m256i* x, __m256i* state, const std::uint8_t*& words, std::uint8_t* out,
          const std::uint8_t* contexts) {
    const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(t.bits));
    const __m256i mask = _mm256_set1_epi32((1 << t.bits) - 1);
    __m256i symbol[V];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        __m256i base = _mm256_setzero_si256();
        if constexpr (S == Selector::kContext) {
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(contexts + 8 * v));
            base = gather(t.base.data(), _mm256_cvtepu8_epi32(eight));
        }
        if constexpr (S == Selector::kAutomaton) base = _mm256_srli_epi32(state[v], 8);
        symbol[v] = look_up<Packed>(t, x[v], base, _mm256_and_si256(x[v], mask), bits);
        if constexpr (S == Selector::kAutomaton) {
            const __m256i row = _mm256_slli_epi32(_mm256_and_si256(state[v], _mm256_set1_epi32(0xFF)), 8);
            state[v] = gather(t.moves.data(), _mm256_add_epi32(row, symbol[v]));
        }
    }
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        words = refill(x[v], words);
        store_symbols(out + 8 * v, symbol[v]);
    }
}

template <Selector S, bool Packed, std::size_t V>
std::size_t run(const DecodeTables& t, Lanes& lanes, std::uint8_t* out, const std::uint8_t* contexts,
                std::size_t steps) {
    const std::size_t count = lanes.count;
    auto* all = reinterpret_cast<__m256i*>(lanes.x.data());
    auto* states = reinterpret_cast<__m256i*>(lanes.state.data());
    const std::uint8_t* words = lanes.words;
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 2 * count; ++done) {
        for (std::size_t g = 0; g < count / 8; g += V) {
            const std::uint8_t* seen = S == Selector::kContext ? contexts + 8 * g : nullptr;
            step<S, Packed, V>(t, all + g, states + g, words, out + 8 * g, seen);
        }
        out += count;
        if constexpr (S == Selector::kContext) contexts += count;
    }
    lanes.words = words;
    return done;
}

template <Selector S, bool Packed>
Steps by_lanes(std::size_t lanes) {
    return lanes >= 32 ? &run<S, Packed, 4> : lanes >= 16 ? &run<S, Packed, 2> : &run<S, Packed, 1>;
}

template <Selector S>
Steps pick(const DecodeTables& t, std::size_t lanes) {
    return t.packed ? by_lanes<S, true>(lanes) : by_lanes<S, false>(lanes);
}

}  // namespace

Steps avx2_steps(const DecodeTables& t, std::size_t lanes) {
    if (lanes < 8) return nullptr;
    if (t.selector == Selector::kContext) return pick<Selector::kContext>(t, lanes);
    if (t.selector == Selector::kAutomaton) return pick<Selector::kAutomaton>(t, lanes);
    return pick<Selector::kOne>(t, lanes);
}

}  // namespace llmc
