// Uniform integer grids, as formats/int_grid.py defines them, bit for bit. Values are finite.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace llmc {

constexpr std::size_t kSums = 16;   // running sums of an error: the same on every instruction set
constexpr std::size_t kCoarse = 7;  // clip ratios tried over the whole range ...
constexpr std::size_t kFine = 4;    // ... and around the best of them

enum class Number : unsigned { kFloat32, kBfloat16, kFloat16 };

struct IntRule {
    unsigned bits = 4;
    bool symmetric = true;
    bool half = false, brain = true;  // scales are exact in float16, in bfloat16
    bool search = false;
    float ratios[kCoarse] = {};
    float offsets[kFine] = {};

    float most() const { return static_cast<float>((1u << bits) - 1); }
    float middle() const { return static_cast<float>(1u << (bits - 1)); }
};

// `count` groups of `size` values each; `importance` has `kinds` rows that groups take in turn. Null: not there.
struct Groups {
    const std::uint8_t* values = nullptr;
    Number number = Number::kFloat32;
    std::size_t count = 0, size = 0;
    const float* importance = nullptr;
    std::size_t kinds = 1;
};

// What becomes of groups: a scale and a zero point each, and their codes. Zero points and codes may be null.
struct Fitted {
    float* scale = nullptr;
    std::uint8_t* zero = nullptr;
    std::uint8_t* codes = nullptr;
};

constexpr std::size_t kSlab = 16;  // columns of a slab at most

// Columns of GPTQ, [columns, rows] each: those that run are read, the others written. Column j takes its scale and the
// least of its levels (null: that of the symmetric grid) from row group[j]; `unit` is [columns, columns].
struct Slab {
    std::size_t columns = 0, rows = 0;
    const float* running = nullptr;
    float *levels = nullptr, *values = nullptr, *errors = nullptr;
    const float *unit = nullptr, *scale = nullptr, *least = nullptr;
    const std::uint32_t* group = nullptr;
    Number stored = Number::kFloat32;
};

// Codes and their params, and the values they come to in `stored`; zero points may be null.
struct Decoded {
    const std::uint8_t* codes = nullptr;
    const float* scale = nullptr;
    const std::uint8_t* zero = nullptr;
    Number stored = Number::kFloat32;
    std::uint8_t* values = nullptr;
};

// Sums of squares, of weights and of what values lack of them.
struct Energies {
    double signal = 0, noise = 0;
};

// Compiled for several instruction sets.
struct GridLoops {
    const char* name;
    void (*fit)(const IntRule&, const Groups&, const Fitted&);
    void (*round)(const IntRule&, const Groups&, const Fitted&);  // codes under the params given
    void (*slab)(const IntRule&, const Slab&);
    Energies (*decode)(const IntRule&, const Groups&, const Decoded&);
};

extern const GridLoops kBaselineGrid, kAvx2Grid, kAvx512Grid;

// "auto": the best this processor has. Raises CodecError for one it does not have.
const GridLoops& grid_loops(const std::string& path);
std::vector<std::string> grid_paths();

}  // namespace llmc
