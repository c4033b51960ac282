// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mpopcnt. Sixteen lanes to a register, four at a time.
#include <immintrin.h>

#include "decode.h"

namespace llmc {
namespace {

enum class LookUp : std::uint8_t { kPacked, kTwice, kSearch };

__m512i gather(const std::uint32_t* table, __m512i index) { return _mm512_i32gather_epi32(index, table, 4); }

__m512i load16(const std::uint8_t* bytes) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Registers that hold a whole table of at most 32 symbols: no memory is read, whatever gathers cost here.
struct Registers {
    __m512i starts[2], found[2], names[2];

    explicit Registers(const DecodeTables& t) {
        for (std::size_t half = 0; half < 2; ++half) {
            starts[half] = _mm512_load_si512(t.starts.data() + 16 * half);
            found[half] = _mm512_load_si512(t.found.data() + 16 * half);
            names[half] = _mm512_load_si512(t.names.data() + 16 * half);
        }
    }

    // The last of the 32 starts that is not above `slot`: five halvings.
    __m512i place(__m512i slot) const {
        __m512i at = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int width = 16; width; width /= 2) {
            const __m512i probe = _mm512_add_epi32(at, _mm512_set1_epi32(width));
            const __m512i start = _mm512_permutex2var_epi32(starts[0], probe, starts[1]);
            at = _mm512_mask_mov_epi32(at, _mm512_cmpge_epu32_mask(slot, start), probe);
        }
        return at;
    }
};

template <LookUp How>
__m512i look_up(const DecodeTables& t, const Registers& r, __m512i& x, __m512i base, __m512i slot, __m128i bits) {
    const __m512i index = _mm512_add_epi32(base, slot), high = _mm512_srl_epi32(x, bits);
    if constexpr (How == LookUp::kPacked) {
        const __m512i entry = gather(t.lut.data(), index), twelve = _mm512_set1_epi32(0xFFF);
        const __m512i q1 = _mm512_and_si512(_mm512_srli_epi32(entry, 12), twelve);
        const __m512i offset = _mm512_add_epi32(high, _mm512_and_si512(entry, twelve));
        x = _mm512_add_epi32(_mm512_mullo_epi32(q1, high), offset);
        return _mm512_srli_epi32(entry, 24);
    } else if constexpr (How == LookUp::kTwice) {
        const __m512i wide = _mm512_i32gather_epi32(index, t.symbols.data(), 1);
        const __m512i symbol = _mm512_and_si512(wide, _mm512_set1_epi32(0xFF));
        const __m512i row = _mm512_slli_epi32(_mm512_srl_epi32(base, bits), 8);
        const __m512i pair = gather(t.pairs.data(), _mm512_add_epi32(row, symbol));
        const __m512i q = _mm512_and_si512(pair, _mm512_set1_epi32(0xFFFF));
        const __m512i offset = _mm512_sub_epi32(slot, _mm512_srli_epi32(pair, 16));
        x = _mm512_add_epi32(_mm512_mullo_epi32(q, high), offset);
        return symbol;
    } else {
        const __m512i at = r.place(slot);
        const __m512i found = _mm512_permutex2var_epi32(r.found[0], at, r.found[1]);
        const __m512i start = _mm512_and_si512(found, _mm512_set1_epi32(0x3FFF));
        const __m512i offset = _mm512_add_epi32(high, _mm512_sub_epi32(slot, start));
        x = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32(found, 14), high), offset);
        return _mm512_permutex2var_epi32(r.names[0], at, r.names[1]);
    }
}

// Gives the lanes of `x` below the interval their words.
const std::uint8_t* refill(__m512i& x, const std::uint8_t* words) {
    const __mmask16 due = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(static_cast<int>(kLowest)));
    const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    x = _mm512_mask_or_epi32(x, due, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(due, next));
    return words + 2 * static_cast<std::size_t>(_mm_popcnt_u32(due));
}

template <Selector S, LookUp How, std::size_t V>
inline __attribute__((always_inline)) void step(const DecodeTables& t, const Registers& r, __m512i* x, __m512i* state,
                                                const std::uint8_t*& words, std::uint8_t* out,
                                                const std::uint8_t* contexts) {
    const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(t.bits));
    const __m512i mask = _mm512_set1_epi32((1 << t.bits) - 1);
    __m512i symbol[V];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        __m512i base = _mm512_setzero_si512();
        if constexpr (S == Selector::kContext) base = gather(t.base.data(), load16(contexts + 16 * v));
        if constexpr (S == Selector::kAutomaton) base = _mm512_srli_epi32(state[v], 8);
        symbol[v] = look_up<How>(t, r, x[v], base, _mm512_and_si512(x[v], mask), bits);
        if constexpr (S == Selector::kAutomaton) {
            const __m512i row = _mm512_slli_epi32(_mm512_and_si512(state[v], _mm512_set1_epi32(0xFF)), 8);
            state[v] = gather(t.moves.data(), _mm512_add_epi32(row, symbol[v]));
        }
    }
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        words = refill(x[v], words);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * v), _mm512_cvtepi32_epi8(symbol[v]));
    }
}

// Exactly V registers of lanes: the states stay in them.
template <Selector S, LookUp How, std::size_t V>
std::size_t run(const DecodeTables& t, Lanes& lanes, std::uint8_t* out, const std::uint8_t* contexts,
                std::size_t steps) {
    const Registers r(t);
    __m512i x[V], state[V];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        x[v] = _mm512_load_si512(lanes.x.data() + 16 * v);
        state[v] = _mm512_load_si512(lanes.state.data() + 16 * v);
    }
    const std::uint8_t* words = lanes.words;
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 32 * V; ++done, out += 16 * V) {
        step<S, How, V>(t, r, x, state, words, out, contexts);
        if constexpr (S == Selector::kContext) contexts += 16 * V;
    }
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        _mm512_store_si512(lanes.x.data() + 16 * v, x[v]);
        _mm512_store_si512(lanes.state.data() + 16 * v, state[v]);
    }
    lanes.words = words;
    return done;
}

// More than 64 lanes: four registers at a time.
template <Selector S, LookUp How>
std::size_t run_many(const DecodeTables& t, Lanes& lanes, std::uint8_t* out, const std::uint8_t* contexts,
                     std::size_t steps) {
    const Registers r(t);
    auto* x = reinterpret_cast<__m512i*>(lanes.x.data());
    auto* state = reinterpret_cast<__m512i*>(lanes.state.data());
    const std::uint8_t* words = lanes.words;
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 2 * lanes.count; ++done) {
        for (std::size_t g = 0; g < lanes.count / 16; g += 4) {
            const std::uint8_t* seen = S == Selector::kContext ? contexts + 16 * g : nullptr;
            step<S, How, 4>(t, r, x + g, state + g, words, out + 16 * g, seen);
        }
        out += lanes.count;
        if constexpr (S == Selector::kContext) contexts += lanes.count;
    }
    lanes.words = words;
    return done;
}

template <Selector S, LookUp How>
Steps by_lanes(std::size_t lanes) {
    if (lanes > 64) return &run_many<S, How>;
    return lanes == 64 ? &run<S, How, 4> : lanes == 32 ? &run<S, How, 2> : &run<S, How, 1>;
}

template <Selector S>
Steps pick(const DecodeTables& t, std::size_t lanes) {
    return t.packed ? by_lanes<S, LookUp::kPacked>(lanes) : by_lanes<S, LookUp::kTwice>(lanes);
}

}  // namespace

Steps avx512_steps(const DecodeTables& t, std::size_t lanes) {
    if (lanes < 16) return nullptr;
    if (t.selector == Selector::kContext) return pick<Selector::kContext>(t, lanes);
    if (t.selector == Selector::kAutomaton) return pick<Selector::kAutomaton>(t, lanes);
    return pick<Selector::kOne>(t, lanes);
}

Steps avx512_search_steps(const DecodeTables& t, std::size_t lanes) {
    if (lanes < 16 || !t.searchable) return nullptr;
    return by_lanes<Selector::kOne, LookUp::kSearch>(lanes);
}

}  // namespace llmc
