#include "encode.h"

#include <algorithm>
#include <mutex>

#include "cpu.h"
#include "crc32c.h"
#include "threads.h"

namespace llmc {
namespace {

struct Payload {
    std::vector<std::uint8_t> bytes;
    std::uint32_t words = 0, escapes = 0, crc = 0;
};

// The values behind the escapes among a chunk's `symbols`, and the sum of both.
void add_escapes(const Model& model, const Source& source, const std::uint8_t* symbols, std::size_t first,
                 std::size_t size, Payload& payload) {
    constexpr std::size_t kPart = 256;  // escapes are rare: whole parts are seen to have none at once
    const std::size_t before = payload.bytes.size();
    for (std::size_t at = 0; at < size && model.escape_first != kNoEscape; at += kPart) {
        const std::size_t end = std::min(size, at + kPart);
        std::uint8_t top = 0;
        for (std::size_t i = at; i < end; ++i) top = std::max(top, symbols[i]);
        for (std::size_t i = at; top >= model.escape_first && i < end; ++i) {
            if (symbols[i] < model.escape_first) continue;
            const std::int32_t value = source.value(first + i);
            payload.bytes.resize(payload.bytes.size() + model.value_bytes);
            std::memcpy(payload.bytes.data() + payload.bytes.size() - model.value_bytes, &value, model.value_bytes);
            ++payload.escapes;
        }
    }
    const std::uint32_t crc = crc32c(0, symbols, size);
    payload.crc = crc32c(crc, payload.bytes.data() + before, payload.bytes.size() - before);
}

EncodeSteps steps_of(const EncodeTables& tables, const Model& model, Path path) {
#ifdef LLMC_X86
    const bool wide = path == Path::kAuto || path >= Path::kAvx512;
    const EncodeSteps steps = encode_steps_avx512(tables, model.lanes(), model.selector != Selector::kOne);
    if (cpu().avx512 && wide && steps) return steps;
#endif
    static_cast<void>(tables), static_cast<void>(model), static_cast<void>(path);
    return &encode_steps_scalar;
}

struct Rooms {
    Room symbols, tables, words;
};

Payload encode_chunk(const Model& model, const Source& source, const EncodeTables& tables, EncodeSteps steps,
                     std::size_t index, Rooms& rooms) {
    const std::size_t first = index * model.chunk, size = model.chunk_size(index), lanes = model.lanes();
    const std::uint8_t* symbols = source.symbols(first, size, rooms.symbols);
    const std::uint8_t* tables_of = source.tables_of(first, size, rooms.tables);
    // A symbol spills one word at most; 64 bytes may be touched before them.
    std::uint8_t* const end = rooms.words.of(2 * size + 64) + 2 * size + 64;
    alignas(64) std::array<std::uint32_t, kMaxLanes> x;
    x.fill(kLowest);
    const std::size_t whole = size / lanes, full = whole * lanes;
    std::uint8_t* words = end;
    for (std::size_t i = size; i-- > full;)
        words = encode_steps_scalar(tables, &x[i - full], 1, symbols + i, tables_of ? tables_of + i : nullptr, 1, words);
    words = steps(tables, x.data(), lanes, symbols, tables_of, whole, words);
    Payload payload;
    payload.words = static_cast<std::uint32_t>((end - words) / 2);
    payload.bytes.reserve(4 * lanes + static_cast<std::size_t>(end - words));
    payload.bytes.resize(4 * lanes);
    std::memcpy(payload.bytes.data(), x.data(), 4 * lanes);
    payload.bytes.insert(payload.bytes.end(), words, end);
    add_escapes(model, source, symbols, first, size, payload);
    return payload;
}

// Head, chunk table, sum, payloads.
std::vector<std::uint8_t> assemble(const Model& model, const std::vector<Payload>& payloads) {
    std::vector<std::uint8_t> out = head_of(model);
    std::size_t at = out.size(), total = at + kChunkEntryBytes * payloads.size() + 4;
    for (const Payload& payload : payloads) total += payload.bytes.size();
    out.reserve(total);
    out.resize(at + kChunkEntryBytes * payloads.size() + 4);
    for (const Payload& payload : payloads) {
        store(out.data() + at, payload.words);
        store(out.data() + at + 4, payload.escapes);
        store(out.data() + at + 8, payload.crc);
        at += kChunkEntryBytes;
    }
    store(out.data() + at, crc32c(0, out.data(), at));
    for (const Payload& payload : payloads) out.insert(out.end(), payload.bytes.begin(), payload.bytes.end());
    return out;
}

// Symbols that are in memory.
class Plain final : public Source {
public:
    Plain(const Job& job, const Replacement& rare) : job_(job), rare_(rare) {}

    const std::uint8_t* symbols(std::size_t first, std::size_t n, Room& room) const override {
        if (!rare_.any) return job_.symbols + first;
        rare_.apply(job_.symbols + first, n, room.of(n));
        return room.of(n);
    }

    const std::uint8_t* tables_of(std::size_t first, std::size_t n, Room& room) const override {
        const Model& model = job_.model;
        if (model.selector == Selector::kOne) return nullptr;
        std::uint8_t* tables = room.of(n);
        if (model.selector == Selector::kContext) {
            for (std::size_t i = 0; i < n; ++i) tables[i] = model.table_of[job_.contexts[first + i]];
            return tables;
        }
        const Automaton& automaton = model.automaton;
        std::array<std::uint8_t, kMaxLanes> state{};
        for (std::size_t i = 0; i < n; ++i) {
            std::uint8_t& s = state[i & (model.lanes() - 1)];
            tables[i] = automaton.table_of[s];
            s = automaton.next[s * automaton.classes + automaton.class_of[job_.symbols[first + i]]];
        }
        return tables;
    }

    std::int32_t value(std::size_t at) const override {
        if (!job_.values) return job_.symbols[at];
        const std::uint8_t* value = job_.values + at * job_.model.value_bytes;
        return job_.model.value_bytes == 2 ? load<std::int16_t>(value) : load<std::int32_t>(value);
    }

private:
    const Job& job_;
    const Replacement& rare_;
};

std::vector<Counts> count_all(const Job& job) {
    std::vector<Counts> sums(job.tables);
    std::mutex lock;
    const Replacement none;
    const Plain source(job, none);
    const std::size_t chunks = static_cast<std::size_t>((job.model.n + job.model.chunk - 1) / job.model.chunk);
    parallel(chunks, job.threads, [&](std::size_t index) {
        const std::size_t first = index * job.model.chunk, size = job.model.chunk_size(index);
        Room room;
        std::vector<Counts> counts(job.tables);
        count_symbols(job.symbols + first, source.tables_of(first, size, room), size, counts[0].data(), job.tables);
        const std::lock_guard<std::mutex> guard(lock);
        for (std::size_t t = 0; t < sums.size(); ++t)
            for (std::size_t s = 0; s < 256; ++s) sums[t][s] += counts[t][s];
    });
    return sums;
}

}  // namespace

std::vector<std::uint8_t> encode(const Model& model, const Source& source, unsigned threads, Path path) {
    const EncodeTables tables = encode_tables(model);
    const EncodeSteps steps = steps_of(tables, model, path);
    std::vector<Payload> payloads(model.chunks());
    std::vector<Rooms> rooms(std::max(1u, threads));
    parallel_on(payloads.size(), threads, [&](std::size_t i, std::size_t thread) {
        payloads[i] = encode_chunk(model, source, tables, steps, i, rooms[thread]);
    });
    return assemble(model, payloads);
}

std::vector<std::uint8_t> encode(Job job) {
    Model& model = job.model;
    model.tables.assign(1, Frequencies{});  // counted below; until then nothing is constant
    check(model);
    const bool free = !job.values && model.selector != Selector::kAutomaton;
    const Replacement rare = choose_tables(count_all(job), 0, free, model);
    return encode(model, Plain(job, rare), job.threads, job.path);
}

}  // namespace llmc
