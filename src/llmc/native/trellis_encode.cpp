#include <algorithm>
#include <mutex>

#include "cpu.h"
#include "crc32c.h"
#include "encode.h"
#include "threads.h"
#include "trellis_decode.h"

namespace llmc {
namespace {

// The symbols of a tile in the order of the stream, and the table of each.
struct Symbols {
    std::vector<std::uint8_t> symbol, table;
};

// A row of the columns of some lanes; true where its codes follow the trellis. Written for compilers to make vectors of.
bool add_row(const TrellisHead& head, std::uint32_t mask, const std::int16_t* code, const std::uint8_t* column_class,
             unsigned row_class, std::size_t live, std::uint32_t* state, std::uint8_t* symbol, std::uint8_t* table) {
    const auto parities = static_cast<unsigned>(head.parities());
    const int base = head.base;
    unsigned wrong = 0;
    for (std::size_t i = 0; i < live; ++i) {
        const unsigned parity = state[i] >> kParityAt & 1u;
        wrong |= static_cast<unsigned>(code[i]) ^ parity;
        const int level = code[i] >> 1;
        const auto place = static_cast<unsigned>(level - base), bit = static_cast<unsigned>(level) & 1u;
        symbol[i] = static_cast<std::uint8_t>(place < kFirstTrellisEscape ? place : kFirstTrellisEscape + bit);
        table[i] = static_cast<std::uint8_t>((row_class + column_class[i]) * parities + parity);
        const std::uint32_t branch = (bit ^ state[i] >> kFlipAt) & 1u;
        state[i] = (state[i] >> 1 & kRegisters) ^ (mask & (0u - branch));
    }
    return (wrong & 1u) == 0;
}

// Calls row(rows of the matrix, first column, how many, is a segment's first) in the order of the stream.
template <typename Row>
void each_row(const TrellisHead& head, const std::vector<std::uint32_t>& order, const Tile& tile, const Row& row) {
    for (std::size_t first = tile.column; first < tile.column_end; first += head.lanes())
        for (std::size_t r = tile.row; r < tile.row_end; ++r)
            row(order[r], first, std::min(head.lanes(), tile.column_end - first), (r - tile.row) % head.segment == 0);
}

Symbols symbols_of(const TrellisHead& head, const std::vector<std::uint32_t>& order, const std::int16_t* codes,
                   const Tile& tile) {
    const std::uint32_t mask = registers_of(head.machine);
    Symbols out{std::vector<std::uint8_t>(tile.size()), std::vector<std::uint8_t>(tile.size())};
    std::array<std::uint32_t, 64> state{};
    std::size_t at = 0;
    each_row(head, order, tile, [&](std::size_t row, std::size_t first, std::size_t live, bool restarts) {
        if (restarts) state.fill(0);
        const std::int16_t* code = codes + row * head.columns + first;
        const std::uint8_t* classes = head.column_class.data() + first;
        if (!add_row(head, mask, code, classes, head.row_class[row], live, state.data(), &out.symbol[at], &out.table[at]))
            throw CodecError("the codes do not follow the trellis");
        at += live;
    });
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

EncodeSteps steps_for(const EncodeTables& tables, std::size_t lanes) {
#ifdef LLMC_X86
    const EncodeSteps steps = encode_steps_avx512(tables, lanes, true);
    if (cpu().avx512 && steps) return steps;
#endif
    static_cast<void>(tables), static_cast<void>(lanes);
    return &encode_steps_scalar;
}

// The words of a tile end at `words`; returns where they begin. Coded are steps of `lanes` symbols, in the last columns of
// as many as are left, from the last to the first.
std::uint8_t* code_words(const TrellisHead& head, const EncodeTables& tables, const Tile& tile, const Symbols& symbols,
                         std::uint32_t* x, std::uint8_t* words) {
    constexpr std::size_t kPart = 16;
    const std::size_t lanes = head.lanes(), rows = tile.row_end - tile.row, columns = tile.column_end - tile.column;
    const EncodeSteps steps = steps_for(tables, lanes), part = steps_for(tables, kPart);
    const std::uint8_t *symbol = symbols.symbol.data(), *table = symbols.table.data();
    std::size_t at = tile.size();
    const std::size_t rest = columns % lanes;
    for (std::size_t r = 0; r < rows && rest > 0; ++r) {
        at -= rest;
        std::size_t i = rest;
        while (i % kPart) --i, words = encode_steps_scalar(tables, x + i, 1, symbol + at + i, table + at + i, 1, words);
        while (i > 0) i -= kPart, words = part(tables, x + i, kPart, symbol + at + i, table + at + i, 1, words);
    }
    return steps(tables, x, lanes, symbol, table, at / lanes, words);
}

Coded code_tile(const TrellisHead& head, const EncodeTables& tables, const std::vector<std::uint32_t>& order,
                const std::int16_t* codes, const Tile& tile, const Symbols& symbols, Room& room) {
    constexpr std::size_t kSlack = 64;  // may be touched before the words
    const std::size_t lanes = head.lanes(), n = tile.size();
    std::uint8_t* const end = room.of(2 * n + kSlack) + 2 * n + kSlack;
    alignas(64) std::array<std::uint32_t, 64> x;
    x.fill(kLowest);
    const std::uint8_t* words = code_words(head, tables, tile, symbols, x.data(), end);
    Coded out;
    out.words = static_cast<std::uint32_t>((end - words) / 2);
    out.bytes.resize(4 * lanes);
    std::memcpy(out.bytes.data(), x.data(), 4 * lanes);
    out.bytes.insert(out.bytes.end(), words, static_cast<const std::uint8_t*>(end));
    const std::size_t before = out.bytes.size();
    const std::uint8_t* symbol = symbols.symbol.data();
    each_row(head, order, tile, [&](std::size_t row, std::size_t first, std::size_t live, bool) {
        for (std::size_t i = 0; any_trellis_escape(symbol, live) && i < live; ++i) {
            if (symbol[i] < kFirstTrellisEscape) continue;
            out.bytes.resize(out.bytes.size() + 2);
            store(out.bytes.data() + out.bytes.size() - 2, static_cast<std::int16_t>(codes[row * head.columns + first + i] >> 1));
            ++out.escapes;
        }
        symbol += live;
    });
    const std::uint32_t crc = crc32c(0, symbols.symbol.data(), n);
    out.crc = crc32c(crc, out.bytes.data() + before, out.bytes.size() - before);
    return out;
}

// The tables of counted symbols, and what becomes of each symbol.
std::vector<std::array<std::uint8_t, 256>> choose_tables(TrellisHead& head, const std::vector<Counts>& counts) {
    std::vector<std::array<std::uint8_t, 256>> replaced;
    for (std::size_t t = 0; t < counts.size(); ++t) {
        replaced.push_back(rare(counts[t], static_cast<unsigned>(head.base) & 1u));
        Counts left{};
        for (std::size_t s = 0; s < 256; ++s) left[replaced[t][s]] += counts[t][s];
        head.tables[t] = normalise(left, kTrellisBits);
    }
    return replaced;
}

std::vector<std::uint8_t> assemble(const TrellisHead& head, const std::vector<Coded>& coded) {
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

}  // namespace

std::vector<std::uint8_t> encode_trellis(TrellisHead head, const std::int16_t* codes, unsigned threads) {
    check(head);
    head.tables.assign(head.classes() * head.parities(), Frequencies{});
    const std::vector<std::uint32_t> order = head.row_order();
    std::vector<Symbols> symbols(head.chunks());
    std::vector<Counts> counts(head.tables.size());
    std::mutex lock;
    parallel(symbols.size(), threads, [&](std::size_t chunk) {
        const Symbols& own = symbols[chunk] = symbols_of(head, order, codes, tile_of(head, chunk));
        std::vector<Counts> found(counts.size());
        for (std::size_t i = 0; i < own.symbol.size(); ++i) ++found[own.table[i]][own.symbol[i]];
        const std::lock_guard<std::mutex> guard(lock);
        for (std::size_t t = 0; t < counts.size(); ++t)
            for (std::size_t s = 0; s < 256; ++s) counts[t][s] += found[t][s];
    });
    const std::vector<std::array<std::uint8_t, 256>> replaced = choose_tables(head, counts);
    Model model;
    model.bits = kTrellisBits;
    model.tables = head.tables;
    const EncodeTables tables = encode_tables(model);
    std::vector<Coded> coded(symbols.size());
    std::vector<Room> rooms(std::max(1u, threads));
    parallel_on(symbols.size(), threads, [&](std::size_t chunk, std::size_t thread) {
        Symbols& own = symbols[chunk];
        for (std::size_t i = 0; i < own.symbol.size(); ++i) own.symbol[i] = replaced[own.table[i]][own.symbol[i]];
        coded[chunk] = code_tile(head, tables, order, codes, tile_of(head, chunk), own, rooms[thread]);
        own = {};
    });
    return assemble(head, coded);
}

}  // namespace llmc
