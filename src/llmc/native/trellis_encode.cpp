#include <algorithm>
#include <mutex>

#include "crc32c.h"
#include "encode.h"
#include "threads.h"
#include "trellis_stream.h"

namespace llmc {
namespace {

// The symbols of a tile in the order of the stream, the table of each, and the levels that have no symbol.
struct Symbols {
    std::vector<std::uint8_t> symbol, table;
    std::vector<std::int16_t> level;
};

Symbols symbols_of(const TrellisHead& head, const std::vector<std::uint32_t>& order, const std::int16_t* codes,
                   const Tile& tile) {
    const Machine& machine = head.machine;
    const std::size_t parities = head.parities(), mask = machine.states() - 1;
    Symbols out;
    out.symbol.reserve(tile.size());
    out.table.reserve(tile.size());
    out.level.reserve(tile.size());
    for (std::size_t first = tile.column; first < tile.column_end; first += head.lanes()) {
        const std::size_t live = std::min(head.lanes(), tile.column_end - first);
        std::array<std::size_t, kMaxLanes> state{};
        for (std::size_t r = tile.row; r < tile.row_end; ++r) {
            if ((r - tile.row) % head.segment == 0) state.fill(0);
            const std::size_t row = order[r];
            const std::int16_t* code = codes + row * head.columns + first;
            for (std::size_t i = 0; i < live; ++i) {
                std::size_t& s = state[i];
                const unsigned parity = machine.parity_of(s);
                if ((static_cast<unsigned>(code[i]) & 1u) != parity)
                    throw CodecError("the codes do not follow the trellis");
                const auto level = static_cast<std::int16_t>((code[i] - static_cast<int>(parity)) / 2);
                const int symbol = level - head.base;
                const bool escaped = symbol < 0 || symbol >= static_cast<int>(kFirstTrellisEscape);
                const unsigned bit = static_cast<unsigned>(level) & 1u;
                out.symbol.push_back(static_cast<std::uint8_t>(escaped ? kFirstTrellisEscape + bit : symbol));
                out.table.push_back(static_cast<std::uint8_t>(
                    (head.row_class[row] + head.column_class[first + i]) * parities + parity));
                out.level.push_back(level);
                s = (2 * s + (bit ^ machine.flip_of(s))) & mask;
            }
        }
    }
    return out;
}

// Symbols so rare that their share of the table costs more than a raw level does: they become escapes. `of[s]`: symbol.
std::array<std::uint8_t, 256> rare(const Counts& counts, unsigned base_bit) {
    std::uint64_t n = 0;
    for (const std::uint64_t count : counts) n += count;
    std::array<std::uint8_t, 256> of{};
    for (unsigned s = 0; s < 256; ++s) {
        const bool goes = s < kFirstTrellisEscape && counts[s] > 0 && 16 * counts[s] < n / 2840 + 12;
        of[s] = static_cast<std::uint8_t>(goes ? kFirstTrellisEscape + ((s + base_bit) & 1u) : s);
    }
    return of;
}

struct Coded {
    std::vector<std::uint8_t> bytes;
    std::uint32_t words = 0, escapes = 0, crc = 0;
};

// Steps of `lanes` symbols, the last of each group of columns with those that are left, coded from the last to the first.
Coded code_tile(const TrellisHead& head, const EncodeTables& tables, const Tile& tile, const Symbols& symbols) {
    const std::size_t lanes = head.lanes(), rows = tile.row_end - tile.row, n = symbols.symbol.size();
    std::vector<std::uint8_t> room(2 * n + 8);
    std::uint8_t* const end = room.data() + room.size();
    std::uint8_t* words = end;
    std::vector<std::uint32_t> x(lanes, kLowest);
    std::size_t at = n;
    for (std::size_t group = (tile.column_end - tile.column + lanes - 1) / lanes; group-- > 0;) {
        const std::size_t live = std::min(lanes, tile.column_end - tile.column - group * lanes);
        for (std::size_t r = rows; r-- > 0;) {
            at -= live;
            for (std::size_t i = live; i-- > 0;)
                words = encode_steps_scalar(tables, &x[i], 1, symbols.symbol.data() + at + i,
                                            symbols.table.data() + at + i, 1, words);
        }
    }
    Coded out;
    out.words = static_cast<std::uint32_t>((end - words) / 2);
    out.bytes.resize(4 * lanes);
    std::memcpy(out.bytes.data(), x.data(), 4 * lanes);
    out.bytes.insert(out.bytes.end(), words, end);
    const std::size_t before = out.bytes.size();
    for (std::size_t i = 0; i < n; ++i) {
        if (symbols.symbol[i] < kFirstTrellisEscape) continue;
        out.bytes.resize(out.bytes.size() + 2);
        store(out.bytes.data() + out.bytes.size() - 2, symbols.level[i]);
        ++out.escapes;
    }
    const std::uint32_t crc = crc32c(0, symbols.symbol.data(), n);
    out.crc = crc32c(crc, out.bytes.data() + before, out.bytes.size() - before);
    return out;
}

}  // namespace

std::vector<std::uint8_t> encode_trellis(TrellisHead head, const std::int16_t* codes, unsigned threads) {
    head.tables.assign(head.classes() * head.parities(), Frequencies{});
    if (head.classes() * head.parities() > 256) throw CodecError("there are more than 256 tables");
    const std::vector<std::uint32_t> order = head.row_order();
    std::vector<Symbols> symbols(head.chunks());
    std::vector<Counts> counts(head.tables.size());
    std::mutex lock;
    parallel(symbols.size(), threads, [&](std::size_t chunk) {
        Symbols& own = symbols[chunk] = symbols_of(head, order, codes, tile_of(head, chunk));
        std::vector<Counts> found(counts.size());
        for (std::size_t i = 0; i < own.symbol.size(); ++i) ++found[own.table[i]][own.symbol[i]];
        const std::lock_guard<std::mutex> guard(lock);
        for (std::size_t t = 0; t < counts.size(); ++t)
            for (std::size_t s = 0; s < 256; ++s) counts[t][s] += found[t][s];
    });
    std::vector<std::array<std::uint8_t, 256>> replaced;
    Model model;
    model.bits = kTrellisBits;
    for (std::size_t t = 0; t < counts.size(); ++t) {
        replaced.push_back(rare(counts[t], static_cast<unsigned>(head.base) & 1u));
        Counts left{};
        for (std::size_t s = 0; s < 256; ++s) left[replaced[t][s]] += counts[t][s];
        model.tables.push_back(head.tables[t] = normalise(left, kTrellisBits));
    }
    const EncodeTables tables = encode_tables(model);
    std::vector<Coded> coded(symbols.size());
    parallel(symbols.size(), threads, [&](std::size_t chunk) {
        Symbols& own = symbols[chunk];
        for (std::size_t i = 0; i < own.symbol.size(); ++i) own.symbol[i] = replaced[own.table[i]][own.symbol[i]];
        coded[chunk] = code_tile(head, tables, tile_of(head, chunk), own);
        own = {};
    });
    std::vector<std::uint8_t> out = head_of(head);
    for (const Coded& each : coded) {
        const std::size_t at = out.size();
        out.resize(at + kChunkEntryBytes);
        store(out.data() + at, each.words);
        store(out.data() + at + 4, each.escapes);
        store(out.data() + at + 8, each.crc);
    }
    const std::uint32_t sum = crc32c(0, out.data(), out.size());
    out.resize(out.size() + 4);
    store(out.data() + out.size() - 4, sum);
    for (const Coded& each : coded) out.insert(out.end(), each.bytes.begin(), each.bytes.end());
    return out;
}

}  // namespace llmc
