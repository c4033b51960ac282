// Steps of the lanes of a tile, many lanes at a time. Included once per instruction set.
#pragma once

#include <algorithm>

#ifndef __AVX512F__
#include "avx2_places.h"
#endif
#include "trellis_decode.h"
#include "trellis_lanes.h"

namespace llmc {
namespace LLMC_ISA {

inline U load_lanes(const std::uint32_t* from) {
    U out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

inline void store_lanes(void* to, U x) { std::memcpy(to, &x, sizeof x); }

// A constant that stays in a register, or in memory: compilers make them anew in every turn of a loop.
template <typename T>
inline T kept(T x) {
    asm("" : "+v"(x));
    return x;
}

inline U kept_word(std::uint32_t word) { return kept(U{} + word); }

struct Constants {
    U branch, base, lowest = kept_word(kLowest);
    U twelve = kept_word(0xFFF), parity = kept_word(1u << kParityAt), registers = kept_word(kRegisters);
    U symbol = kept_word(0x1FE), sign = kept_word(0x80000000u), one = kept_word(1), below = kept_word(0x7FFF);
    I last = kept(I{} + static_cast<std::int32_t>(kTrellisShifts - 1));
    F half = kept(all(0.5f));
#if defined(__AVX512F__)
    F shifts[2];
#else
    F shifts[4];
#endif

    explicit Constants(const TrellisTables& t)
        : branch(kept_word(t.branch)), base(kept_word(2 * static_cast<std::uint32_t>(t.head->base))) {
        for (std::size_t i = 0; i < kTrellisShifts / kWidth; ++i) shifts[i] = kept(load(&t.shifts[i * kWidth]));
    }
};

#if defined(__AVX512F__)

inline U gather(const std::uint32_t* table, U at) { return (U)_mm512_i32gather_epi32((__m512i)at, table, 4); }

// Gives those of the first `live` lanes that are below the interval their words.
inline U refill(U x, U lowest, const std::uint8_t*& words, std::size_t live) {
    const auto known = static_cast<__mmask16>((1u << std::min<std::size_t>(live, 16)) - 1);
    const __m512i all = (__m512i)x;
    const __mmask16 due = _mm512_mask_cmplt_epu32_mask(known, all, (__m512i)lowest);
    const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    words += 2 * static_cast<std::size_t>(_mm_popcnt_u32(due));
    return (U)_mm512_mask_or_epi32(all, due, _mm512_slli_epi32(all, 16), _mm512_maskz_expand_epi32(due, next));
}

inline void store_bytes(std::uint8_t* to, U x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
}

// 2 * symbol + parity.
inline U doubled(U entry, U parity, const Constants& c) {
    const __m512i symbol = _mm512_srli_epi32((__m512i)entry, 23), low = _mm512_srli_epi32((__m512i)parity, kParityAt);
    return (U)_mm512_ternarylogic_epi32(symbol, (__m512i)c.symbol, low, 0xEA);  // symbol & c.symbol | low
}

// What codes come to, in steps: exact, so that it matters not how.
inline F moved_of(U codes, const Constants& c) {
    const __m512i size = _mm512_abs_epi32((__m512i)codes), at = _mm512_min_epi32(size, (__m512i)c.last);
    const __m512 shift = _mm512_permutex2var_ps((__m512)c.shifts[0], at, (__m512)c.shifts[1]);
    const __m512i moved = (__m512i)_mm512_fmsub_ps(_mm512_cvtepi32_ps(size), (__m512)c.half, shift);
    return (F)_mm512_ternarylogic_epi32(moved, (__m512i)codes, (__m512i)c.sign, 0x78);  // moved ^ (codes & c.sign)
}

inline void store_words(std::uint8_t* to, U x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)x));
}

inline void store_half(std::uint8_t* to, F x) {
    const __m256i words = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
}

inline bool any_escape(U most) {
    const __m512i first = _mm512_set1_epi32(static_cast<int>(kFirstTrellisEscape << 24));
    return _mm512_cmpge_epu32_mask((__m512i)most, first) != 0;
}

#else

inline U gather(const std::uint32_t* table, U at) {
    return (U)_mm256_i32gather_epi32(reinterpret_cast<const int*>(table), (__m256i)at, 4);
}

inline U refill(U x, U, const std::uint8_t*& words, std::size_t live) {
    const auto known = static_cast<unsigned>((1u << std::min<std::size_t>(live, 8)) - 1);
    const __m256i all = (__m256i)x, due = _mm256_cmpeq_epi32(_mm256_srli_epi32(all, 16), _mm256_setzero_si256());
    const unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(due))) & known;
    const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    const __m256i place = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces[mask].data())));
    words += 2 * static_cast<std::size_t>(_mm_popcnt_u32(mask));
    const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(all, 16), _mm256_permutevar8x32_epi32(next, place));
    return (U)_mm256_blendv_epi8(all, refilled, due);  // of lanes that are not live nothing is kept
}

inline void store_bytes(std::uint8_t* to, U x) {
    const __m256i all = (__m256i)x;
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}

inline U doubled(U entry, U parity, const Constants& c) { return (entry >> 23 & c.symbol) | parity >> kParityAt; }

inline F moved_of(U codes, const Constants& c) {
    const __m256i size = _mm256_abs_epi32((__m256i)codes), at = _mm256_min_epi32(size, (__m256i)c.last);
    const auto eight = [&](std::size_t i) { return _mm256_permutevar8x32_ps((__m256)c.shifts[i], at); };
    const __m256 third = (__m256)_mm256_slli_epi32(at, 28), fourth = (__m256)_mm256_slli_epi32(at, 27);
    const __m256 low = _mm256_blendv_ps(eight(0), eight(1), third), high = _mm256_blendv_ps(eight(2), eight(3), third);
    const F moved = (F)_mm256_cvtepi32_ps(size) * c.half - (F)_mm256_blendv_ps(low, high, fourth);
    return (F)((U)moved ^ (codes & c.sign));
}

inline void store_words(std::uint8_t* to, U x) {
    const __m256i all = _mm256_packus_epi32((__m256i)(x & 0xFFFFu), _mm256_setzero_si256());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(all, 8)));
}

inline void store_half(std::uint8_t* to, F x) { store_as<Number::kFloat16>(to, as_stored<Number::kFloat16>(x)); }

inline bool any_escape(U most) {
    return _mm256_movemask_ps((__m256)(_mm256_cmpeq_epi32((__m256i)(most >> 25), _mm256_set1_epi32(127)))) != 0;
}

#endif

// Codes, or the values they come to in columns of these steps.
template <Form K>
inline void put_all(std::uint8_t* to, U codes, F step, const Constants& c) {
    if constexpr (K == Form::kCodes) return store_words(to, codes);
    const F value = moved_of(codes, c) * step;
    const U bits = (U)value;
    if constexpr (K == Form::kFloat32) store_lanes(to, bits);
    if constexpr (K == Form::kFloat16) store_half(to, value);
    if constexpr (K == Form::kBfloat16) store_words(to, (bits + c.below + (bits >> 16 & c.one)) >> 16);
}

// What V registers of lanes hold from step to step.
template <std::size_t V>
struct Registers {
    U x[V], state[V], table[V];
    F step[V];
    std::size_t live[V];

    explicit Registers(const TileLanes& lanes) {
#pragma GCC unroll 8
        for (std::size_t v = 0; v < V; ++v) {
            x[v] = load_lanes(&lanes.x[v * kWidth]);
            state[v] = load_lanes(&lanes.state[v * kWidth]);
            table[v] = load_lanes(&lanes.table[v * kWidth]);
            step[v] = load(&lanes.step[v * kWidth]);
            live[v] = std::min(kWidth, lanes.live - std::min(lanes.live, v * kWidth));
        }
    }

    void save(TileLanes& lanes) const {
#pragma GCC unroll 8
        for (std::size_t v = 0; v < V; ++v) {
            store_lanes(&lanes.x[v * kWidth], x[v]);
            store_lanes(&lanes.state[v * kWidth], state[v]);
        }
    }
};

template <Form K>
inline void put(std::uint8_t* to, U codes, F step, const Constants& c, std::size_t live) {
    if (__builtin_expect(live == kWidth, 1)) return put_all<K>(to, codes, step, c);
    std::uint8_t some[kWidth * bytes_of(K)];
    put_all<K>(some, codes, step, c);
    std::copy_n(some, live * bytes_of(K), to);
}

// One row; true where one of its symbols is an escape. Gathers come first: some processors do little beside them.
template <Form K, std::size_t V>
inline __attribute__((always_inline)) bool step(const Constants& c, Registers<V>& r, const std::uint32_t* lut,
                                                const std::uint8_t*& words, std::uint8_t* symbols, std::uint8_t* to) {
    U symbol[V], parity[V], most{};
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        parity[v] = r.state[v] & c.parity;
        symbol[v] = gather(lut, r.table[v] + (parity[v] | (r.x[v] & c.twelve)));
    }
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        const U high = r.x[v] >> kTrellisBits, offset = symbol[v] & c.twelve;
        r.x[v] = refill((symbol[v] >> 12 & c.twelve) * high + (high + offset), c.lowest, words, r.live[v]);
        const U branch = (U)((I)((symbol[v] ^ r.state[v]) << (31 - kFlipAt)) >> 31);
        r.state[v] = (r.state[v] >> 1 & c.registers) ^ (branch & c.branch);
        most = symbol[v] > most ? symbol[v] : most;
    }
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) {
        store_bytes(symbols + v * kWidth, symbol[v] >> 24);
        const U codes = doubled(symbol[v], parity[v], c) + c.base;
        put<K>(to + v * kWidth * bytes_of(K), codes, r.step[v], c, r.live[v]);
    }
    return any_escape(most);
}

template <Form K, std::size_t V>
std::size_t tile_steps(const TrellisTables& t, TileLanes& lanes, const TileRows& rows, std::size_t steps, Escapes escapes) {
    const Constants c(t);
    Registers<V> r(lanes);
    const std::uint8_t* words = lanes.words;
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 2 * kWidth * V; ++done) {
        std::uint8_t *symbols = rows.symbols + done * lanes.live, *to = rows.values + done * 64 * bytes_of(K);
        rows.ask_for(done, V * kWidth * bytes_of(K));
        if (__builtin_expect(step<K, V>(c, r, t.lut.data() + rows.row_table[done], words, symbols, to), 0)) {
            r.save(lanes);
            escapes(t, lanes, symbols, to);
        }
    }
    r.save(lanes);
    lanes.words = words;
    return done;
}

template <std::size_t V>
TileSteps tile_steps_as(Form form) {
    switch (form) {
        case Form::kFloat32: return &tile_steps<Form::kFloat32, V>;
        case Form::kBfloat16: return &tile_steps<Form::kBfloat16, V>;
        case Form::kFloat16: return &tile_steps<Form::kFloat16, V>;
        case Form::kCodes: break;
    }
    return &tile_steps<Form::kCodes, V>;
}

inline TileSteps tile_steps_for(Form form, std::size_t live) {
    if (live <= kWidth) return tile_steps_as<1>(form);
    if (live <= 2 * kWidth) return tile_steps_as<2>(form);
    if (live <= 4 * kWidth) return tile_steps_as<4>(form);
    return tile_steps_as<64 / kWidth>(form);
}

}  // namespace LLMC_ISA
}  // namespace llmc
