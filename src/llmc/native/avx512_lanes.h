// One step of lanes with AVX-512: sixteen to a register. Only for files compiled for it.
#pragma once

#include <immintrin.h>

#include "decode.h"

namespace llmc {
namespace {

// How a symbol is found. Searching reads no memory, whatever gathers cost here.
enum class LookUp : std::uint8_t { kPacked, kTwice, kHalve4, kHalve5, kHalve6, kClimb2, kClimb3 };

constexpr unsigned halvings(LookUp how) {
    return how == LookUp::kHalve4 ? 4 : how == LookUp::kHalve5 ? 5 : how == LookUp::kHalve6 ? 6 : 0;
}

constexpr unsigned climbs(LookUp how) { return how == LookUp::kClimb2 ? 2 : how == LookUp::kClimb3 ? 3 : 0; }

inline __m512i gather(const std::uint32_t* table, __m512i index) { return _mm512_i32gather_epi32(index, table, 4); }

inline __m512i load16(const std::uint8_t* bytes) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Entry `at` of a table of 2^N; `last` is its top bit again.
template <unsigned N>
inline __m512i entry_of(const std::uint32_t* table, __m512i at, __mmask16 last) {
    if constexpr (N <= 4) return _mm512_permutexvar_epi32(at, _mm512_load_si512(table));
    const __m512i low = _mm512_permutex2var_epi32(_mm512_load_si512(table), at, _mm512_load_si512(table + 16));
    if constexpr (N <= 5) return low;
    const __m512i high = _mm512_permutex2var_epi32(_mm512_load_si512(table + 32), at, _mm512_load_si512(table + 48));
    return _mm512_mask_mov_epi32(low, last, high);
}

// Which of 2^N starts is the last that is not above `slot`; its place in `at` with the first decision in the lowest bit.
template <unsigned N>
inline __mmask16 place(const SearchTables& t, __m512i slot, __m512i& at) {
    __mmask16 above = _mm512_cmpge_epu32_mask(slot, _mm512_set1_epi32(static_cast<int>(t.starts[0][0])));
    at = _mm512_maskz_set1_epi32(above, 1);
#pragma GCC unroll 8
    for (unsigned level = 1; level < N; ++level) {
        const __m512i start = level < 5 ? entry_of<4>(t.starts[level].data(), at, above)
                                        : entry_of<5>(t.starts[level].data(), at, above);
        above = _mm512_cmpge_epu32_mask(slot, start);
        at = _mm512_mask_or_epi32(at, above, at, _mm512_set1_epi32(1 << level));
    }
    return above;
}

// The same by steps up from the first place of a bucket.
template <unsigned Steps>
inline __m512i climb(const SearchTables& t, __m512i slot) {
    const __m512i bucket = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(slot)), 22);
    __m512i at = entry_of<5>(t.buckets.data(), bucket, 0);
#pragma GCC unroll 4
    for (unsigned step = 1; step <= Steps; ++step) {
        const unsigned level = Steps - step;
        const __mmask16 above = _mm512_cmpge_epu32_mask(slot, entry_of<5>(t.starts[level].data(), at, 0));
        at = _mm512_mask_add_epi32(at, above, at, _mm512_set1_epi32(1 << level));
    }
    return at;
}

// The symbols of sixteen lanes, at the bits from `Shift` on; advances `x`.
template <LookUp How, unsigned Shift>
inline __attribute__((always_inline)) __m512i look_up(const DecodeTables& t, __m512i& x, __m512i base, __m512i slot,
                                                      __m128i bits) {
    const __m512i high = _mm512_srl_epi32(x, bits);
    if constexpr (halvings(How) + climbs(How) > 0) {
        constexpr unsigned N = climbs(How) > 0 ? 5 : halvings(How);
        __m512i at;
        __mmask16 last = 0;
        if constexpr (climbs(How) > 0)
            at = climb<climbs(How)>(t.search, slot);
        else
            last = place<N>(t.search, slot, at);
        const __m512i q = entry_of<N>(t.search.q.data(), at, last);
        const __m512i offset = _mm512_sub_epi32(slot, entry_of<N>(t.search.start.data(), at, last));
        x = _mm512_add_epi32(_mm512_mullo_epi32(q, high), offset);
        return entry_of<N>(t.search.symbols[Shift / 8].data(), at, last);
    }
    const __m512i index = _mm512_add_epi32(base, slot), twelve = _mm512_set1_epi32(0xFFF);
    if constexpr (How == LookUp::kPacked) {
        const __m512i entry = gather(t.lut.data(), index);
        const __m512i q1 = _mm512_and_si512(_mm512_srli_epi32(entry, 12), twelve);
        const __m512i offset = _mm512_add_epi32(high, _mm512_and_si512(entry, twelve));
        x = _mm512_add_epi32(_mm512_mullo_epi32(q1, high), offset);
        return _mm512_slli_epi32(_mm512_srli_epi32(entry, 24), Shift);
    }
    const __m512i symbol = _mm512_and_si512(_mm512_i32gather_epi32(index, t.symbols.data(), 1), _mm512_set1_epi32(0xFF));
    const __m512i row = _mm512_slli_epi32(_mm512_srl_epi32(base, bits), 8);
    const __m512i pair = gather(t.pairs.data(), _mm512_add_epi32(row, symbol));
    const __m512i q = _mm512_and_si512(pair, _mm512_set1_epi32(0xFFFF));
    x = _mm512_add_epi32(_mm512_mullo_epi32(q, high), _mm512_sub_epi32(slot, _mm512_srli_epi32(pair, 16)));
    return _mm512_slli_epi32(symbol, Shift);
}

// Gives the lanes of `x` below the interval their words.
inline const std::uint8_t* refill(__m512i& x, const std::uint8_t* words) {
    const __mmask16 due = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(static_cast<int>(kLowest)));
    const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    x = _mm512_mask_or_epi32(x, due, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(due, next));
    return words + 2 * static_cast<std::size_t>(_mm_popcnt_u32(due));
}

// Bytes from four registers of 32-bit lanes, in the order of the lanes; register v has its symbols at bits 8 v.
inline __m512i bytes_of(const __m512i* symbol) {
    const __m512i three = _mm512_ternarylogic_epi32(symbol[0], symbol[1], symbol[2], 0xFE);
    const __m512i all = _mm512_or_si512(three, symbol[3]);
    const __m512i within =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(all, within));
}

}  // namespace
}  // namespace llmc
