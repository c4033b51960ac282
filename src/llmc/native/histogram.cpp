#include <algorithm>

#include "encode.h"

namespace llmc {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 24;  // counts of a piece fit 32 bits

// Eight tables: equal neighbours would wait for each other's store.
void count_plain(const std::uint8_t* symbols, std::size_t n, std::uint64_t* counts) {
    std::array<std::array<std::uint32_t, 256>, 8> parts{};
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const auto eight = load<std::uint64_t>(symbols + i);
        ++parts[0][eight & 0xFF];
        ++parts[1][eight >> 8 & 0xFF];
        ++parts[2][eight >> 16 & 0xFF];
        ++parts[3][eight >> 24 & 0xFF];
        ++parts[4][eight >> 32 & 0xFF];
        ++parts[5][eight >> 40 & 0xFF];
        ++parts[6][eight >> 48 & 0xFF];
        ++parts[7][eight >> 56];
    }
    for (; i < n; ++i) ++parts[0][symbols[i]];
    for (const auto& part : parts)
        for (std::size_t s = 0; s < 256; ++s) counts[s] += part[s];
}

void count_joint(const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t n, std::uint64_t* counts,
                 unsigned tables) {
    const std::size_t size = std::size_t{tables} << 8;
    std::vector<std::uint32_t> parts(2 * size);
    std::uint32_t* even = parts.data();
    std::uint32_t* odd = even + size;
    std::size_t i = 0;
    for (; i + 2 <= n; i += 2) {
        ++even[static_cast<unsigned>(tables_of[i]) << 8 | symbols[i]];
        ++odd[static_cast<unsigned>(tables_of[i + 1]) << 8 | symbols[i + 1]];
    }
    if (i < n) ++even[static_cast<unsigned>(tables_of[i]) << 8 | symbols[i]];
    for (std::size_t s = 0; s < size; ++s) counts[s] += std::uint64_t{even[s]} + odd[s];
}

}  // namespace

void count_symbols(const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t n, std::uint64_t* counts,
                   unsigned tables) {
    for (std::size_t at = 0; at < n; at += kPiece) {
        const std::size_t size = std::min(kPiece, n - at);
        if (tables_of)
            count_joint(symbols + at, tables_of + at, size, counts, tables);
        else
            count_plain(symbols + at, size, counts);
    }
}

}  // namespace llmc
