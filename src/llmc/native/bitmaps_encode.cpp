#include <algorithm>
#include <memory>

#include "bitmaps.h"
#include "crc32c.h"
#include "threads.h"

namespace llmc {
namespace {

using ChunkCounts = std::array<std::uint32_t, 256>;

std::uint64_t ceil_div(std::uint64_t a, std::uint64_t b) { return a / b + (a % b != 0); }

ChunkCounts count_chunk(const std::uint8_t* symbols, std::size_t n) {
    std::array<ChunkCounts, 4> parts{};  // equal neighbours wait for each other otherwise
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (std::size_t k = 0; k < 4; ++k) ++parts[k][symbols[i + k]];
    for (; i < n; ++i) ++parts[0][symbols[i]];
    for (std::size_t s = 0; s < 256; ++s) parts[0][s] += parts[1][s] + parts[2][s] + parts[3][s];
    return parts[0];
}

// At most seven symbols, the most frequent first; of equal ones the smaller.
std::vector<std::uint8_t> most_frequent(const std::vector<ChunkCounts>& counts) {
    std::array<std::uint64_t, 256> total{};
    for (const ChunkCounts& own : counts)
        for (std::size_t s = 0; s < 256; ++s) total[s] += own[s];
    std::vector<std::uint8_t> table;
    for (unsigned s = 0; s < 256; ++s)
        if (total[s]) table.push_back(static_cast<std::uint8_t>(s));
    std::stable_sort(table.begin(), table.end(), [&total](std::uint8_t a, std::uint8_t b) { return total[a] > total[b]; });
    table.resize(std::min<std::size_t>(table.size(), 7));
    return table;
}

// Where the parts of a new stream are.
struct Places {
    std::uint64_t blocks, sums, summed, words, escapes;

    explicit Places(std::uint64_t n)
        : blocks(kBitmapHead), sums(blocks + 4 * ceil_div(n, kBlock)), summed(sums + 4 * ceil_div(n, kBitmapChunk)),
          words(ceil_div(summed + 4, 8) * 8), escapes(words + ceil_div(n, kGroup) * kGroupBytes) {}
};

class Packer {
public:
    Packer(std::uint8_t* stream, std::uint64_t n, const std::vector<std::uint8_t>& table, const BitmapLoops& loops)
        : stream_(stream), places_(n), n_(n), table_(table), loops_(loops) {}

    // Writes words, escapes, counts and the sum of a chunk.
    void chunk(std::uint64_t index, const std::uint8_t* symbols, std::uint64_t escapes_before) {
        const std::uint64_t begin = index * kBitmapChunk, end = std::min<std::uint64_t>(n_, begin + kBitmapChunk);
        std::uint8_t* const escapes = stream_ + places_.escapes + escapes_before;
        std::uint8_t* next = escapes;
        for (std::uint64_t at = begin; at < end; at += kBlock) {
            next = block(at, symbols + at, static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, end - at)), next);
            store(stream_ + places_.blocks + 4 * (at / kBlock), static_cast<std::uint32_t>(next - escapes));
        }
        const std::uint8_t *words = words_of(begin), *words_end = words + ceil_div(end - begin, kGroup) * kGroupBytes;
        const std::uint32_t crc = crc32c(0, words, static_cast<std::size_t>(words_end - words));
        store(stream_ + places_.sums + 4 * index, crc32c(crc, escapes, static_cast<std::size_t>(next - escapes)));
    }

private:
    std::uint8_t* words_of(std::uint64_t symbol) { return stream_ + places_.words + symbol / kGroup * kGroupBytes; }

    std::uint8_t* block(std::uint64_t at, const std::uint8_t* symbols, std::size_t size, std::uint8_t* escapes) {
        std::array<std::uint16_t, kBlock + kNoted> escaped;
        const std::size_t whole = size / kGroup;
        std::size_t count = loops_.pack(symbols, whole, table_, words_of(at), escaped.data());
        for (std::size_t i = 0; i < count; ++i) *escapes++ = symbols[escaped[i]];
        const std::size_t left = size % kGroup;
        if (left == 0) return escapes;
        std::array<std::uint8_t, kGroup> last{};
        std::copy_n(symbols + kGroup * whole, left, last.begin());
        std::uint8_t* words = words_of(at + kGroup * whole);
        count = loops_.pack(last.data(), 1, table_, words, escaped.data());
        for (std::size_t i = 0; i < count && escaped[i] < left; ++i) *escapes++ = last[escaped[i]];
        for (unsigned plane = 0; plane < 3; ++plane)
            store(words + 8 * plane, load<std::uint64_t>(words + 8 * plane) & ((std::uint64_t{1} << left) - 1));
        return escapes;
    }

    std::uint8_t* stream_;
    Places places_;
    std::uint64_t n_;
    const std::vector<std::uint8_t>& table_;
    const BitmapLoops& loops_;
};

}  // namespace

std::vector<std::uint8_t> encode_bitmaps(const std::uint8_t* symbols, std::uint64_t n, unsigned threads,
                                         const BitmapLoops& loops) {
    const auto chunks = static_cast<std::size_t>(ceil_div(n, kBitmapChunk));
    std::vector<ChunkCounts> counts(chunks);
    parallel(chunks, threads, [&](std::size_t index) {
        const std::uint64_t begin = index * kBitmapChunk;
        counts[index] = count_chunk(symbols + begin, static_cast<std::size_t>(std::min<std::uint64_t>(kBitmapChunk, n - begin)));
    });
    const std::vector<std::uint8_t> table = most_frequent(counts);
    std::vector<std::uint64_t> before{0};
    for (std::size_t index = 0; index < chunks; ++index) {
        std::uint64_t escapes = std::min<std::uint64_t>(kBitmapChunk, n - index * kBitmapChunk);
        for (const std::uint8_t symbol : table) escapes -= counts[index][symbol];
        before.push_back(before.back() + escapes);
    }
    const Places places(n);
    std::vector<std::uint8_t> stream(static_cast<std::size_t>(places.escapes + before.back()));
    std::memcpy(stream.data(), "lBM1", 4);
    std::copy(table.begin(), table.end(), stream.begin() + 4);
    store(stream.data() + 12, n);
    Packer packer(stream.data(), n, table, loops);
    parallel(chunks, threads, [&](std::size_t index) { packer.chunk(index, symbols, before[index]); });
    store(stream.data() + places.summed, crc32c(0, stream.data(), static_cast<std::size_t>(places.summed)));
    return stream;
}

}  // namespace llmc
