// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mpopcnt -msse4.2. A word is a mask register.
#define LLMC_ISA avx512
#include <immintrin.h>

#include "bitmaps_loops.h"

namespace llmc {
namespace avx512 {
namespace {

std::size_t unpack(const std::uint8_t* words, std::size_t groups, const std::uint8_t* table, std::uint8_t* symbols,
                   std::uint16_t* escaped) {
    const __m512i of_code = _mm512_maskz_broadcast_i32x4(0xFFFF, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(table)));
    const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2), four = _mm512_set1_epi8(4);
    std::size_t count = 0;
    for (std::size_t g = 0; g < groups; ++g, words += kGroupBytes) {
        const auto w0 = load<std::uint64_t>(words), w1 = load<std::uint64_t>(words + 8), w2 = load<std::uint64_t>(words + 16);
        __m512i code = _mm512_maskz_mov_epi8(_cvtu64_mask64(w0), one);
        code = _mm512_mask_add_epi8(code, _cvtu64_mask64(w1), code, two);
        code = _mm512_mask_add_epi8(code, _cvtu64_mask64(w2), code, four);
        _mm512_storeu_si512(symbols + kGroup * g, _mm512_shuffle_epi8(of_code, code));
        count = note(~(w0 | w1 | w2), kGroup * g, escaped, count);
    }
    return count;
}

std::size_t pack(const std::uint8_t* symbols, std::size_t groups, const std::vector<std::uint8_t>& table,
                 std::uint8_t* words, std::uint16_t* escaped) {
    std::size_t count = 0;
    for (std::size_t g = 0; g < groups; ++g, words += kGroupBytes) {
        const __m512i own = _mm512_loadu_si512(symbols + kGroup * g);
        std::uint64_t w[3] = {};
        for (std::size_t i = 0; i < table.size(); ++i) {
            const std::uint64_t same =
                _cvtmask64_u64(_mm512_cmpeq_epi8_mask(own, _mm512_set1_epi8(static_cast<char>(table[i]))));
            for (unsigned plane = 0; plane < 3; ++plane) w[plane] |= (i + 1) >> plane & 1 ? same : 0;
        }
        for (unsigned plane = 0; plane < 3; ++plane) store(words + 8 * plane, w[plane]);
        count = note(~(w[0] | w[1] | w[2]), kGroup * g, escaped, count);
    }
    return count;
}

template <bool Past>
void put(std::uint8_t* to, __m512i low, __m512i high) {
    // A raw byte below its symbol is the number rotated left.
    const __m512i first = _mm512_or_si512(_mm512_srli_epi16(low, 1), _mm512_slli_epi16(low, 15));
    const __m512i second = _mm512_or_si512(_mm512_srli_epi16(high, 1), _mm512_slli_epi16(high, 15));
    if constexpr (Past) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), first);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 64), second);
    } else {
        _mm512_storeu_si512(to, first);
        _mm512_storeu_si512(to + 64, second);
    }
}

template <bool Past>
void merge(const std::uint8_t* symbols, const std::uint8_t* raw, std::size_t groups, std::uint8_t* numbers) {
    // Unpacking works within quarters of a register, so eights are put crosswise first.
    const __m512i cross = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (std::size_t g = 0; g < groups; ++g) {
        // The next block's, which may lie behind the end: an address that is only looked ahead to.
        const auto ahead = reinterpret_cast<std::uintptr_t>(raw) + kGroup * g + kBlock;
        _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
        const __m512i s = _mm512_maskz_permutexvar_epi64(0xFF, cross, _mm512_loadu_si512(symbols + kGroup * g));
        const __m512i r = _mm512_maskz_permutexvar_epi64(0xFF, cross, _mm512_loadu_si512(raw + kGroup * g));
        put<Past>(numbers + 2 * kGroup * g, _mm512_unpacklo_epi8(r, s), _mm512_unpackhi_epi8(r, s));
    }
    if constexpr (Past) _mm_sfence();
}

void merge16(const std::uint8_t* symbols, const std::uint8_t* raw, std::size_t groups, std::uint8_t* numbers,
             bool past_caches) {
    (past_caches ? &merge<true> : &merge<false>)(symbols, raw, groups, numbers);
}

}  // namespace
}  // namespace avx512

extern const BitmapLoops kAvx512Bitmaps = {&avx512::unpack, &avx512::pack, &avx512::merge16};

}  // namespace llmc
