#include "encode.h"

#include <algorithm>
#include <memory>
#include <mutex>

#include "cpu.h"
#include "crc32c.h"
#include "threads.h"

namespace llmc {
namespace {

constexpr std::size_t kPart = 256;  // escapes are rare: whole parts are seen to have none at once

// The table of every symbol of a chunk; empty where there is only table 0.
std::vector<std::uint8_t> tables_of_chunk(const Job& job, std::size_t first, std::size_t size) {
    const Model& model = job.model;
    if (model.selector == Selector::kOne) return {};
    std::vector<std::uint8_t> tables(size);
    if (model.selector == Selector::kContext) {
        for (std::size_t i = 0; i < size; ++i) tables[i] = model.table_of[job.contexts[first + i]];
        return tables;
    }
    const Automaton& automaton = model.automaton;
    std::array<std::uint8_t, kMaxLanes> state{};
    for (std::size_t i = 0; i < size; ++i) {
        std::uint8_t& s = state[i & (model.lanes() - 1)];
        tables[i] = automaton.table_of[s];
        s = automaton.next[s * automaton.classes + automaton.class_of[job.symbols[first + i]]];
    }
    return tables;
}

std::vector<Counts> count_all(const Job& job) {
    std::vector<Counts> sums(job.tables);
    std::mutex lock;
    const std::size_t chunks = static_cast<std::size_t>((job.model.n + job.model.chunk - 1) / job.model.chunk);
    parallel(chunks, job.threads, [&](std::size_t index) {
        const std::size_t first = index * job.model.chunk, size = job.model.chunk_size(index);
        const std::vector<std::uint8_t> tables = tables_of_chunk(job, first, size);
        std::vector<Counts> counts(job.tables);
        count_symbols(job.symbols + first, tables.empty() ? nullptr : tables.data(), size, counts[0].data(), job.tables);
        const std::lock_guard<std::mutex> guard(lock);
        for (std::size_t t = 0; t < sums.size(); ++t)
            for (std::size_t s = 0; s < 256; ++s) sums[t][s] += counts[t][s];
    });
    return sums;
}

// Size in 2^-48 bits of everything coded, tables included.
Wide size_with(const std::vector<Counts>& counts, Model& model) {
    Wide size = 0;
    model.tables.clear();
    for (const Counts& each : counts) {
        model.tables.push_back(normalise(each, model.bits));
        size += coded_size(each, model.tables.back(), model.bits);
    }
    return size + (Wide{head_of(model).size()} << (48 + 3));
}

// The symbols below 1 / 2^bits of all, which might share an escape above the others: `first`, or none.
unsigned escape_above(const Counts& total, std::uint64_t n, unsigned bits, std::array<bool, 256>& rare) {
    unsigned first = 0, found = 0;
    for (unsigned s = 0; s < 256; ++s) {
        rare[s] = total[s] > 0 && Wide{total[s]} << bits < Wide{n};
        found += rare[s];
        if (total[s] > 0 && !rare[s]) first = s + 1;
    }
    return found >= 2 && first < 256 ? first : kNoEscape;
}

// Moves the rare symbols to the escape. Returns how many there were.
std::uint64_t merge_rare(std::vector<Counts>& counts, unsigned escape, const std::array<bool, 256>& rare) {
    std::uint64_t escaped = 0;
    for (Counts& each : counts)
        for (std::size_t s = 0; s < 256; ++s) {
            const std::uint64_t count = rare[s] ? each[s] : 0;
            each[s] -= count;
            each[escape] += count;
            escaped += count;
        }
    return escaped;
}

// Sets the tables of job.model, and an escape for rare bytes where that is smaller. True: it did.
bool choose_tables(const std::vector<Counts>& counts, Job& job, std::array<bool, 256>& rare) {
    Wide best = size_with(counts, job.model);
    if (job.values || job.model.selector == Selector::kAutomaton) return false;
    Counts total{};
    for (const Counts& each : counts)
        for (std::size_t s = 0; s < 256; ++s) total[s] += each[s];
    bool pays = false;
    for (const unsigned under : {0u, 2u, 4u}) {  // what is rare: below a slot, a quarter, a sixteenth of one
        std::array<bool, 256> tried{};
        Model with = job.model;
        with.escape_first = escape_above(total, with.n, with.bits + under, tried);
        if (with.escape_first == kNoEscape) continue;
        std::vector<Counts> merged = counts;
        const std::uint64_t escaped = merge_rare(merged, with.escape_first, tried);
        const Wide size = size_with(merged, with) + (Wide{escaped} << (48 + 3));
        if (size >= best) continue;
        best = size;
        rare = tried;
        job.model = with;
        pays = true;
    }
    return pays;
}

// Symbols with the rare ones replaced by the escape. Most parts hold none and are copied.
struct Replacement {
    std::array<std::uint8_t, 256> map{};
    unsigned low = 256, high = 256;  // what lies between stays as it is

    Replacement(const std::array<bool, 256>& rare, unsigned escape) : low(escape), high(escape) {
        for (unsigned s = 0; s < 256; ++s) map[s] = static_cast<std::uint8_t>(rare[s] ? escape : s);
        while (low > 0 && !rare[low - 1]) --low;
    }

    void apply(const std::uint8_t* in, std::size_t n, std::uint8_t* out) const {
        for (std::size_t at = 0; at < n; at += kPart) {
            const std::size_t end = std::min(n, at + kPart);
            std::uint8_t top = 0, bottom = 255;
            for (std::size_t i = at; i < end; ++i) top = std::max(top, in[i]);
            for (std::size_t i = at; i < end; ++i) bottom = std::min(bottom, in[i]);
            if (bottom >= low && top < high)
                std::memcpy(out + at, in + at, end - at);
            else
                for (std::size_t i = at; i < end; ++i) out[i] = map[in[i]];
        }
    }
};

struct Payload {
    std::vector<std::uint8_t> bytes;
    std::uint32_t words = 0, escapes = 0, crc = 0;
};

// The values behind the escapes among a chunk's `symbols`, and the sum of both.
void add_escapes(const Job& job, const std::uint8_t* symbols, std::size_t first, std::size_t size, Payload& payload) {
    const Model& model = job.model;
    const std::uint8_t* values = (job.values ? job.values : job.symbols) + first * model.value_bytes;
    const std::size_t before = payload.bytes.size();
    for (std::size_t at = 0; at < size && model.escape_first != kNoEscape; at += kPart) {
        const std::size_t end = std::min(size, at + kPart);
        std::uint8_t top = 0;
        for (std::size_t i = at; i < end; ++i) top = std::max(top, symbols[i]);
        for (std::size_t i = at; top >= model.escape_first && i < end; ++i) {
            if (symbols[i] < model.escape_first) continue;
            const std::uint8_t* value = values + i * model.value_bytes;
            payload.bytes.insert(payload.bytes.end(), value, value + model.value_bytes);
            ++payload.escapes;
        }
    }
    const std::uint32_t crc = crc32c(0, symbols, size);
    payload.crc = crc32c(crc, payload.bytes.data() + before, payload.bytes.size() - before);
}

EncodeSteps steps_of(const Job& job) {
#ifdef LLMC_X86
    const bool wide = job.path == Path::kAuto || job.path >= Path::kAvx512;
    if (cpu().avx512 && wide && job.model.lanes() >= 16) return &encode_steps_avx512;
#endif
    static_cast<void>(job);
    return &encode_steps_scalar;
}

Payload encode_chunk(const Job& job, const EncodeTables& tables, const Replacement* rare, std::size_t index) {
    const std::size_t first = index * job.model.chunk, size = job.model.chunk_size(index), lanes = job.model.lanes();
    const std::vector<std::uint8_t> of = tables_of_chunk(job, first, size);
    const std::uint8_t* tables_of = of.empty() ? nullptr : of.data();
    // No vectors: pages need no zeros. A symbol spills one word at most; 64 bytes may be touched before them.
    const std::unique_ptr<std::uint8_t[]> room(new std::uint8_t[2 * size + 64]);
    const std::unique_ptr<std::uint8_t[]> replaced(rare ? new std::uint8_t[size] : nullptr);
    if (rare) rare->apply(job.symbols + first, size, replaced.get());
    const std::uint8_t* symbols = rare ? replaced.get() : job.symbols + first;
    std::uint8_t* const end = room.get() + 2 * size + 64;
    alignas(64) std::array<std::uint32_t, kMaxLanes> x;
    x.fill(kLowest);
    const std::size_t whole = size / lanes, full = whole * lanes;
    std::uint8_t* words = end;
    for (std::size_t i = size; i-- > full;)
        words = encode_steps_scalar(tables, &x[i - full], 1, symbols + i, tables_of ? tables_of + i : nullptr, 1, words);
    words = steps_of(job)(tables, x.data(), lanes, symbols, tables_of, whole, words);
    Payload payload;
    payload.words = static_cast<std::uint32_t>((end - words) / 2);
    payload.bytes.reserve(4 * lanes + static_cast<std::size_t>(end - words));
    payload.bytes.resize(4 * lanes);
    std::memcpy(payload.bytes.data(), x.data(), 4 * lanes);
    payload.bytes.insert(payload.bytes.end(), words, end);
    add_escapes(job, symbols, first, size, payload);
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

}  // namespace

std::vector<std::uint8_t> encode(Job job) {
    Model& model = job.model;
    model.tables.assign(1, Frequencies{});  // counted below; until then nothing is constant
    check(model);
    std::array<bool, 256> rare{};
    const bool replaces = choose_tables(count_all(job), job, rare);
    const Replacement replacement(rare, model.escape_first);
    const EncodeTables tables = encode_tables(model);
    std::vector<Payload> payloads(model.chunks());
    parallel(payloads.size(), job.threads, [&](std::size_t i) {
        payloads[i] = encode_chunk(job, tables, replaces ? &replacement : nullptr, i);
    });
    return assemble(model, payloads);
}

}  // namespace llmc
