// Trellis-coded quantization with an entropy coder in mind: the encoder's search. docs/formats/trellis.md is the spec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "grid.h"

namespace llmc {

constexpr unsigned kMaxTrellisBits = 6;        // log2 of the states
constexpr std::size_t kTrellisRates = 32;      // magnitudes with a rate of their own
constexpr std::size_t kTrellisShifts = 32;     // the same for shifts of values, in halves of a step; the last one is 0
constexpr float kTrellisMost = 16000.0f;       // weights are cut off at so many steps

// The state is the last `bits` branches, the newest lowest. A state sends levels of one parity; which of two branches a
// level k takes is k mod 2, flipped where the state says so. Both are sums mod 2 of the bits of a mask.
struct Machine {
    unsigned bits = 3;
    std::uint32_t parity = 1, flip = 6;

    std::size_t states() const { return std::size_t{1} << bits; }
    unsigned parity_of(std::size_t state) const {
        return static_cast<unsigned>(__builtin_parity(static_cast<std::uint32_t>(state) & parity));
    }
    unsigned flip_of(std::size_t state) const {
        return static_cast<unsigned>(__builtin_parity(static_cast<std::uint32_t>(state) & flip));
    }
    // 2 * parity + level mod 2 of the levels that take a branch.
    unsigned class_of(std::size_t state, unsigned branch) const { return 2 * parity_of(state) + (branch ^ flip_of(state)); }
};

// What levels cost, as squared error / step^2, by the integer part of |level + parity / 2|; beyond, it grows by `slope`.
struct TrellisRate {
    float of[kTrellisRates];
    float slope;
};

// Columns of a matrix, [columns, rows] each, to be quantized one after the other: what a column lacks goes to those after
// it (`unit` [columns, columns], see compressors/feedback.py). The trellis runs down the rows and restarts every `segment`.
struct TrellisSlab {
    Machine machine;
    std::size_t columns = 0, rows = 0, segment = 256;
    float* running = nullptr;  // becomes what the values lack of it
    const float* unit = nullptr;
    const float* step = nullptr;                 // [columns]
    const std::uint8_t* column_class = nullptr;  // [columns]
    const std::uint8_t* row_class = nullptr;     // [rows]; rows of one class are best neighbours
    const float* shift = nullptr;                // [kTrellisShifts] how far values lie below |level + parity / 2|, by its double
    const TrellisRate* rate = nullptr;           // [classes, 2]
    Number stored = Number::kFloat32;
    std::int16_t* codes = nullptr;  // 2 * level + parity
    std::size_t codes_stride = 0;   // from a column to the next
    float* values = nullptr;
};

struct TrellisLoops {
    const char* name;
    void (*slab)(const TrellisSlab&);
};

extern const TrellisLoops kBaselineTrellis, kAvx2Trellis, kAvx512Trellis;

// What a pass found, [columns, rows] with `codes_stride` from a column to the next.
struct TrellisPass {
    const std::int16_t* codes = nullptr;
    std::size_t columns = 0, rows = 0, codes_stride = 0;
    const std::uint8_t *row_class = nullptr, *column_class = nullptr;
};

// Adds to counts [classes of rows, `column_kinds`, 2, levels] by parity and level, 0 in the middle.
void count_levels(const TrellisPass& pass, std::int64_t* counts, std::size_t column_kinds, std::size_t levels);

// Adds by magnitude of codes [kTrellisShifts - 1]: how many, and by how many steps the weights lay below their values.
void tally_errors(const TrellisPass& pass, const float* errors, const float* step, double* seen, double* lack);

const TrellisLoops& trellis_loops(const std::string& path);

}  // namespace llmc
