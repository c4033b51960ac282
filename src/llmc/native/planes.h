// Numbers as planes: which of their bits are a coded symbol and which are stored as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "decode.h"
#include "encode.h"
#include "stream.h"

namespace llmc {

// A number of `bytes` bytes: its sign moves below the next `sign_after` bits; then its top `coded` bits are a symbol, and
// the `raw_bits` that remain are packed without gaps, low bits first.
struct Split {
    unsigned bytes = 2;
    unsigned sign_after = 15;
    unsigned coded = 8;

    unsigned raw_bits() const { return 8 * bytes - coded; }
    std::size_t raw_bytes(std::uint64_t n) const { return static_cast<std::size_t>((n * raw_bits() + 7) / 8); }
    unsigned value_bytes() const { return coded > 8 ? 2 : 1; }  // of a coded field, in memory and in a stream
    // 16 bits rotated left by one: the field, the rest of the mantissa, the sign. What vector code is written for.
    bool rotated16() const { return bytes == 2 && sign_after == 15 && coded >= 8; }
};

// Raises CodecError.
void check(const Split& split);

// How fields become symbols: what lies in [low, high) from `base` on stays, the rest is looked up.
struct Coding {
    std::uint32_t base = 0;
    unsigned escape = kNoEscape;  // of fields that have no symbol
    Replacement rare;
};

// Loops over at most kBlock numbers, compiled for several instruction sets. Fields are of `value_bytes` bytes; take leaves
// the raw bits out where they are null.
struct PlaneLoops {
    void (*take)(const Split&, const std::uint8_t* numbers, std::size_t n, std::uint8_t* fields, std::uint8_t* raw);
    void (*put)(const Split&, const std::uint8_t* fields, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers);
    // The same from symbols of a byte, whose field is base + symbol.
    void (*put_symbols)(const Split&, const std::uint8_t* symbols, std::int32_t base, const std::uint8_t* raw,
                        std::size_t n, std::uint8_t* numbers);
    void (*code)(const Split&, const std::uint8_t* fields, const Coding&, std::size_t n, std::uint8_t* symbols);
};

extern const PlaneLoops kBaselineLoops, kAvx2Loops;

const PlaneLoops& plane_loops();

// Number `at` of a block, from its field.
void put_one(const Split& split, std::uint32_t field, const std::uint8_t* raw, std::size_t at, std::uint8_t* numbers);

// bf16 from exponents and mantissa-sign bytes, a multiple of 32 of them, past the caches; `numbers` 32-byte aligned.
void stream_bf16(const std::uint8_t* exponents, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers);

void split_planes(const Split& split, const std::uint8_t* numbers, std::uint64_t n, std::uint8_t* fields,
                  std::uint8_t* raw, unsigned threads);
void merge_planes(const Split& split, const std::uint8_t* fields, const std::uint8_t* raw, std::uint64_t n,
                  std::uint8_t* numbers, unsigned threads);

// The stream of the fields, the raw bits, and how often each field occurs. `model` says bits, lanes and chunk.
std::vector<std::uint8_t> encode_planes(const Split& split, const std::uint8_t* numbers, Model model, std::uint8_t* raw,
                                        std::vector<std::uint64_t>& counts, unsigned threads, Path path);

// Decodes the stream of the fields and merges, block by block, so that no plane is ever written to memory. Raises CodecError
// where stream, raw bits and numbers do not belong together.
void decode_planes(const Split& split, const Stream& stream, const std::uint8_t* raw, std::size_t raw_bytes,
                   const std::uint8_t* contexts, std::uint8_t* numbers, unsigned threads, Path path);

}  // namespace llmc
