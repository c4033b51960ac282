// Decoding of tiles. Every path gives the values that scalar code gives, and refuses the same streams.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "trellis_stream.h"

namespace llmc {

constexpr std::size_t bytes_of(Form form) { return form == Form::kFloat32 ? 4 : 2; }

// A machine as two registers in one word. Bit j of a register is what the branches so far add to the sum of step j from
// now on; a branch of 1 adds its mask. The parity now stands where an index of the table wants it, the flip where an entry
// has the lowest bit of its symbol. One bit more keeps the parity of the step before.
constexpr unsigned kParityAt = kTrellisBits, kFlipAt = 24;
constexpr std::uint32_t kRegisters = 0x3Fu << kFlipAt | 0x7Fu << (kParityAt - 1);

// What a branch of 1 adds.
constexpr std::uint32_t registers_of(const Machine& machine) { return machine.parity << kParityAt | machine.flip << kFlipAt; }

inline bool any_trellis_escape(const std::uint8_t* symbols, std::size_t n) {
    std::uint8_t most = 0;
    for (std::size_t i = 0; i < n; ++i) most = symbols[i] > most ? symbols[i] : most;
    return most >= kFirstTrellisEscape;
}

// What a stream's head says, ready for use.
struct TrellisTables {
    const TrellisHead* head = nullptr;
    std::vector<std::uint32_t> lut;  // [tables << kTrellisBits] symbol << 24 | (q - 1) << 12 | (slot - start)
    std::uint32_t branch = 0;        // registers_of
    std::vector<std::uint32_t> order, row_table;  // [rows] in the order of the stream: where it stands, and its part of `lut`
    std::vector<float> steps;                     // [columns]
    alignas(64) std::array<float, kTrellisShifts> shifts{};
    std::array<float, 512> moved{};  // in steps, by parity << 8 | symbol

    float value(int code) const;  // in steps
};

TrellisTables trellis_tables(const TrellisHead& head);

// The coder's state inside a tile, and what its columns need.
struct TileLanes {
    const std::uint8_t *words = nullptr, *end = nullptr;            // renormalisation words
    const std::uint8_t *escapes = nullptr, *escapes_end = nullptr;  // levels without a symbol
    std::size_t live = 0;                                           // lanes that have a column
    std::size_t chunk = 0;
    std::uint32_t crc = 0;  // of the symbols that were read
    alignas(64) std::array<std::uint32_t, 64> x{}, state{}, table{};
    alignas(64) std::array<float, 64> step{};
};

// Where the next rows go: to level 1 cache first, because gathers of some processors wait for stores. The lines they go to
// in the end, far apart, are asked for meanwhile. Vector code writes up to 64 bytes behind the symbols.
struct TileRows {
    const std::uint32_t *order, *row_table;
    std::uint8_t *symbols, *values;  // [rows, live], [rows, 64]
    std::uint8_t* out;               // the first of the columns in the matrix, whose rows are `stride` bytes
    std::size_t stride;

    void ask_for(std::size_t row, std::size_t bytes) const {
        const std::uint8_t* at = out + order[row] * stride;
        for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 1);
    }
};

// Replaces what stands for escapes in a row by what they are.
using Escapes = void (*)(const TrellisTables&, TileLanes&, const std::uint8_t* symbols, std::uint8_t* out);

// Decodes up to `steps` steps while the words certainly suffice; returns how many.
using TileSteps = std::size_t (*)(const TrellisTables&, TileLanes&, const TileRows&, std::size_t steps, Escapes);

// For so many live lanes.
TileSteps avx2_tile_steps(Form form, std::size_t live);
TileSteps avx512_tile_steps(Form form, std::size_t live);

}  // namespace llmc
