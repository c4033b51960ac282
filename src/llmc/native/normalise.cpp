#include "normalise.h"

#include <queue>
#include <vector>

namespace llmc {
namespace {

constexpr unsigned kFraction = 48;

// log2(q) in 2^-48, truncated: the bits come one by one from squaring the mantissa.
std::uint64_t log2_of(std::uint32_t q) {
    const auto whole = static_cast<unsigned>(31 - __builtin_clz(q));
    std::uint64_t mantissa = std::uint64_t{q} << (62 - whole);  // [1, 2) in 2^-62
    std::uint64_t log = whole;
    for (unsigned i = 0; i < kFraction; ++i) {
        mantissa = static_cast<std::uint64_t>((Wide{mantissa} * mantissa) >> 62);  // [1, 4)
        const std::uint64_t bit = mantissa >> 63;
        mantissa >>= bit;
        log = log << 1 | bit;
    }
    return log;
}

const std::vector<std::uint64_t>& logs() {
    static const std::vector<std::uint64_t> made = [] {
        std::vector<std::uint64_t> values((1u << kMaxBits) + 1);
        for (std::uint32_t q = 1; q < values.size(); ++q) values[q] = log2_of(q);
        return values;
    }();
    return made;
}

struct Offer {
    Wide gain;  // what one more slot saves, in 2^-48 bits
    unsigned symbol;

    bool operator<(const Offer& other) const {
        return gain != other.gain ? gain < other.gain : symbol > other.symbol;
    }
};

}  // namespace

Wide coded_size(const Counts& counts, const Frequencies& table, unsigned bits) {
    Wide sum = 0;
    for (std::size_t symbol = 0; symbol < 256; ++symbol)
        if (counts[symbol]) sum += Wide{counts[symbol]} * ((std::uint64_t{bits} << kFraction) - logs()[table[symbol]]);
    return sum;
}

namespace {

// Slots that a symbol gets in any case. At the best frequencies every symbol has at least count * slope - 1 and at most
// count * slope + 1 of them, for one slope, or 1; as they sum to 2^bits, the slope is at least (2^bits - symbols) / n.
Frequencies at_least(const Counts& counts, unsigned bits) {
    std::uint64_t n = 0, symbols = 0;
    for (const std::uint64_t count : counts) n += count, symbols += count > 0;
    Frequencies table{};
    for (std::size_t symbol = 0; symbol < 256; ++symbol) {
        if (counts[symbol] == 0) continue;
        const auto share = static_cast<std::uint64_t>(Wide{counts[symbol]} * ((1u << bits) - symbols) / n);
        table[symbol] = static_cast<std::uint16_t>(share > 3 ? share - 2 : 1);
    }
    return table;
}

}  // namespace

// A slot more saves count * log2((q + 1) / q), less for every further one: giving each slot to the best offer is optimal.
Frequencies normalise(const Counts& counts, unsigned bits) {
    Frequencies table = at_least(counts, bits);
    const auto& log = logs();
    std::priority_queue<Offer> offers;
    unsigned left = 1u << bits;
    for (unsigned symbol = 0; symbol < 256; ++symbol) {
        const unsigned q = table[symbol];
        left -= q;
        if (q > 0) offers.push({Wide{counts[symbol]} * (log[q + 1] - log[q]), symbol});
    }
    if (offers.empty()) {
        table[0] = static_cast<std::uint16_t>(left);
        return table;
    }
    for (; left; --left) {
        const unsigned symbol = offers.top().symbol;
        offers.pop();
        const unsigned q = ++table[symbol];
        if (left > 1) offers.push({Wide{counts[symbol]} * (log[q + 1] - log[q]), symbol});
    }
    return table;
}

}  // namespace llmc
