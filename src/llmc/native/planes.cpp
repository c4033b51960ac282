#include "planes.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "cpu.h"
#include "threads.h"

namespace llmc {
namespace {

constexpr std::uint64_t kTask = 1u << 18;  // numbers to a thread at a time; a multiple of 8, so raw bits begin at a byte

const PlaneLoops& loops() {
#ifdef LLMC_X86
    if (cpu().avx2) return kAvx2Loops;
#endif
    return kBaselineLoops;
}

// Stores past the caches win where the numbers do not fit them anyway.
bool streams_past_caches(const Split& split, const std::uint8_t* numbers, std::uint64_t n) {
    constexpr std::uint64_t kLarge = 1u << 22;
#ifdef LLMC_X86
    return cpu().avx2 && split.balanced_bf16() && n >= kLarge && reinterpret_cast<std::uintptr_t>(numbers) % 32 == 0;
#else
    static_cast<void>(split), static_cast<void>(numbers), static_cast<void>(n);
    return false;
#endif
}

void put_block(const Split& split, ConstPlanes coded, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers,
               bool past_caches) {
#ifdef LLMC_X86
    if (past_caches && n % 32 == 0) return stream_bf16(coded[0], raw, n, numbers);
#else
    static_cast<void>(past_caches);
#endif
    loops().put(split, coded, raw, n, numbers);
}

// task(first number, how many), for blocks of all numbers.
template <typename Task>
void each_block(std::uint64_t n, unsigned threads, const Task& task) {
    parallel(static_cast<std::size_t>((n + kTask - 1) / kTask), threads, [&](std::size_t index) {
        const std::uint64_t begin = index * kTask, end = std::min(n, begin + kTask);
        for (std::uint64_t at = begin; at < end; at += kBlock)
            task(static_cast<std::size_t>(at), static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, end - at)));
    });
}

void check_streams(const Split& split, const std::vector<Stream>& streams) {
    if (streams.size() != split.coded.size()) throw CodecError("there are not as many streams as coded planes");
    for (const Stream& stream : streams) {
        if (stream.model.value_bytes != 1) throw CodecError("a coded plane has values wider than a byte");
        if (stream.model.n != streams[0].model.n || stream.model.chunk != streams[0].model.chunk)
            throw CodecError("the streams of the planes differ in size or chunks");
    }
}

}  // namespace

unsigned Split::raw_bits() const { return 8 * bytes - std::accumulate(coded.begin(), coded.end(), 0u); }

std::size_t Split::raw_bytes(std::uint64_t n) const { return static_cast<std::size_t>((n * raw_bits() + 7) / 8); }

void check(const Split& split) {
    unsigned sum = 0;
    for (const unsigned bits : split.coded) {
        if (bits < 1 || bits > 8) throw CodecError("a coded plane is not of 1 to 8 bits");
        sum += bits;
    }
    if (split.bytes != 1 && split.bytes != 2 && split.bytes != 4) throw CodecError("numbers are not of 1, 2 or 4 bytes");
    if (split.coded.empty() || split.coded.size() > kMaxPlanes) throw CodecError("there are not 1 to 4 coded planes");
    if (sum > 8 * split.bytes || split.sign_after >= 8 * split.bytes)
        throw CodecError("the planes have more bits than the numbers");
}

void split_planes(const Split& split, const std::uint8_t* numbers, std::uint64_t n, Planes coded, std::uint8_t* raw,
                  unsigned threads) {
    each_block(n, threads, [&](std::size_t first, std::size_t count) {
        std::array<std::uint8_t*, kMaxPlanes> at{};
        for (std::size_t p = 0; p < split.coded.size(); ++p) at[p] = coded[p] + first;
        loops().take(split, numbers + first * split.bytes, count, at.data(), raw + split.raw_bytes(first));
    });
}

void merge_planes(const Split& split, ConstPlanes coded, const std::uint8_t* raw, std::uint64_t n,
                  std::uint8_t* numbers, unsigned threads) {
    const bool past_caches = streams_past_caches(split, numbers, n);
    each_block(n, threads, [&](std::size_t first, std::size_t count) {
        std::array<const std::uint8_t*, kMaxPlanes> at{};
        for (std::size_t p = 0; p < split.coded.size(); ++p) at[p] = coded[p] + first;
        put_block(split, at.data(), raw + split.raw_bytes(first), count, numbers + first * split.bytes, past_caches);
    });
}

namespace {

// One chunk of all planes.
struct Merger {
    const Split& split;
    const std::vector<Stream>& streams;
    const std::vector<DecodeTables>& tables;
    Path path;
    bool past_caches;

    void run(std::size_t index, const std::uint8_t* raw, const std::uint8_t* contexts, std::uint8_t* numbers) const {
        std::vector<ChunkReader> readers;
        for (std::size_t p = 0; p < streams.size(); ++p)
            readers.emplace_back(streams[p], tables[p], index, steps_for(path, tables[p], streams[p].model.lanes()));
        const std::size_t begin = index * streams[0].model.chunk, end = begin + readers[0].size();
        alignas(64) std::array<std::array<std::uint8_t, kBlock>, kMaxPlanes> blocks;
        const std::array<const std::uint8_t*, kMaxPlanes> planes{blocks[0].data(), blocks[1].data(), blocks[2].data(),
                                                                 blocks[3].data()};
        for (std::size_t at = begin; at < end; at += kBlock) {
            const std::size_t count = std::min(kBlock, end - at);
            for (std::size_t p = 0; p < readers.size(); ++p) {
                const std::uint8_t* seen = p ? planes[0] : contexts ? contexts + at : nullptr;
                readers[p].read_bytes(blocks[p].data(), seen, count);
            }
            put_block(split, planes.data(), raw + split.raw_bytes(at), count, numbers + at * split.bytes, past_caches);
        }
        for (ChunkReader& reader : readers) reader.finish();
    }
};

}  // namespace

void decode_planes(const Split& split, const std::vector<Stream>& streams, const std::uint8_t* raw,
                   const std::uint8_t* contexts, std::uint8_t* numbers, unsigned threads, Path path) {
    check_streams(split, streams);
    const Model& model = streams[0].model;
    std::vector<DecodeTables> tables;
    for (const Stream& stream : streams) tables.push_back(decode_tables(stream.model));
    const Merger merger{split, streams, tables, path, streams_past_caches(split, numbers, model.n)};
    const auto chunks = static_cast<std::size_t>((model.n + model.chunk - 1) / model.chunk);
    parallel(chunks, threads, [&](std::size_t index) { merger.run(index, raw, contexts, numbers); });
}

}  // namespace llmc
