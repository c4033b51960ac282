// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mpopcnt -msse4.2. 64 lanes to 64 numbers of 16 bits.
#include "avx512_lanes.h"
#include "planes.h"

namespace llmc {
namespace {

// Words from the raw bits of 32 numbers, less than 8 of each: an eighth of a register holds those of eight numbers.
template <unsigned Bits>
__m512i spread(const std::uint8_t* raw) {
    const auto part = [raw](unsigned k) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(raw + k * Bits)); };
    __m512i all = _mm512_castsi128_si512(part(0));
    all = _mm512_inserti32x4(all, part(1), 1);
    all = _mm512_inserti32x4(all, part(2), 2);
    all = _mm512_inserti32x4(all, part(3), 3);
    alignas(16) std::uint8_t bytes[16];
    alignas(16) std::uint16_t shifts[8];
    for (unsigned k = 0; k < 8; ++k) {
        bytes[2 * k] = static_cast<std::uint8_t>(k * Bits / 8);
        bytes[2 * k + 1] = static_cast<std::uint8_t>(k * Bits / 8 + 1);
        shifts[k] = static_cast<std::uint16_t>(k * Bits % 8);
    }
    const __m512i pick = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m512i shift = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(shifts)));
    const __m512i words = _mm512_srlv_epi16(_mm512_shuffle_epi8(all, pick), shift);
    return _mm512_and_si512(words, _mm512_set1_epi16((1 << Bits) - 1));
}

template <bool Past>
void put(std::uint8_t* to, __m512i numbers) {
    if constexpr (Past)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), numbers);
    else
        _mm512_storeu_si512(to, numbers);
}

// Sixteen bits, rotated left by one, to where they belong: field, rest and sign, the last two in `low`.
template <unsigned Bits>
__m512i rotated(__m512i symbols, __m512i base, __m512i low) {
    const __m512i field = _mm512_add_epi16(_mm512_slli_epi16(symbols, Bits - 1), base);
    const __m512i rest = _mm512_srli_epi16(low, 1), sign = _mm512_slli_epi16(low, 15);
    // A damaged stream may have fields that are too wide: what is above them is not the sign.
    const __m512i unsigned_number = _mm512_ternarylogic_epi32(field, _mm512_set1_epi16(0x7FFF), rest, 0xEA);
    return _mm512_or_si512(unsigned_number, sign);
}

inline __m512i rotated(__m512i words) { return _mm512_or_si512(_mm512_srli_epi16(words, 1), _mm512_slli_epi16(words, 15)); }

template <unsigned Bits, bool Past>
inline __attribute__((always_inline)) void merge64(__m512i symbols, __m512i base, const std::uint8_t* raw,
                                                   std::uint8_t* numbers) {
    // Unpacking works within quarters of a register, so eights are put crosswise first.
    const __m512i cross = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), zero = _mm512_setzero_si512();
    const __m512i s = _mm512_permutexvar_epi64(cross, symbols);
    if constexpr (Bits == 8) {
        const __m512i r = _mm512_permutexvar_epi64(cross, _mm512_loadu_si512(raw));
        put<Past>(numbers, rotated(_mm512_unpacklo_epi8(r, s)));
        put<Past>(numbers + 64, rotated(_mm512_unpackhi_epi8(r, s)));
    } else {
        put<Past>(numbers, rotated<Bits>(_mm512_unpacklo_epi8(s, zero), base, spread<Bits>(raw)));
        put<Past>(numbers + 64, rotated<Bits>(_mm512_unpackhi_epi8(s, zero), base, spread<Bits>(raw + 4 * Bits)));
    }
}

inline std::uint64_t sum64(std::uint64_t crc, const std::uint8_t* symbols) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 64; i += 8) crc = _mm_crc32_u64(crc, load<std::uint64_t>(symbols + i));
    return crc;
}

// Asks for what will be read soon: the processor does not foresee reads beyond a page.
inline void fetch_ahead(const std::uint8_t* from) {
    constexpr std::uintptr_t kAhead = 512;
    _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(from) + kAhead), _MM_HINT_T0);
}

template <LookUp How, unsigned Bits, bool Past>
std::size_t run(const DecodeTables& t, Lanes& lanes, const Merge16& to, std::size_t steps) {
    const __m128i bits = _mm_cvtsi32_si128(static_cast<int>(t.bits));
    const __m512i mask = _mm512_set1_epi32((1 << t.bits) - 1), zero = _mm512_setzero_si512();
    const __m512i base = _mm512_set1_epi16(static_cast<short>(static_cast<unsigned>(to.base) << (Bits - 1)));
    const __m512i first_escape = _mm512_set1_epi8(static_cast<char>(to.first_escape));
    const __mmask64 escapes = to.first_escape < kNoEscape ? ~__mmask64{0} : 0;
    __m512i x[4], symbol[4];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < 4; ++v) x[v] = _mm512_load_si512(lanes.x.data() + 16 * v);
    const std::uint8_t* words = lanes.words;
    std::uint64_t crc = static_cast<std::uint32_t>(~lanes.crc);
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 128; ++done) {
        symbol[0] = look_up<How, 0>(t, x[0], zero, _mm512_and_si512(x[0], mask), bits);
        symbol[1] = look_up<How, 8>(t, x[1], zero, _mm512_and_si512(x[1], mask), bits);
        symbol[2] = look_up<How, 16>(t, x[2], zero, _mm512_and_si512(x[2], mask), bits);
        symbol[3] = look_up<How, 24>(t, x[3], zero, _mm512_and_si512(x[3], mask), bits);
#pragma GCC unroll 4
        for (std::size_t v = 0; v < 4; ++v) words = refill(x[v], words);
        const __m512i all = bytes_of(symbol);
        _mm512_storeu_si512(to.symbols + 64 * done, all);
        to.escapes[done] = _cvtmask64_u64(_mm512_mask_cmpge_epu8_mask(escapes, all, first_escape));
        fetch_ahead(words);
        fetch_ahead(to.raw + 8 * Bits * done);
        merge64<Bits, Past>(all, base, to.raw + 8 * Bits * done, to.numbers + 128 * done);
        crc = sum64(crc, to.symbols + 64 * done);
    }
#pragma GCC unroll 4
    for (std::size_t v = 0; v < 4; ++v) _mm512_store_si512(lanes.x.data() + 16 * v, x[v]);
    if constexpr (Past) _mm_sfence();
    lanes.words = words;
    lanes.crc = ~static_cast<std::uint32_t>(crc);
    return done;
}

template <LookUp How, unsigned Bits>
MergeSteps by_store(bool past_caches) {
    return past_caches ? &run<How, Bits, true> : &run<How, Bits, false>;
}

template <LookUp How>
MergeSteps by_bits(unsigned raw_bits, bool past_caches) {
    if (raw_bits == 8) return by_store<How, 8>(past_caches);
    return raw_bits == 6 ? by_store<How, 6>(past_caches) : nullptr;
}

}  // namespace

MergeSteps avx512_merge_steps(const DecodeTables& t, bool search, unsigned raw_bits, bool past_caches) {
    switch (search ? t.search.how : Search::kNone) {
        case Search::kClimb2: return by_bits<LookUp::kClimb2>(raw_bits, past_caches);
        case Search::kClimb3: return by_bits<LookUp::kClimb3>(raw_bits, past_caches);
        case Search::kHalve4: return by_bits<LookUp::kHalve4>(raw_bits, past_caches);
        case Search::kHalve5: return by_bits<LookUp::kHalve5>(raw_bits, past_caches);
        case Search::kHalve6: return by_bits<LookUp::kHalve6>(raw_bits, past_caches);
        case Search::kNone: break;
    }
    return t.packed ? by_bits<LookUp::kPacked>(raw_bits, past_caches) : nullptr;
}

}  // namespace llmc
