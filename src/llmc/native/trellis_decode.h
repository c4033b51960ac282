// Decoding of tiles: what every path computes.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "trellis_stream.h"

namespace llmc {

// What a stream's head says, ready for use.
struct TrellisTables {
    const TrellisHead* head = nullptr;
    std::vector<std::uint32_t> lut;  // [tables << kTrellisBits] symbol << 24 | (q - 1) << 12 | (slot - start)
    std::vector<std::uint32_t> parity, flip;  // [states]
    std::vector<std::uint32_t> order;         // [rows]
    std::vector<float> steps;                 // [columns]
    std::array<float, kTrellisShifts> shifts{};

    float value(int code, std::size_t column) const;
};

TrellisTables trellis_tables(const TrellisHead& head);

// The coder's state inside a tile.
struct TileLanes {
    const std::uint8_t *words = nullptr, *end = nullptr;            // renormalisation words
    const std::uint8_t *escapes = nullptr, *escapes_end = nullptr;  // levels without a symbol
    std::uint32_t crc = 0;                                          // of the symbols that were read
    alignas(64) std::array<std::uint32_t, 64> x{};
    alignas(64) std::array<std::uint32_t, 64> state{};
};

class TileReader {
public:
    TileReader(const TrellisStream& stream, const TrellisTables& tables, std::size_t index);

    // Symbols and codes of `live` columns from `column` on, in a row of the matrix.
    void step(std::size_t row, std::size_t column, std::size_t live, std::uint8_t* symbols, std::int16_t* codes);
    // Raises CodecError where something is left over, or sums differ.
    void finish() const;

    TileLanes lanes;

private:
    std::string where() const { return "chunk " + std::to_string(index_) + ": "; }
    int next_escape(std::uint32_t symbol);

    const TrellisStream& stream_;
    const TrellisTables& tables_;
    std::size_t index_;
};

}  // namespace llmc
