#include <algorithm>

#include "crc32c.h"
#include "threads.h"
#include "trellis_decode.h"

namespace llmc {
namespace {

// What one code comes to.
std::uint32_t nearest_bits(float value, Number stored) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (stored == Number::kFloat32) return bits;
    if (stored == Number::kBfloat16) return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    const std::uint32_t sign = bits >> 16 & 0x8000u;
    float size;
    bits &= 0x7FFFFFFFu;
    std::memcpy(&size, &bits, 4);
    if (size >= 65520.0f) return sign | 0x7C00u;
    if (size < 0x1p-14f) {
        const float scaled = size * 0x1p24f;  // subnormals count in units of 2^-24; the sum rounds half to even
        return sign | static_cast<std::uint32_t>((scaled + 0x1p23f) - 0x1p23f);
    }
    return sign | ((bits + 0xFFFu + (bits >> 13 & 1u)) - (112u << 23)) >> 13;
}

}  // namespace

TrellisTables trellis_tables(const TrellisHead& head) {
    TrellisTables t;
    t.head = &head;
    t.lut.resize(head.tables.size() << kTrellisBits);
    for (std::size_t i = 0; i < head.tables.size(); ++i) {
        std::size_t at = i << kTrellisBits;
        for (std::uint32_t symbol = 0; symbol < 256; ++symbol)
            for (std::uint32_t j = 0, q = head.tables[i][symbol]; j < q; ++j) t.lut[at++] = symbol << 24 | (q - 1) << 12 | j;
    }
    for (std::size_t s = 0; s < head.machine.states(); ++s) {
        t.parity.push_back(head.machine.parity_of(s));
        t.flip.push_back(head.machine.flip_of(s));
    }
    t.steps = head.steps();
    t.order = head.row_order();
    t.shifts.fill(0.0f);
    for (std::size_t i = 0; i < head.shifts.size(); ++i) t.shifts[i] = static_cast<float>(head.shifts[i]) * 0x1p-8f;
    return t;
}

float TrellisTables::value(int code, std::size_t column) const {
    const int size = code < 0 ? -code : code;
    const float moved = static_cast<float>(size) * 0.5f - shifts[std::min<std::size_t>(static_cast<std::size_t>(size), 31)];
    return (code < 0 ? -moved : moved) * steps[column];
}

TileReader::TileReader(const TrellisStream& stream, const TrellisTables& tables, std::size_t index)
    : stream_(stream), tables_(tables), index_(index) {
    const Chunk& chunk = stream.chunks[index];
    const std::uint8_t* p = stream.data + chunk.offset;
    for (std::size_t i = 0; i < stream.head.lanes(); ++i, p += 4) {
        lanes.x[i] = load<std::uint32_t>(p);
        if (lanes.x[i] < kLowest) throw CodecError("chunk " + std::to_string(index) + ": a lane state is out of range");
    }
    lanes.words = p;
    lanes.end = lanes.escapes = p + 2 * std::size_t{chunk.words};
    lanes.escapes_end = lanes.end + 2 * std::size_t{chunk.escapes};
}

void TileReader::step(std::size_t row, std::size_t column, std::size_t live, std::uint8_t* symbols, std::int16_t* codes) {
    const TrellisHead& head = stream_.head;
    const std::size_t parities = head.parities(), mask = head.machine.states() - 1;
    for (std::size_t i = 0; i < live; ++i) {
        std::uint32_t &x = lanes.x[i], &state = lanes.state[i];
        const std::uint32_t parity = tables_.parity[state], slot = x & ((1u << kTrellisBits) - 1);
        const std::size_t table = (head.row_class[row] + head.column_class[column + i]) * parities + parity;
        const std::uint32_t entry = tables_.lut[(table << kTrellisBits) + slot], symbol = entry >> 24;
        x = ((entry >> 12 & 0xFFFu) + 1) * (x >> kTrellisBits) + (entry & 0xFFFu);
        if (x < kLowest) {
            if (lanes.words == lanes.end) throw CodecError(where() + "its words end early");
            x = x << 16 | load<std::uint16_t>(lanes.words);
            lanes.words += 2;
        }
        const int level = symbol < kFirstTrellisEscape ? head.base + static_cast<int>(symbol) : next_escape(symbol);
        state = (2 * state + ((static_cast<std::uint32_t>(level) & 1u) ^ tables_.flip[state])) & static_cast<std::uint32_t>(mask);
        symbols[i] = static_cast<std::uint8_t>(symbol);
        codes[i] = static_cast<std::int16_t>(2 * level + static_cast<int>(parity));
    }
}

int TileReader::next_escape(std::uint32_t symbol) {
    if (lanes.escapes == lanes.escapes_end) throw CodecError(where() + "its escapes end early");
    const int level = load<std::int16_t>(lanes.escapes);
    lanes.escapes += 2;
    if ((static_cast<std::uint32_t>(level) & 1u) != (symbol & 1u) || level < -16384 || level > 16383)
        throw CodecError(where() + "an escape announces another level");
    return level;
}

void TileReader::finish() const {
    if (lanes.words != lanes.end || lanes.escapes != lanes.escapes_end)
        throw CodecError(where() + "words or escapes are left over");
    for (std::size_t i = 0; i < stream_.head.lanes(); ++i)
        if (lanes.x[i] != kLowest) throw CodecError(where() + "a lane does not end where it began");
    const auto bytes = static_cast<std::size_t>(lanes.escapes_end - lanes.end);
    if (crc32c(lanes.crc, lanes.end, bytes) != stream_.chunks[index_].crc)
        throw CodecError(where() + "the sum of its symbols differs");
}

namespace {

// Calls put(tables, row, column, live, codes) for each step of all tiles; `row` counts as in the matrix.
template <typename Put>
void each_step(const TrellisStream& stream, unsigned threads, const Put& put) {
    const TrellisHead& head = stream.head;
    const TrellisTables tables = trellis_tables(head);
    parallel(stream.chunks.size(), threads, [&](std::size_t index) {
        TileReader reader(stream, tables, index);
        const Tile tile = tile_of(head, index);
        std::array<std::uint8_t, kMaxLanes> symbols;
        std::array<std::int16_t, kMaxLanes> codes;
        for (std::size_t column = tile.column; column < tile.column_end; column += head.lanes()) {
            const std::size_t live = std::min(head.lanes(), tile.column_end - column);
            reader.lanes.state.fill(0);
            for (std::size_t r = tile.row; r < tile.row_end; ++r) {
                reader.step(tables.order[r], column, live, symbols.data(), codes.data());
                reader.lanes.crc = crc32c(reader.lanes.crc, symbols.data(), live);
                put(tables, tables.order[r], column, live, codes.data());
            }
        }
        reader.finish();
    });
}

}  // namespace

void decode_trellis_codes(const TrellisStream& stream, std::int16_t* out, unsigned threads) {
    const std::size_t columns = stream.head.columns;
    each_step(stream, threads, [&](const TrellisTables&, std::size_t row, std::size_t column, std::size_t live,
                                   const std::int16_t* codes) { std::copy_n(codes, live, out + row * columns + column); });
}

void decode_trellis(const TrellisStream& stream, Number stored, std::uint8_t* out, unsigned threads, const std::string& path) {
    static_cast<void>(path);
    const std::size_t columns = stream.head.columns, bytes = stored == Number::kFloat32 ? 4 : 2;
    each_step(stream, threads, [&](const TrellisTables& tables, std::size_t row, std::size_t column, std::size_t live,
                                   const std::int16_t* codes) {
        std::uint8_t* to = out + (row * columns + column) * bytes;
        for (std::size_t i = 0; i < live; ++i) {
            const std::uint32_t bits = nearest_bits(tables.value(codes[i], column + i), stored);
            std::memcpy(to + i * bytes, &bits, bytes);
        }
    });
}

}  // namespace llmc
