// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mpopcnt. Sixteen lanes to a register, four at a time.
#include <utility>

#include "avx512_lanes.h"

namespace llmc {
namespace {

// The symbols of register I, at bits 8 I where four registers make bytes together; advances `x` and `state`.
template <Selector S, LookUp How, std::size_t V, std::size_t I>
inline __attribute__((always_inline)) __m512i one(const DecodeTables& t, __m512i& x, __m512i& state,
                                                  const std::uint8_t* contexts) {
    constexpr unsigned kShift = V == 4 ? 8 * I : 0;
    const __m512i slot = _mm512_and_si512(x, _mm512_set1_epi32((1 << t.bits) - 1));
    const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(t.bits));
    if constexpr (S == Selector::kOne) return look_up<How, kShift>(t, x, _mm512_setzero_si512(), slot, bits);
    if constexpr (S == Selector::kContext)
        return look_up<How, kShift>(t, x, gather(t.base.data(), load16(contexts + 16 * I)), slot, bits);
    const __m512i symbol = look_up<How, 0>(t, x, _mm512_srli_epi32(state, 8), slot, bits);
    const __m512i row = _mm512_slli_epi32(_mm512_and_si512(state, _mm512_set1_epi32(0xFF)), 8);
    state = gather(t.moves.data(), _mm512_add_epi32(row, symbol));
    return _mm512_slli_epi32(symbol, kShift);
}

template <Selector S, LookUp How, std::size_t... I>
inline __attribute__((always_inline)) void step(const DecodeTables& t, __m512i* x, __m512i* state,
                                                const std::uint8_t*& words, std::uint8_t* out,
                                                const std::uint8_t* contexts, std::index_sequence<I...>) {
    constexpr std::size_t V = sizeof...(I);
    const __m512i symbol[] = {one<S, How, V, I>(t, x[I], state[I], contexts)...};
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        words = refill(x[v], words);
        if constexpr (V < 4) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * v), _mm512_cvtepi32_epi8(symbol[v]));
    }
    if constexpr (V == 4) _mm512_storeu_si512(out, bytes_of(symbol));
}

// Exactly V registers of lanes: the states stay in them.
template <Selector S, LookUp How, std::size_t V>
std::size_t run(const DecodeTables& t, Lanes& lanes, std::uint8_t* out, const std::uint8_t* contexts,
                std::size_t steps) {
    __m512i x[V], state[V];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        x[v] = _mm512_load_si512(lanes.x.data() + 16 * v);
        state[v] = _mm512_load_si512(lanes.state.data() + 16 * v);
    }
    const std::uint8_t* words = lanes.words;
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 32 * V; ++done, out += 16 * V) {
        step<S, How>(t, x, state, words, out, contexts, std::make_index_sequence<V>{});
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
    auto* x = reinterpret_cast<__m512i*>(lanes.x.data());
    auto* state = reinterpret_cast<__m512i*>(lanes.state.data());
    const std::uint8_t* words = lanes.words;
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 2 * lanes.count; ++done) {
        for (std::size_t g = 0; g < lanes.count / 16; g += 4) {
            const std::uint8_t* seen = S == Selector::kContext ? contexts + 16 * g : nullptr;
            step<S, How>(t, x + g, state + g, words, out + 16 * g, seen, std::make_index_sequence<4>{});
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
    if (lanes < 16) return nullptr;
    switch (t.search.how) {
        case Search::kClimb2: return by_lanes<Selector::kOne, LookUp::kClimb2>(lanes);
        case Search::kClimb3: return by_lanes<Selector::kOne, LookUp::kClimb3>(lanes);
        case Search::kHalve4: return by_lanes<Selector::kOne, LookUp::kHalve4>(lanes);
        case Search::kHalve5: return by_lanes<Selector::kOne, LookUp::kHalve5>(lanes);
        case Search::kHalve6: return by_lanes<Selector::kOne, LookUp::kHalve6>(lanes);
        case Search::kNone: break;
    }
    return nullptr;
}

}  // namespace llmc
