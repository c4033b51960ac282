// Compiled with -mavx2 -mpopcnt. Half a group at a time.
#define LLMC_ISA avx2
#include <immintrin.h>

#include "bitmaps_loops.h"

namespace llmc {
namespace avx2 {
namespace {

// `value` in each byte whose bit is set.
__m256i where(std::uint64_t bits, char value) {
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
    const __m256i own = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), byte_of);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(own, bit_of), bit_of);
    return _mm256_and_si256(set, _mm256_set1_epi8(value));
}

std::size_t unpack(const std::uint8_t* words, std::size_t groups, const std::uint8_t* table, std::uint8_t* symbols,
                   std::uint16_t* escaped) {
    const __m256i of_code = _mm256_broadcastsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(table)));
    std::size_t count = 0;
    for (std::size_t g = 0; g < groups; ++g, words += kGroupBytes, symbols += kGroup) {
        const auto w0 = load<std::uint64_t>(words), w1 = load<std::uint64_t>(words + 8), w2 = load<std::uint64_t>(words + 16);
        for (unsigned i = 0; i < kGroup; i += 32) {
            const __m256i code = _mm256_or_si256(_mm256_or_si256(where(w0 >> i, 1), where(w1 >> i, 2)), where(w2 >> i, 4));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(symbols + i), _mm256_shuffle_epi8(of_code, code));
        }
        count = note(~(w0 | w1 | w2), kGroup * g, escaped, count);
    }
    return count;
}

std::size_t pack(const std::uint8_t* symbols, std::size_t groups, const std::vector<std::uint8_t>& table,
                 std::uint8_t* words, std::uint16_t* escaped) {
    std::size_t count = 0;
    for (std::size_t g = 0; g < groups; ++g, words += kGroupBytes) {
        const auto* from = reinterpret_cast<const __m256i*>(symbols + kGroup * g);
        const __m256i low = _mm256_loadu_si256(from), high = _mm256_loadu_si256(from + 1);
        std::uint64_t w[3] = {};
        for (std::size_t i = 0; i < table.size(); ++i) {
            const __m256i symbol = _mm256_set1_epi8(static_cast<char>(table[i]));
            const auto first = static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(low, symbol)));
            const auto second = static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(high, symbol)));
            const std::uint64_t same = std::uint64_t{second} << 32 | first;
            for (unsigned plane = 0; plane < 3; ++plane) w[plane] |= (i + 1) >> plane & 1 ? same : 0;
        }
        for (unsigned plane = 0; plane < 3; ++plane) store(words + 8 * plane, w[plane]);
        count = note(~(w[0] | w[1] | w[2]), kGroup * g, escaped, count);
    }
    return count;
}

}  // namespace
}  // namespace avx2

extern const BitmapLoops kAvx2Bitmaps = {&avx2::unpack, &avx2::pack, nullptr};

}  // namespace llmc
