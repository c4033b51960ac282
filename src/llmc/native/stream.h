// The stream of docs/formats/rans.md: what is in it, and reading its head. All claims are checked here, once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace llmc {

// What is wrong with a stream or with what was asked for, in words for the user.
struct CodecError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr std::uint32_t kLowest = 1u << 16;  // states live in [2^16, 2^32)
constexpr unsigned kMinBits = 12, kMaxBits = 14;
constexpr unsigned kMinLanesLog2 = 2, kMaxLanesLog2 = 8;
constexpr std::size_t kMaxLanes = std::size_t{1} << kMaxLanesLog2;
constexpr std::uint32_t kMaxChunk = 1u << 26;
constexpr std::size_t kHeadBytes = 32, kChunkEntryBytes = 12;
constexpr unsigned kNoEscape = 256;
constexpr std::size_t kBlock = 4096;  // symbols decoded at a time into level 1 cache; a multiple of every lane count

enum class Selector : std::uint8_t { kOne = 0, kContext = 1, kAutomaton = 2 };

using Frequencies = std::array<std::uint16_t, 256>;  // sums to 2^bits; 0: cannot be coded

struct Automaton {
    unsigned states = 1, classes = 1;
    std::array<std::uint8_t, 256> class_of{};
    std::vector<std::uint8_t> next;      // [states, classes]
    std::vector<std::uint8_t> table_of;  // [states]
};

struct Model {
    unsigned bits = 12, lanes_log2 = 2;
    Selector selector = Selector::kOne;
    std::uint64_t n = 0;
    std::uint32_t chunk = 1u << 20;     // symbols per chunk, a multiple of the lanes
    unsigned escape_first = kNoEscape;  // symbols from here on stand for a raw value
    unsigned value_bytes = 1;
    std::int32_t base = 0;  // value of symbol 0 where values are wider than a byte
    std::vector<Frequencies> tables;
    std::array<std::uint8_t, 256> table_of{};  // selector kContext
    Automaton automaton;                       // selector kAutomaton

    std::size_t lanes() const { return std::size_t{1} << lanes_log2; }
    std::size_t chunks() const;
    std::size_t chunk_size(std::size_t index) const;
    // The symbol of one table with one symbol, where nothing needs to be coded; else -1.
    int only_symbol() const;
};

struct Chunk {
    std::size_t offset = 0;  // of its lane states, from the start of the stream
    std::uint32_t words = 0, escapes = 0, crc = 0;
};

struct Stream {
    Model model;
    std::vector<Chunk> chunks;
    const std::uint8_t* data = nullptr;
    std::size_t head_bytes = 0;
};

template <typename T>
T load(const std::uint8_t* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

template <typename T>
void store(std::uint8_t* p, T value) {
    std::memcpy(p, &value, sizeof value);
}

// A range of bytes that cannot be read past its end.
class ByteCursor {
public:
    ByteCursor(const std::uint8_t* begin, std::size_t size) : at_(begin), end_(begin + size) {}

    std::uint8_t byte() {
        if (at_ == end_) throw CodecError("the model of the stream is cut short");
        return *at_++;
    }

    std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
    const std::uint8_t* take(std::size_t size) {
        if (left() < size) throw CodecError("the model of the stream is cut short");
        at_ += size;
        return at_ - size;
    }

    bool done() const { return at_ == end_; }

private:
    const std::uint8_t* at_;
    const std::uint8_t* end_;
};

// A probability table: its first symbol, then frequencies until they sum to 2^bits: 1 or 2 bytes each, 7 bits first; 0 is
// followed by (run - 1) of absent symbols.
Frequencies read_table(ByteCursor& bytes, unsigned bits);
void write_table(std::vector<std::uint8_t>& out, const Frequencies& table);

// Reads and checks the head. Raises CodecError. Allocates nothing that `size` bytes do not account for.
Stream parse(const std::uint8_t* data, std::size_t size, std::uint64_t expected_n);

// The head (without chunk table and sum) of a stream; the inverse of what `parse` reads first.
std::vector<std::uint8_t> head_of(const Model& model);

// Raises CodecError where `model` breaks a rule of the page.
void check(const Model& model);

}  // namespace llmc
