// Numbers as planes: which of their bits are coded symbols and which are stored as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "decode.h"
#include "stream.h"

namespace llmc {

constexpr std::size_t kMaxPlanes = 4;

// A number of `bytes` bytes: its sign moves below the next `sign_after` bits; then, from the top, each of `coded` fields
// is a symbol; the `raw_bits` that remain are packed without gaps, low bits first.
struct Split {
    unsigned bytes = 2;
    unsigned sign_after = 15;
    std::vector<unsigned> coded{8};

    unsigned raw_bits() const;
    std::size_t raw_bytes(std::uint64_t n) const;
    bool balanced_bf16() const { return bytes == 2 && sign_after == 15 && coded.size() == 1 && coded[0] == 8; }
};

// Raises CodecError.
void check(const Split& split);

using Planes = std::uint8_t* const*;
using ConstPlanes = const std::uint8_t* const*;

// Loops over at most kBlock numbers, compiled for several instruction sets.
struct PlaneLoops {
    void (*take)(const Split&, const std::uint8_t* numbers, std::size_t n, Planes coded, std::uint8_t* raw);
    void (*put)(const Split&, ConstPlanes coded, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers);
};

extern const PlaneLoops kBaselineLoops, kAvx2Loops;

// bf16 from exponents and mantissa-sign bytes, a multiple of 32 of them, past the caches; `numbers` 32-byte aligned.
void stream_bf16(const std::uint8_t* exponents, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers);

void split_planes(const Split& split, const std::uint8_t* numbers, std::uint64_t n, Planes coded, std::uint8_t* raw,
                  unsigned threads);
void merge_planes(const Split& split, ConstPlanes coded, const std::uint8_t* raw, std::uint64_t n,
                  std::uint8_t* numbers, unsigned threads);

// Decodes the streams of all coded planes and merges, block by block, so that no plane is ever written to memory.
// A stream after the first that selects tables by context has the first plane as its context; `contexts` is the first's.
void decode_planes(const Split& split, const std::vector<Stream>& streams, const std::uint8_t* raw,
                   const std::uint8_t* contexts, std::uint8_t* numbers, unsigned threads, Path path);

}  // namespace llmc
