#include <algorithm>
#include <utility>

#include "encode.h"

namespace llmc {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 24;  // counts of a piece fit 32 bits

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

void ByteTally::add(const std::uint8_t* symbols, std::size_t n) {
    std::size_t i = 0;
    if (!pairs_.empty()) {
        std::uint32_t* even = pairs_.data();
        std::uint32_t* odd = even + kPairs;
        for (; i + 8 <= n; i += 8) {
            const auto eight = load<std::uint64_t>(symbols + i);
            ++even[eight & 0xFFFF];
            ++odd[eight >> 16 & 0xFFFF];
            ++even[eight >> 32 & 0xFFFF];
            ++odd[eight >> 48];
        }
    }
    for (; i + 8 <= n; i += 8) {
        const auto eight = load<std::uint64_t>(symbols + i);
        ++parts_[0][eight & 0xFF];
        ++parts_[1][eight >> 8 & 0xFF];
        ++parts_[2][eight >> 16 & 0xFF];
        ++parts_[3][eight >> 24 & 0xFF];
        ++parts_[4][eight >> 32 & 0xFF];
        ++parts_[5][eight >> 40 & 0xFF];
        ++parts_[6][eight >> 48 & 0xFF];
        ++parts_[7][eight >> 56];
    }
    for (; i < n; ++i) ++parts_[0][symbols[i]];
}

void ByteTally::move_into(std::uint64_t* counts) {
    for (auto& part : parts_)
        for (std::size_t s = 0; s < 256; ++s) counts[s] += std::exchange(part[s], 0);
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
        const std::uint32_t count = std::exchange(pairs_[i], 0);
        counts[i & 0xFF] += count;
        counts[i >> 8 & 0xFF] += count;
    }
}

void count_symbols(const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t n, std::uint64_t* counts,
                   unsigned tables) {
    for (std::size_t at = 0; at < n; at += kPiece) {
        const std::size_t size = std::min(kPiece, n - at);
        if (tables_of) {
            count_joint(symbols + at, tables_of + at, size, counts, tables);
        } else {
            ByteTally tally(size);
            tally.add(symbols + at, size);
            tally.move_into(counts);
        }
    }
}

}  // namespace llmc
