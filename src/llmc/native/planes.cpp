#include "planes.h"

#include <algorithm>
#include <array>

#include "cpu.h"
#include "threads.h"

namespace llmc {
namespace {

constexpr std::uint64_t kTask = 1u << 18;  // numbers to a thread at a time; a multiple of 8, so raw bits begin at a byte

// Stores past the caches win where the numbers do not fit them anyway.
bool streams_past_caches(const Split& split, const std::uint8_t* numbers, std::uint64_t n) {
#ifdef LLMC_X86
    constexpr std::uint64_t kLarge = 1u << 22;
    return cpu().avx2 && split.rotated16() && n >= kLarge && reinterpret_cast<std::uintptr_t>(numbers) % 64 == 0;
#else
    static_cast<void>(split), static_cast<void>(numbers), static_cast<void>(n);
    return false;
#endif
}

void put_block(const Split& split, const std::uint8_t* symbols, std::int32_t base, const std::uint8_t* raw, std::size_t n,
               std::uint8_t* numbers, bool past_caches) {
#ifdef LLMC_X86
    if (past_caches && split.coded == 8 && n % 32 == 0) return stream_bf16(symbols, raw, n, numbers);
#else
    static_cast<void>(past_caches);
#endif
    plane_loops().put_symbols(split, symbols, base, raw, n, numbers);
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

}  // namespace

const PlaneLoops& plane_loops() {
#ifdef LLMC_X86
    if (cpu().avx2) return kAvx2Loops;
#endif
    return kBaselineLoops;
}

void check(const Split& split) {
    if (split.bytes != 1 && split.bytes != 2 && split.bytes != 4) throw CodecError("numbers are not of 1, 2 or 4 bytes");
    if (split.coded < 1 || split.coded > 15) throw CodecError("the coded field is not of 1 to 15 bits");
    if (split.coded > 8 * split.bytes || split.sign_after >= 8 * split.bytes)
        throw CodecError("the planes have more bits than the numbers");
}

void put_one(const Split& split, std::uint32_t field, const std::uint8_t* raw, std::size_t at, std::uint8_t* numbers) {
    const unsigned bits = split.raw_bits(), top = 8 * split.bytes - 1, below = top - split.sign_after;
    std::uint64_t held = 0;
    const std::size_t first = at * bits / 8, last = (at * bits + bits + 7) / 8;
    if (last > first) std::memcpy(&held, raw + first, last - first);
    const std::uint32_t rest = static_cast<std::uint32_t>(held >> (at * bits % 8)) & ((std::uint32_t{1} << bits) - 1);
    const std::uint32_t x = (field & ((1u << split.coded) - 1)) << bits | rest, low = (std::uint32_t{1} << below) - 1;
    const std::uint32_t number = (x >> 1 & ~low) | (x & low) | (x >> below & 1u) << top;
    std::memcpy(numbers + at * split.bytes, &number, split.bytes);
}

void split_planes(const Split& split, const std::uint8_t* numbers, std::uint64_t n, std::uint8_t* fields,
                  std::uint8_t* raw, unsigned threads) {
    each_block(n, threads, [&](std::size_t first, std::size_t count) {
        plane_loops().take(split, numbers + first * split.bytes, count, fields + first * split.value_bytes(),
                           raw + split.raw_bytes(first));
    });
}

void merge_planes(const Split& split, const std::uint8_t* fields, const std::uint8_t* raw, std::uint64_t n,
                  std::uint8_t* numbers, unsigned threads) {
    const bool past_caches = streams_past_caches(split, numbers, n);
    each_block(n, threads, [&](std::size_t first, std::size_t count) {
        const std::uint8_t *some = fields + first * split.value_bytes(), *rest = raw + split.raw_bytes(first);
        std::uint8_t* out = numbers + first * split.bytes;
        if (split.value_bytes() == 1) return put_block(split, some, 0, rest, count, out, past_caches);
        plane_loops().put(split, some, rest, count, out);
    });
}

namespace {

// One chunk of a stream and its raw bits to numbers, in blocks.
class ChunkMerger {
public:
    ChunkMerger(const Split& split, const Model& model, ChunkReader& reader, MergeSteps merge, bool past_caches)
        : split_(split), model_(model), reader_(reader), merge_(merge), past_caches_(past_caches) {}

    // `readable`: raw bytes from `raw` on, those of later numbers included.
    void block(const std::uint8_t* raw, std::size_t readable, const std::uint8_t* contexts, std::size_t n,
               std::uint8_t* numbers) {
        const std::size_t done = merge_ ? whole_steps(raw, readable, n, numbers) : 0;
        if (done == n) return;
        raw += split_.raw_bytes(done);
        numbers += done * split_.bytes;
        n -= done;
        reader_.read(symbols_.data(), contexts, n);
        put_block(split_, symbols_.data(), model_.base, raw, n, numbers, past_caches_);
        put_escapes(raw, n, numbers);
    }

private:
    std::size_t whole_steps(const std::uint8_t* raw, std::size_t readable, std::size_t n, std::uint8_t* numbers) {
        const std::size_t step = kMergeLanes * split_.raw_bits() / 8;
        const std::size_t safe = readable < kMergeReach ? 0 : (readable - kMergeReach) / step;
        std::array<std::uint64_t, kBlock / kMergeLanes> escapes;
        const Merge16 to{model_.base, model_.escape_first, raw, symbols_.data(), numbers, escapes.data()};
        const std::size_t done = reader_.merge(merge_, to, std::min(n / kMergeLanes, safe));
        for (std::size_t i = 0; i < done; ++i)
            for (std::uint64_t left = escapes[i]; left; left &= left - 1)
                put_escape(raw, kMergeLanes * i + static_cast<std::size_t>(__builtin_ctzll(left)), numbers);
        return done * kMergeLanes;
    }

    void put_escape(const std::uint8_t* raw, std::size_t at, std::uint8_t* numbers) {
        put_one(split_, static_cast<std::uint32_t>(reader_.next_escape()), raw, at, numbers);
    }

    void put_escapes(const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers) {
        if (model_.escape_first == kNoEscape) return;
        constexpr std::size_t kPart = 256;  // escapes are rare: whole parts are seen to have none at once
        for (std::size_t at = 0; at < n; at += kPart) {
            const std::size_t end = std::min(n, at + kPart);
            std::uint8_t top = 0;
            for (std::size_t i = at; i < end; ++i) top = std::max(top, symbols_[i]);
            for (std::size_t i = at; top >= model_.escape_first && i < end; ++i)
                if (symbols_[i] >= model_.escape_first) put_escape(raw, i, numbers);
        }
    }

    const Split& split_;
    const Model& model_;
    ChunkReader& reader_;
    MergeSteps merge_;
    bool past_caches_;
    alignas(64) std::array<std::uint8_t, kBlock> symbols_;
};

}  // namespace

void decode_planes(const Split& split, const Stream& stream, const std::uint8_t* raw, std::size_t raw_bytes,
                   const std::uint8_t* contexts, std::uint8_t* numbers, unsigned threads, Path path) {
    const Model& model = stream.model;
    if (raw_bytes != split.raw_bytes(model.n)) throw CodecError("the raw bits are not of the size of the numbers");
    if (model.value_bytes != split.value_bytes()) throw CodecError("the values of the stream do not fit the coded field");
    if (model.n > model.chunk && std::uint64_t{model.chunk} * split.raw_bits() % 8 != 0)
        throw CodecError("a chunk of the stream begins inside a byte of the raw bits");
    const DecodeTables tables = decode_tables(model);
    const Steps steps = steps_for(path, tables, model.lanes());
    const bool past_caches = streams_past_caches(split, numbers, model.n);
    const MergeSteps merge =
        split.rotated16() ? merge_steps_for(path, tables, model.lanes(), split.raw_bits(), past_caches) : nullptr;
    const auto chunks = static_cast<std::size_t>((model.n + model.chunk - 1) / model.chunk);
    parallel(chunks, threads, [&](std::size_t index) {
        ChunkReader reader(stream, tables, index, steps);
        ChunkMerger merger(split, model, reader, merge, past_caches);
        const std::size_t begin = index * model.chunk, end = begin + reader.size(), all = split.raw_bytes(model.n);
        for (std::size_t at = begin; at < end; at += kBlock) {
            const std::size_t first = split.raw_bytes(at);
            merger.block(raw + first, all - first, contexts ? contexts + at : nullptr, std::min(kBlock, end - at),
                         numbers + at * split.bytes);
        }
        reader.finish();
    });
}

}  // namespace llmc
