// Eight symbols at a time in a general register.
#define LLMC_ISA baseline
#include "bitmaps_loops.h"

namespace llmc {
namespace baseline {
namespace {

constexpr std::uint64_t kOnes = 0x0101010101010101u;

// A byte for each bit, 0 or 1.
std::uint64_t spread(std::uint64_t bits) {
    const std::uint64_t apart = (bits & 0xFF) * kOnes & 0x8040201008040201u;
    return (apart + 0x7F * kOnes) >> 7 & kOnes;
}

// A bit for each byte, which are 0 or 1.
std::uint64_t gather(std::uint64_t bytes) { return bytes * 0x0102040810204080u >> 56; }

std::size_t unpack(const std::uint8_t* words, std::size_t groups, const std::uint8_t* table, std::uint8_t* symbols,
                   std::uint16_t* escaped) {
    std::size_t count = 0;
    for (std::size_t g = 0; g < groups; ++g, words += kGroupBytes) {
        const auto w0 = load<std::uint64_t>(words), w1 = load<std::uint64_t>(words + 8), w2 = load<std::uint64_t>(words + 16);
        for (unsigned i = 0; i < kGroup; i += 8) {
            std::uint64_t codes = spread(w0 >> i) | spread(w1 >> i) << 1 | spread(w2 >> i) << 2;
            for (unsigned k = 0; k < 8; ++k, codes >>= 8) symbols[kGroup * g + i + k] = table[codes & 7];
        }
        count = note(~(w0 | w1 | w2), kGroup * g, escaped, count);
    }
    return count;
}

std::size_t pack(const std::uint8_t* symbols, std::size_t groups, const std::vector<std::uint8_t>& table,
                 std::uint8_t* words, std::uint16_t* escaped) {
    std::array<std::uint8_t, 256> code{};
    for (std::size_t i = 0; i < table.size(); ++i) code[table[i]] = static_cast<std::uint8_t>(i + 1);
    std::size_t count = 0;
    for (std::size_t g = 0; g < groups; ++g, words += kGroupBytes) {
        std::uint64_t w[3] = {};
        for (unsigned i = 0; i < kGroup; i += 8) {
            std::uint64_t codes = 0;
            for (unsigned k = 0; k < 8; ++k) codes |= std::uint64_t{code[symbols[kGroup * g + i + k]]} << (8 * k);
            for (unsigned plane = 0; plane < 3; ++plane) w[plane] |= gather(codes >> plane & kOnes) << i;
        }
        for (unsigned plane = 0; plane < 3; ++plane) store(words + 8 * plane, w[plane]);
        count = note(~(w[0] | w[1] | w[2]), kGroup * g, escaped, count);
    }
    return count;
}

}  // namespace
}  // namespace baseline

extern const BitmapLoops kBaselineBitmaps = {&baseline::unpack, &baseline::pack, nullptr};

}  // namespace llmc
