// The stream of docs/formats/trellis.md: codes of a trellis through the entropy coder, with all that gives them values.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "grid.h"
#include "stream.h"
#include "trellis.h"

namespace llmc {

constexpr std::size_t kTrellisHeadBytes = 40;
constexpr unsigned kTrellisBits = 12;           // of probabilities
constexpr unsigned kFirstTrellisEscape = 254;   // and 255: the level is raw; which of the two says its lowest bit
constexpr std::size_t kMaxTrellisClasses = 8;   // of rows, and of columns
constexpr std::size_t kMaxTile = std::size_t{1} << 26;
constexpr unsigned kOctave = 4;                 // codes of a step that double it
constexpr int kLeastLevel = -16384, kMostLevel = 16383;  // codes have 16 bits

struct TrellisHead {
    Machine machine;
    unsigned lanes_log2 = 2;
    std::uint32_t rows = 0, columns = 0, segment = 256, tile = 4096;
    unsigned segments_log2 = 0;  // a tile has so many segments of rows, and `tile` columns
    float step = 1.0f;           // of columns whose code is 0
    std::int16_t base = 0;                                            // level of symbol 0, even
    unsigned row_classes = 1, column_classes = 1;
    std::vector<std::int8_t> shifts;  // by magnitude of codes, in steps / 256
    std::vector<std::uint8_t> step_code, row_class, column_class;
    std::vector<Frequencies> tables;  // [classes, parities]

    std::size_t lanes() const { return std::size_t{1} << lanes_log2; }
    std::size_t parities() const { return machine.bits == 0 ? 1 : 2; }
    std::size_t classes() const { return row_classes + column_classes - 1; }
    std::size_t tile_rows() const { return std::size_t{segment} << segments_log2; }
    std::size_t row_tiles() const { return (rows + tile_rows() - 1) / tile_rows(); }
    std::size_t column_tiles() const { return (std::size_t{columns} + tile - 1) / tile; }
    std::size_t chunks() const { return row_tiles() * column_tiles(); }
    std::vector<std::uint32_t> row_order() const;  // by class, then by number
    std::vector<float> steps() const;
};

// The part of the matrix that a chunk holds: rows [row, row_end) in their order, columns [column, column_end).
struct Tile {
    std::size_t row, row_end, column, column_end;

    std::size_t size() const { return (row_end - row) * (column_end - column); }
};
Tile tile_of(const TrellisHead& head, std::size_t chunk);

struct TrellisStream {
    TrellisHead head;
    std::vector<Chunk> chunks;
    const std::uint8_t* data = nullptr;
};

// Raises CodecError. Allocates nothing that `size` bytes, or rows and columns that the caller expects, do not account for.
TrellisStream parse_trellis(const std::uint8_t* data, std::size_t size, std::size_t rows, std::size_t columns);

// Raises CodecError where fields break a rule of the page.
void check(const TrellisHead& head);

// The head without chunk table and sum; the inverse of what `parse_trellis` reads first. Raises CodecError.
std::vector<std::uint8_t> head_of(const TrellisHead& head);

// The stream of codes [rows, columns]; `head` has everything but its tables. Raises CodecError where codes are none of
// the machine's.
std::vector<std::uint8_t> encode_trellis(TrellisHead head, const std::int16_t* codes, unsigned threads);

// What a weight becomes; the first three are the values of `Number`.
enum class Form : unsigned { kFloat32, kBfloat16, kFloat16, kCodes };

// Values [rows, columns], or codes; `path` as in decode.h. Raises CodecError.
void decode_trellis(const TrellisStream& stream, Form form, std::uint8_t* out, unsigned threads, const std::string& path);

}  // namespace llmc
