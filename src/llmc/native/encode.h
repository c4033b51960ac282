// Encoding. The bytes depend on the symbols and the fields below, never on threads, path or machine.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "choose.h"
#include "decode.h"
#include "stream.h"

namespace llmc {

struct EncodeTables {
    unsigned bits = 12;
    std::vector<std::uint32_t> pairs;        // [tables, 256] q | start << 16
    std::vector<std::uint64_t> reciprocals;  // [tables, 256] ceil(2^shift / q)
    std::vector<std::uint8_t> shifts;        // [tables, 256]
    std::vector<float> inverses;             // [tables, 256] a little less than 1 / q
    unsigned first = 0, span = 256;          // symbols of the only table: those that can be coded are among these
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
// Null: not for so few lanes.
EncodeSteps encode_steps_avx512(const EncodeTables& tables, std::size_t lanes, bool several_tables);

// Memory that pages are mapped for once per thread. Not a vector: it needs no zeros.
class Room {
public:
    std::uint8_t* of(std::size_t size) {
        if (size > size_) bytes_.reset(new std::uint8_t[size_ = size]);
        return bytes_.get();
    }

private:
    std::unique_ptr<std::uint8_t[]> bytes_;
    std::size_t size_ = 0;
};

// Where the symbols of a stream come from.
class Source {
public:
    virtual ~Source() = default;

    // Symbols [first, first + n): where they are, or in `room`.
    virtual const std::uint8_t* symbols(std::size_t first, std::size_t n, Room& room) const = 0;

    // Their tables; null where there is only table 0.
    virtual const std::uint8_t* tables_of(std::size_t first, std::size_t n, Room& room) const = 0;

    // The value that the escape at `at` stands for.
    virtual std::int32_t value(std::size_t at) const = 0;
};

// The stream of a model whose tables are chosen.
std::vector<std::uint8_t> encode(const Model& model, const Source& source, unsigned threads, Path path);

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

// Counts bytes, fewer than 2^32. Several tables: equal neighbours would wait for each other's store. Many bytes are counted
// by pairs: half the work, and the pairs that occur in weights fit the nearest cache.
class ByteTally {
public:
    explicit ByteTally(std::uint64_t expected) : pairs_(expected < kMany ? 0 : 2 * kPairs) {}

    void add(const std::uint8_t* symbols, std::size_t n);
    void move_into(std::uint64_t* counts);  // adds; the tally is empty afterwards

private:
    static constexpr std::size_t kMany = std::size_t{1} << 19, kPairs = std::size_t{1} << 16;

    std::array<std::array<std::uint32_t, 256>, 8> parts_{};
    std::vector<std::uint32_t> pairs_;
};

// Adds to counts[table_of[context]][symbol]; contexts may be null.
void count_symbols(const std::uint8_t* symbols, const std::uint8_t* tables_of, std::size_t n, std::uint64_t* counts,
                   unsigned tables);

}  // namespace llmc
