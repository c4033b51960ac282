// Which tables an encoder writes, and what it lets share an escape. Integer arithmetic only: the same on every machine.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "normalise.h"
#include "stream.h"

namespace llmc {

// Symbols that become the escape.
struct Replacement {
    bool any = false;
    std::array<std::uint8_t, 256> map{};
    unsigned low = 0, high = 256;  // what lies between stays as it is

    // Symbols with the rare ones replaced, in place too. Most parts hold none and are copied.
    void apply(const std::uint8_t* in, std::size_t n, std::uint8_t* out) const;
};

// Sets the tables of `model` for these counts, one for each table, and where that is smaller an escape for rare symbols.
// `outside` values have no symbol: they are escapes in any case. Not `free`: symbols stay what they are.
// A table that a decoder can search in registers may cost 1 in 1024 more.
Replacement choose_tables(const std::vector<Counts>& counts, std::uint64_t outside, bool free, Model& model);

constexpr std::size_t kWindow = 255;  // values with a symbol, where there may be others: those need an escape

// The start of the window that holds most values, the lowest of those.
std::size_t best_window(const std::vector<std::uint64_t>& counts);

}  // namespace llmc
