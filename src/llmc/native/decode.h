// Decoding of chunks. Every path gives the symbols that scalar code gives, and refuses the same streams.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "stream.h"

namespace llmc {

enum class Path : std::uint8_t { kAuto, kScalar, kAvx2, kAvx512, kAvx512Search };

// The path of that name ("auto": the fastest here for each stream); raises CodecError where it cannot run.
Path path_named(const std::string& name);
std::vector<std::string> path_names();
std::string path_name(Path path);

constexpr std::size_t kSearch = 64;  // most symbols of a table that is searched instead of looked up
constexpr std::size_t kBuckets = 32;

// How many steps find the symbol of a slot in registers: halvings of the table, or steps up from where the symbols of a
// bucket begin. Buckets are half octaves of slots, because rare symbols come before frequent ones where weights are coded.
enum class Search : std::uint8_t { kNone, kHalve4, kHalve5, kHalve6, kClimb2, kClimb3 };

// Halving: a place in the table is written with the first decision as its lowest bit, so that the starts which a level
// compares with lie together. Climbing: steps of 4, 2 and 1 places.
struct SearchTables {
    Search how = Search::kNone;
    alignas(64) std::array<std::array<std::uint32_t, 32>, 6> starts{};  // by level; climbing: of the place 2^level above
    alignas(64) std::array<std::uint32_t, kBuckets> buckets{};
    alignas(64) std::array<std::uint32_t, kSearch> q{}, start{};
    alignas(64) std::array<std::array<std::uint32_t, kSearch>, 4> symbols{};  // at bits 0, 8, 16, 24
};

// The bucket of a slot: the lowest bits of its exponent, and the first of its mantissa.
inline unsigned bucket_of(std::uint32_t slot) {
    const auto number = static_cast<float>(slot);
    std::uint32_t bits;
    std::memcpy(&bits, &number, 4);
    return bits >> 22 & (kBuckets - 1);
}

struct DecodeTables {
    unsigned bits = 12;
    Selector selector = Selector::kOne;
    bool packed = true;                    // one look-up gives all: q is at most 2^12
    std::vector<std::uint32_t> lut;        // packed: [tables << bits] symbol << 24 | (q - 1) << 12 | (slot - start)
    std::vector<std::uint8_t> symbols;     // else:   [tables << bits], and 3 bytes that a wide load may touch
    std::vector<std::uint32_t> pairs;      // else:   [tables, 256] q | start << 16
    std::vector<std::uint32_t> base;       // kContext: [256] table << bits
    std::vector<std::uint32_t> moves;      // kAutomaton: [states, 256] (table << bits) << 8 | state
    std::uint32_t start_state = 0;         // kAutomaton: the same for state 0
    SearchTables search;                   // kOne
};

SearchTables search_tables(const Frequencies& table, unsigned bits);
DecodeTables decode_tables(const Model& model);

// The coder's state inside a chunk.
struct Lanes {
    const std::uint8_t* words = nullptr;  // next renormalisation word
    const std::uint8_t* end = nullptr;
    std::size_t count = 0;
    std::uint32_t crc = 0;  // of the symbols that were read
    alignas(64) std::array<std::uint32_t, kMaxLanes> x{};
    alignas(64) std::array<std::uint32_t, kMaxLanes> state{};  // kAutomaton
};

// Decodes up to `steps` steps of all lanes while the words certainly suffice; returns how many.
using Steps = std::size_t (*)(const DecodeTables&, Lanes&, std::uint8_t* out, const std::uint8_t* contexts,
                              std::size_t steps);

// Where symbols go that become numbers of 16 bits at once: a symbol is a field from `base` on, the raw bits are below it.
struct Merge16 {
    std::int32_t base = 0;
    unsigned first_escape = kNoEscape;
    const std::uint8_t* raw = nullptr;
    std::uint8_t* symbols = nullptr;
    std::uint8_t* numbers = nullptr;
    std::uint64_t* escapes = nullptr;  // bit i of each step: symbol i is an escape, and its number is not there yet
};

// As Steps, for 64 lanes, also to numbers and with the sum of the symbols. Reads kMergeReach bytes behind the raw bits.
using MergeSteps = std::size_t (*)(const DecodeTables&, Lanes&, const Merge16& to, std::size_t steps);
constexpr std::size_t kMergeLanes = 64, kMergeReach = 16;

Steps scalar_steps(const DecodeTables& tables);
Steps avx2_steps(const DecodeTables& tables, std::size_t lanes);           // null: not for so few lanes
Steps avx512_steps(const DecodeTables& tables, std::size_t lanes);         // the same
Steps avx512_search_steps(const DecodeTables& tables, std::size_t lanes);  // the same, or the table is too large

// `path`, or the next simpler one that this stream admits. kAuto: what was measured once to be fastest.
Path path_for(Path path, const DecodeTables& tables, std::size_t lanes);

Steps steps_for(Path path, const DecodeTables& tables, std::size_t lanes);

// Null where the code that `path` means has none. Without `search` symbols are looked up in memory.
MergeSteps avx512_merge_steps(const DecodeTables& tables, bool search, unsigned raw_bits, bool past_caches);
MergeSteps merge_steps_for(Path path, const DecodeTables& tables, std::size_t lanes, unsigned raw_bits, bool past_caches);

// One step of the first `active` lanes that checks every word. Raises CodecError at the end of the words.
void careful_step(const DecodeTables& tables, Lanes& lanes, std::uint8_t* out, const std::uint8_t* contexts,
                  std::size_t active);

// Reads one chunk from its first symbol to its last.
class ChunkReader {
public:
    ChunkReader(const Stream& stream, const DecodeTables& tables, std::size_t index, Steps steps);

    // The next `count` coded symbols: a multiple of the lanes, but for the last call. `contexts` has as many.
    void read(std::uint8_t* out, const std::uint8_t* contexts, std::size_t count);

    // As many of the next steps as `merge` can do; 0 where nothing is coded. They are read, and summed.
    std::size_t merge(MergeSteps merge, const Merge16& to, std::size_t steps);

    // The same with escapes replaced by their values; only for values of one byte.
    void read_bytes(std::uint8_t* out, const std::uint8_t* contexts, std::size_t count);

    // The value of the next escape.
    std::int32_t next_escape();

    // Raises CodecError unless everything was used up and the sum agrees.
    void finish();

    std::size_t size() const { return size_; }

private:
    const Stream& stream_;
    const DecodeTables& tables_;
    std::size_t index_, size_;
    Steps steps_;
    int only_;  // the symbol of a stream that codes nothing
    Lanes lanes_;
    const std::uint8_t* escapes_ = nullptr;
    std::uint32_t escapes_left_ = 0;
};

// All symbols of a stream with one-byte values. `contexts`: as many, or null.
void decode_bytes(const Stream& stream, std::uint8_t* out, const std::uint8_t* contexts, unsigned threads, Path path);

// Values of 2 or 4 bytes, to `out` in that width.
void decode_values(const Stream& stream, std::uint8_t* out, const std::uint8_t* contexts, unsigned threads, Path path);

// Symbols [begin, end) of a stream with one-byte values: only the chunks that hold them are read.
void decode_range(const Stream& stream, std::uint64_t begin, std::uint64_t end, std::uint8_t* out,
                  const std::uint8_t* contexts, Path path);

}  // namespace llmc
