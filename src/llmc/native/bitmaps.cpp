#include "bitmaps.h"

#include <algorithm>

#include "cpu.h"
#include "crc32c.h"
#include "threads.h"

namespace llmc {
namespace {

constexpr std::size_t kBlocksPerChunk = kBitmapChunk / kBlock;
constexpr std::size_t kSummed = 2;  // blocks whose words are summed at once: what the sum of three parts is fastest for

std::uint64_t ceil_div(std::uint64_t a, std::uint64_t b) { return a / b + (a % b != 0); }

const std::uint8_t* block_words(const Bitmaps& stream, std::uint64_t block) {
    return stream.words + block * (kBlock / kGroup * kGroupBytes);
}

std::size_t block_size(const Bitmaps& stream, std::uint64_t block) {
    return static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, stream.n - block * kBlock));
}

// Escapes in the chunk of the block, before the block.
std::uint32_t escapes_until(const Bitmaps& stream, std::uint64_t block) {
    return block % kBlocksPerChunk ? stream.escapes_until(block - 1) : 0;
}

// Fills escapes_before from the table of blocks.
void count_escapes(Bitmaps& stream, std::uint64_t blocks) {
    std::uint64_t total = 0;
    stream.escapes_before.reserve(static_cast<std::size_t>(ceil_div(blocks, kBlocksPerChunk)) + 1);
    for (std::uint64_t block = 0; block < blocks; ++block) {
        if (block % kBlocksPerChunk == 0) stream.escapes_before.push_back(total);
        const std::uint32_t before = escapes_until(stream, block), until = stream.escapes_until(block);
        if (until < before || until - before > block_size(stream, block))
            throw CodecError("block " + std::to_string(block) + " has more or fewer escapes than it can have");
        total += until - before;
    }
    stream.escapes_before.push_back(total);
}

void check_bits_at_the_end(const Bitmaps& stream) {
    if (stream.n % kGroup == 0) return;
    const std::uint8_t* last = stream.words + stream.n / kGroup * kGroupBytes;
    for (unsigned plane = 0; plane < 3; ++plane)
        if (load<std::uint64_t>(last + 8 * plane) >> stream.n % kGroup)
            throw CodecError("there are bits after the last symbol");
}

}  // namespace

Bitmaps parse_bitmaps(const std::uint8_t* data, std::size_t size, std::uint64_t expected_n) {
    if (size < kBitmapHead + 4) throw CodecError("the stream is shorter than its head");
    if (std::memcmp(data, "lBM1", 4) != 0) throw CodecError("this is no bitmap stream: its first bytes are not lBM1");
    Bitmaps stream;
    std::copy_n(data + 4, 7, stream.table.begin() + 1);
    stream.n = load<std::uint64_t>(data + 12);
    if (stream.n != expected_n)
        throw CodecError("the stream has " + std::to_string(stream.n) + " symbols instead of " + std::to_string(expected_n));
    if (stream.n > std::uint64_t{size} * 3) throw CodecError("the stream is too short for its symbols");
    const std::uint64_t blocks = ceil_div(stream.n, kBlock), chunks = ceil_div(stream.n, kBitmapChunk);
    const std::uint64_t summed = kBitmapHead + 4 * (blocks + chunks), words = ceil_div(summed + 4, 8) * 8;
    const std::uint64_t escapes = words + ceil_div(stream.n, kGroup) * kGroupBytes;
    if (escapes > size) throw CodecError("the stream is too short for its symbols");
    if (crc32c(0, data, summed) != load<std::uint32_t>(data + summed)) throw CodecError("the sum of the head differs");
    if (data[11] != 0 || std::any_of(data + summed + 4, data + words, [](std::uint8_t byte) { return byte != 0; }))
        throw CodecError("a byte of the head that must be 0 is not");
    stream.blocks = data + kBitmapHead;
    stream.sums = stream.blocks + 4 * blocks;
    stream.words = data + words;
    stream.escapes = data + escapes;
    count_escapes(stream, blocks);
    if (stream.escapes_before.back() != size - escapes) throw CodecError("the stream is not as long as its escapes say");
    check_bits_at_the_end(stream);
    return stream;
}

namespace {

struct Scratch {
    alignas(64) std::array<std::uint8_t, kBlock> symbols;
    std::array<std::uint16_t, kBlock + kNoted> escaped;
};

// All groups of a block to `symbols`, which has room for whole groups.
void read_block(const Bitmaps& stream, const BitmapLoops& loops, std::uint64_t block, std::uint8_t* symbols,
                std::uint16_t* escaped) {
    const std::size_t size = block_size(stream, block), groups = (size + kGroup - 1) / kGroup;
    // Bits after the last symbol are 0 and look like escapes at the end.
    const std::size_t found =
        loops.unpack(block_words(stream, block), groups, stream.table.data(), symbols, escaped) - (kGroup * groups - size);
    const std::uint32_t before = escapes_until(stream, block);
    if (found != stream.escapes_until(block) - before)
        throw CodecError("block " + std::to_string(block) + " does not have as many escapes as the head says");
    const std::uint8_t* from = stream.escapes + stream.escapes_before[block / kBlocksPerChunk] + before;
    for (std::size_t i = 0; i < found; ++i) symbols[escaped[i]] = from[i];
}

// body(block, scratch) for the blocks [begin, end), on chunks that are summed.
template <typename Body>
void each_block(const Bitmaps& stream, std::uint64_t begin, std::uint64_t end, unsigned threads, const Body& body) {
    if (begin == end) return;
    const std::uint64_t first = begin / kBlocksPerChunk, blocks = ceil_div(stream.n, kBlock);
    parallel(static_cast<std::size_t>((end - 1) / kBlocksPerChunk + 1 - first), threads, [&](std::size_t index) {
        const std::uint64_t chunk = first + index, last = std::min((chunk + 1) * kBlocksPerChunk, blocks);
        Scratch scratch;
        std::uint32_t crc = 0;
        for (std::uint64_t block = chunk * kBlocksPerChunk; block < last; block += kSummed) {
            const std::uint64_t after = std::min(block + kSummed, last);
            const std::uint8_t* words = block_words(stream, block);
            const std::uint8_t* words_end = after < blocks ? block_words(stream, after) : stream.escapes;
            crc = crc32c(crc, words, static_cast<std::size_t>(words_end - words));
            for (std::uint64_t own = std::max(block, begin); own < std::min(after, end); ++own) body(own, scratch);
        }
        const std::uint64_t from = stream.escapes_before[chunk], until = stream.escapes_before[chunk + 1];
        crc = crc32c(crc, stream.escapes + from, static_cast<std::size_t>(until - from));
        if (crc != load<std::uint32_t>(stream.sums + 4 * chunk))
            throw CodecError("chunk " + std::to_string(chunk) + ": the sum of its bytes differs");
    });
}

// Hardware does not look beyond a page, and while numbers are written nothing else asks for words.
void fetch_words(const Bitmaps& stream, std::uint64_t block) {
    if (block + 1 >= ceil_div(stream.n, kBlock)) return;
    for (const std::uint8_t *p = block_words(stream, block), *end = block_words(stream, block + 1); p < end; p += 64)
        __builtin_prefetch(p);
}

// How the numbers of a block are put together from its symbols.
class Merger {
public:
    Merger(const Split& split, const BitmapLoops& loops, bool large) : split_(split), loops_(loops) {
        const bool rotated = split.rotated16() && split.coded == 8;
        in_groups_ = rotated && loops.merge16;
        past_caches_ = rotated && large && cpu().avx2;
    }

    void put(const std::uint8_t* symbols, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers) const {
        if (!in_groups_ && !past_caches_) return put_any(symbols, raw, 0, n, numbers);
        // Past the caches only from a line on, as far as lines go.
        const auto address = reinterpret_cast<std::uintptr_t>(numbers);
        if (past_caches_ && address % 2) return put_any(symbols, raw, 0, n, numbers);
        const std::size_t before = past_caches_ ? std::min<std::size_t>(n, (64 - address % 64) % 64 / 2) : 0;
        const std::size_t groups = (n - before) / kGroup, until = before + kGroup * groups;
        put_any(symbols, raw, 0, before, numbers);
        put_groups(symbols + before, raw + before, groups, numbers + 2 * before);
        put_any(symbols, raw, until, n, numbers);
    }

private:
    void put_any(const std::uint8_t* symbols, const std::uint8_t* raw, std::size_t from, std::size_t until,
                 std::uint8_t* numbers) const {
        if (from == until) return;
        plane_loops().put_symbols(split_, symbols + from, 0, raw + split_.raw_bytes(from), until - from,
                                  numbers + from * split_.bytes);
    }

    void put_groups(const std::uint8_t* symbols, const std::uint8_t* raw, std::size_t groups,
                    std::uint8_t* numbers) const {
        if (in_groups_) return loops_.merge16(symbols, raw, groups, numbers, past_caches_);
#ifdef LLMC_X86
        stream_bf16(symbols, raw, kGroup * groups, numbers);
#endif
    }

    const Split& split_;
    const BitmapLoops& loops_;
    bool in_groups_, past_caches_;
};

}  // namespace

void decode_bitmaps(const Bitmaps& stream, std::uint64_t begin, std::uint64_t end, std::uint8_t* out, unsigned threads,
                    const BitmapLoops& loops) {
    each_block(stream, begin / kBlock, ceil_div(end, kBlock), threads, [&](std::uint64_t block, Scratch& scratch) {
        const std::uint64_t first = block * kBlock, size = block_size(stream, block);
        if (first >= begin && first + size <= end && size % kGroup == 0)
            return read_block(stream, loops, block, out + (first - begin), scratch.escaped.data());
        read_block(stream, loops, block, scratch.symbols.data(), scratch.escaped.data());
        const std::uint64_t from = std::max(first, begin), until = std::min(first + size, end);
        std::copy(scratch.symbols.data() + (from - first), scratch.symbols.data() + (until - first), out + (from - begin));
    });
}

void check_bitmaps(const Bitmaps& stream, unsigned threads) {
    each_block(stream, 0, ceil_div(stream.n, kBlock), threads, [](std::uint64_t, const Scratch&) {});
}

void decode_bitmap_numbers(const Split& split, const Bitmaps& stream, const std::uint8_t* raw, std::uint8_t* numbers,
                           unsigned threads, const BitmapLoops& loops) {
    if (split.coded > 8) throw CodecError("fields of more than 8 bits have no bitmaps");
    constexpr std::uint64_t kLarge = 1u << 22;  // numbers that do not fit the caches anyway
    const Merger merger(split, loops, stream.n >= kLarge);
    each_block(stream, 0, ceil_div(stream.n, kBlock), threads, [&](std::uint64_t block, Scratch& scratch) {
        const std::uint64_t first = block * kBlock;
        const std::uint8_t* rest = raw + split.raw_bytes(first);
        fetch_words(stream, block + kSummed);
        read_block(stream, loops, block, scratch.symbols.data(), scratch.escaped.data());
        merger.put(scratch.symbols.data(), rest, block_size(stream, block), numbers + first * split.bytes);
    });
}

namespace {

struct NamedLoops {
    const char* name;
    const BitmapLoops* loops;
    bool runs;
};

std::vector<NamedLoops> all_loops() {
    return {{"scalar", &kBaselineBitmaps, true},
#ifdef LLMC_X86
            {"avx2", &kAvx2Bitmaps, cpu().avx2},
            {"avx512", &kAvx512Bitmaps, cpu().avx512}
#endif
    };
}

}  // namespace

const BitmapLoops& bitmap_loops(const std::string& path) {
    const BitmapLoops* last = nullptr;
    for (const NamedLoops& candidate : all_loops()) {
        if (candidate.runs) last = candidate.loops;
        if (path != candidate.name) continue;
        if (candidate.runs) return *candidate.loops;
        throw CodecError("this processor or build cannot run the path " + path);
    }
    if (path != "auto") throw CodecError("no path is named " + path);
    return *last;
}

std::vector<std::string> bitmap_path_names() {
    std::vector<std::string> names;
    for (const NamedLoops& candidate : all_loops())
        if (candidate.runs) names.emplace_back(candidate.name);
    return names;
}

}  // namespace llmc
