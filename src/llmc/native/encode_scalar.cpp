#include <algorithm>

#include "encode.h"

namespace llmc {

// x < q << (32 - bits), so x / q = x * ceil(2^s / q) >> s exactly, with s = 33 + floor(log2 q); for powers of two, whose
// reciprocal has no error, s = 32 + log2 q keeps the product below 2^64.
EncodeTables encode_tables(const Model& model) {
    EncodeTables t;
    t.bits = model.bits;
    for (const Frequencies& table : model.tables) {
        std::uint32_t start = 0;
        for (const std::uint32_t q : table) {
            const auto floor = static_cast<unsigned>(31 - __builtin_clz(q | 1u));
            const bool power = (q & (q - 1)) == 0;
            const unsigned shift = (power ? 32 : 33) + floor;
            t.pairs.push_back(q | start << 16);
            t.shifts.push_back(static_cast<std::uint8_t>(shift));
            t.reciprocals.push_back(q ? ((std::uint64_t{1} << shift) + q - 1) / q : 0);
            // So much less than 1 / q that no rounding makes x / q too large, and below 2^20 not too small by more than 1.
            t.inverses.push_back(q ? static_cast<float>((1.0 - 1.0 / (1 << 22)) / q) : 0.0F);
            start += q;
        }
    }
    const Frequencies& only = model.tables[0];
    const auto is_coded = [](std::uint16_t q) { return q > 0; };
    const auto first = std::find_if(only.begin(), only.end(), is_coded);
    const auto last = std::find_if(only.rbegin(), only.rend(), is_coded).base();
    t.first = static_cast<unsigned>(first - only.begin());
    t.span = static_cast<unsigned>(last - first);
    return t;
}

std::uint8_t* encode_steps_scalar(const EncodeTables& t, std::uint32_t* x, std::size_t lanes,
                                  const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t steps,
                                  std::uint8_t* words) {
    const unsigned high = 32 - t.bits;
    const std::uint32_t total = 1u << t.bits;
    for (std::size_t i = steps * lanes; i-- > 0;) {
        const std::size_t at = (tables_of ? static_cast<std::size_t>(tables_of[i]) << 8 : 0) | symbols[i];
        const std::uint32_t pair = t.pairs[at], q = pair & 0xFFFFu;
        std::uint32_t state = x[i & (lanes - 1)];
        const bool due = state >> high >= q;
        store(words - 2, static_cast<std::uint16_t>(state));
        words -= due ? 2 : 0;
        state >>= due ? 16 : 0;
        const auto quotient = static_cast<std::uint32_t>(state * t.reciprocals[at] >> t.shifts[at]);
        x[i & (lanes - 1)] = state + (pair >> 16) + quotient * (total - q);
    }
    return words;
}

}  // namespace llmc
