// Tables for finding a symbol in registers.
#include <algorithm>

#include "decode.h"

namespace llmc {
namespace {

struct Places {
    std::vector<std::uint32_t> symbols, starts;
    std::uint32_t total = 0;

    // Above every slot where there is no such place.
    std::uint32_t start(std::size_t place) const { return place < starts.size() ? starts[place] : total; }
};

Places places_of(const Frequencies& table, unsigned bits) {
    Places places;
    places.total = 1u << bits;
    std::uint32_t start = 0;
    for (std::uint32_t symbol = 0; symbol < 256; ++symbol) {
        if (table[symbol] == 0) continue;
        places.symbols.push_back(symbol);
        places.starts.push_back(start);
        start += table[symbol];
    }
    return places;
}

void set(SearchTables& t, std::size_t at, const Places& places, std::size_t place, const Frequencies& table) {
    const std::uint32_t symbol = places.symbols[std::min(place, places.symbols.size() - 1)];
    t.q[at] = table[symbol];
    t.start[at] = places.starts[std::min(place, places.starts.size() - 1)];
    for (unsigned k = 0; k < 4; ++k) t.symbols[k][at] = symbol << 8 * k;
}

void fill_halves(SearchTables& t, unsigned levels, const Places& places, const Frequencies& table) {
    const auto place = [levels](std::size_t at) {  // its bits in the usual order
        std::size_t reversed = 0;
        for (unsigned k = 0; k < levels; ++k) reversed |= (at >> k & 1u) << (levels - 1 - k);
        return reversed;
    };
    for (unsigned level = 0; level < levels; ++level)
        for (std::size_t at = 0; at < std::size_t{1} << level; ++at)
            t.starts[level][at] = places.start(place(at) + (std::size_t{1} << (levels - 1 - level)));
    for (std::size_t at = 0; at < std::size_t{1} << levels; ++at) set(t, at, places, place(at), table);
}

// Fills the buckets; returns how many places the last slot of a bucket may be above its first.
std::size_t fill_buckets(SearchTables& t, const Places& places) {
    std::array<bool, kBuckets> seen{};
    std::size_t place = 0, highest = 0;
    for (std::uint32_t slot = 0; slot < places.total; ++slot) {
        while (slot >= places.start(place + 1)) ++place;
        const unsigned bucket = bucket_of(slot);
        if (!seen[bucket]) t.buckets[bucket] = static_cast<std::uint32_t>(place);
        seen[bucket] = true;
        highest = std::max(highest, place - t.buckets[bucket]);
    }
    return highest;
}

}  // namespace

SearchTables search_tables(const Frequencies& table, unsigned bits) {
    SearchTables t;
    const Places places = places_of(table, bits);
    const std::size_t count = places.symbols.size();
    if (count > kSearch) return t;
    const std::size_t climb = count <= 32 ? fill_buckets(t, places) : kSearch;
    if (climb <= 3 || (climb <= 7 && count > 16)) {
        t.how = climb <= 3 ? Search::kClimb2 : Search::kClimb3;
        for (std::size_t at = 0; at < 32; ++at) {
            for (std::size_t level = 0; level < 3; ++level) t.starts[level][at] = places.start(at + (std::size_t{1} << level));
            set(t, at, places, at, table);
        }
        return t;
    }
    t.how = count <= 16 ? Search::kHalve4 : count <= 32 ? Search::kHalve5 : Search::kHalve6;
    fill_halves(t, count <= 16 ? 4 : count <= 32 ? 5 : 6, places, table);
    return t;
}

}  // namespace llmc
