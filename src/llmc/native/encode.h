// Encoding. The bytes depend on the symbols and the fields below, never on threads, path or machine.
#pragma once

#include <cstdint>
#include <vector>

#include "decode.h"
#include "normalise.h"
#include "stream.h"

namespace llmc {

struct EncodeTables {
    unsigned bits = 12;
    std::vector<std::uint32_t> pairs;        // [tables, 256] q | start << 16
    std::vector<std::uint64_t> reciprocals;  // [tables, 256] ceil(2^shift / q)
    std::vector<std::uint8_t> shifts;        // [tables, 256]
};

EncodeTables encode_tables(const Model& model);

// Codes `steps` full steps from the last to the first, below `words`; `tables_of` may be null (table 0 for all).
// Returns where the words now begin. May touch the 2 bytes before. `x` is aligned to 64 bytes where lanes > 1.
using EncodeSteps = std::uint8_t* (*)(const EncodeTables&, std::uint32_t* x, std::size_t lanes,
                                      const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t steps,
                                      std::uint8_t* words);

std::uint8_t* encode_steps_scalar(const EncodeTables& tables, std::uint32_t* x, std::size_t lanes,
                                  const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t steps,
                                  std::uint8_t* words);
std::uint8_t* encode_steps_avx512(const EncodeTables& tables, std::uint32_t* x, std::size_t lanes,
                                  const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t steps,
                                  std::uint8_t* words);

// What to encode. `model` says how: bits, lanes, chunk, selector and its maps, and escapes where `values` is given.
struct Job {
    Model model;
    const std::uint8_t* symbols = nullptr;   // [n]
    const std::uint8_t* contexts = nullptr;  // [n], selector kContext
    const std::uint8_t* values = nullptr;    // [n] of value_bytes: what escape symbols stand for; null: symbols are bytes
    unsigned tables = 1;
    unsigned threads = 1;
    Path path = Path::kAuto;
};

std::vector<std::uint8_t> encode(Job job);

// Adds to counts[table_of[context]][symbol]; contexts may be null.
void count_symbols(const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t n, std::uint64_t* counts,
                   unsigned tables);

}  // namespace llmc
