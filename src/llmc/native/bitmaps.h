// The bitmap stream of docs/formats/bitmaps.md: three bits for each symbol, and the symbols that have no code as bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "planes.h"
#include "stream.h"

namespace llmc {

constexpr std::size_t kGroup = 64, kGroupBytes = 24;  // symbols whose three words lie next to each other
constexpr std::size_t kBitmapChunk = std::size_t{1} << 20;
constexpr std::size_t kBitmapHead = 20;

struct Bitmaps {
    std::uint64_t n = 0;
    std::array<std::uint8_t, 8> table{};      // of the codes; code 0 is an escape
    const std::uint8_t* blocks = nullptr;     // u32 each: escapes of its chunk up to the end of the block
    const std::uint8_t* sums = nullptr;       // u32 each
    const std::uint8_t* words = nullptr;      // u64, three for each group
    const std::uint8_t* escapes = nullptr;
    std::vector<std::uint64_t> escapes_before;  // of each chunk, and of the end

    std::size_t chunks() const { return escapes_before.size() - 1; }
    std::uint32_t escapes_until(std::uint64_t block) const { return load<std::uint32_t>(blocks + 4 * block); }
};

// Loops over at most kBlock symbols in whole groups, compiled for several instruction sets. `escaped` has room for
// kBlock + kNoted entries and gets the places of the escapes, in order; both return how many these are.
struct BitmapLoops {
    std::size_t (*unpack)(const std::uint8_t* words, std::size_t groups, const std::uint8_t* table, std::uint8_t* symbols,
                          std::uint16_t* escaped);
    std::size_t (*pack)(const std::uint8_t* symbols, std::size_t groups, const std::vector<std::uint8_t>& table,
                        std::uint8_t* words, std::uint16_t* escaped);
    // Numbers of 16 bits, rotated by one, from their top bytes and the others, in whole groups; null: nothing is faster
    // than planes.h. Past the caches, `numbers` must begin at a line.
    void (*merge16)(const std::uint8_t* symbols, const std::uint8_t* raw, std::size_t groups, std::uint8_t* numbers,
                    bool past_caches);
};
constexpr std::size_t kNoted = 4;

extern const BitmapLoops kBaselineBitmaps, kAvx2Bitmaps, kAvx512Bitmaps;

// Raises CodecError. "auto" is the last of the names.
const BitmapLoops& bitmap_loops(const std::string& path);
std::vector<std::string> bitmap_path_names();

// Reads and checks the head. Raises CodecError. Allocates nothing that `size` bytes do not account for.
Bitmaps parse_bitmaps(const std::uint8_t* data, std::size_t size, std::uint64_t expected_n);

std::vector<std::uint8_t> encode_bitmaps(const std::uint8_t* symbols, std::uint64_t n, unsigned threads,
                                         const BitmapLoops& loops);

// Symbols [begin, end): chunks that hold them are summed, blocks that hold them are decoded.
void decode_bitmaps(const Bitmaps& stream, std::uint64_t begin, std::uint64_t end, std::uint8_t* out, unsigned threads,
                    const BitmapLoops& loops);

// Raises CodecError where the sum of a chunk differs. Decodes nothing.
void check_bitmaps(const Bitmaps& stream, unsigned threads);

// Decodes the stream of the fields and merges, block by block.
void decode_bitmap_numbers(const Split& split, const Bitmaps& stream, const std::uint8_t* raw, std::uint8_t* numbers,
                           unsigned threads, const BitmapLoops& loops);

}  // namespace llmc
