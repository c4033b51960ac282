// One symbol of one lane: what every path computes.
#pragma once

#include "decode.h"

namespace llmc {

template <Selector S, bool Packed>
inline std::uint8_t decode_one(const DecodeTables& t, std::uint32_t& x, std::uint32_t& state, std::uint8_t context) {
    std::uint32_t base = 0;
    if constexpr (S == Selector::kContext) base = t.base[context];
    if constexpr (S == Selector::kAutomaton) base = state >> 8;
    const std::uint32_t slot = x & ((1u << t.bits) - 1u);
    std::uint8_t symbol;
    if constexpr (Packed) {
        const std::uint32_t entry = t.lut[base + slot];
        symbol = static_cast<std::uint8_t>(entry >> 24);
        x = (((entry >> 12) & 0xFFFu) + 1u) * (x >> t.bits) + (entry & 0xFFFu);
    } else {
        symbol = t.symbols[base + slot];
        const std::uint32_t pair = t.pairs[((base >> t.bits) << 8) + symbol];
        x = (pair & 0xFFFFu) * (x >> t.bits) + slot - (pair >> 16);
    }
    if constexpr (S == Selector::kAutomaton) state = t.moves[((state & 0xFFu) << 8) + symbol];
    return symbol;
}

}  // namespace llmc
