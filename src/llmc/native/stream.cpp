#include "stream.h"

#include <algorithm>

#include "crc32c.h"

namespace llmc {
namespace {

constexpr std::uint8_t kMagic[4] = {'l', 'R', 'A', '1'};

// A map: its period and as many values; or period 0 and runs (count - 1, value).
void read_map(ByteCursor& bytes, std::uint8_t* out, std::size_t size, unsigned limit) {
    const std::size_t period = bytes.byte();
    for (std::size_t i = 0; i < size;) {
        const std::size_t count = period == 0 ? std::size_t{bytes.byte()} + 1 : 1;
        const std::uint8_t value = period == 0 || i < period ? bytes.byte() : out[i - period];
        if (count > size - i) throw CodecError("a map of the stream is longer than it says");
        if (value >= limit) throw CodecError("a map of the stream points outside");
        std::fill_n(out + i, count, value);
        i += count;
    }
}

// The shorter of both ways.
void write_map(std::vector<std::uint8_t>& out, const std::uint8_t* map, std::size_t size) {
    std::vector<std::uint8_t> runs{0};
    for (std::size_t i = 0; i < size;) {
        std::size_t end = i + 1;
        while (end < size && map[end] == map[i] && end - i < 256) ++end;
        runs.push_back(static_cast<std::uint8_t>(end - i - 1));
        runs.push_back(map[i]);
        i = end;
    }
    std::size_t period = 1;
    while (period < size && !std::equal(map + period, map + size, map)) ++period;
    if (period < 256 && period + 1 < runs.size()) {
        runs.assign(1, static_cast<std::uint8_t>(period));
        runs.insert(runs.end(), map, map + period);
    }
    out.insert(out.end(), runs.begin(), runs.end());
}

void read_automaton(ByteCursor& bytes, Automaton& automaton, unsigned tables) {
    automaton.states = bytes.byte() + 1u;
    automaton.classes = bytes.byte() + 1u;
    read_map(bytes, automaton.class_of.data(), 256, automaton.classes);
    automaton.next.resize(std::size_t{automaton.states} * automaton.classes);
    read_map(bytes, automaton.next.data(), automaton.next.size(), automaton.states);
    automaton.table_of.resize(automaton.states);
    read_map(bytes, automaton.table_of.data(), automaton.states, tables);
}

void write_automaton(std::vector<std::uint8_t>& out, const Automaton& automaton) {
    out.push_back(static_cast<std::uint8_t>(automaton.states - 1));
    out.push_back(static_cast<std::uint8_t>(automaton.classes - 1));
    write_map(out, automaton.class_of.data(), 256);
    write_map(out, automaton.next.data(), automaton.next.size());
    write_map(out, automaton.table_of.data(), automaton.table_of.size());
}

void read_model(ByteCursor bytes, Model& model, unsigned tables) {
    if (model.selector == Selector::kContext) read_map(bytes, model.table_of.data(), 256, tables);
    if (model.selector == Selector::kAutomaton) read_automaton(bytes, model.automaton, tables);
    for (unsigned i = 0; i < tables; ++i) model.tables.push_back(read_table(bytes, model.bits));
    if (!bytes.done()) throw CodecError("bytes follow the model of the stream");
}

// The fixed fields. Returns the number of tables.
unsigned read_fields(const std::uint8_t* p, Model& model) {
    if (!std::equal(kMagic, kMagic + 4, p)) throw CodecError("not a stream of this coder, or of a version unknown here");
    if (p[6] > 2) throw CodecError("the stream selects tables in a way unknown here");
    model.bits = p[4];
    model.lanes_log2 = p[5];
    model.selector = static_cast<Selector>(p[6]);
    model.n = load<std::uint64_t>(p + 8);
    model.chunk = load<std::uint32_t>(p + 16);
    model.escape_first = load<std::uint16_t>(p + 20);
    model.value_bytes = p[22];
    model.base = load<std::int32_t>(p + 24);
    if (p[23] != 0) throw CodecError("a reserved byte of the stream is not zero");
    return p[7] + 1u;
}

std::size_t read_chunks(Stream& stream, const std::uint8_t* entries, std::size_t count) {
    const Model& model = stream.model;
    std::size_t offset = stream.head_bytes;
    stream.chunks.resize(count);
    for (std::size_t i = 0; i < count; ++i, entries += kChunkEntryBytes) {
        Chunk& chunk = stream.chunks[i];
        chunk = {offset, load<std::uint32_t>(entries), load<std::uint32_t>(entries + 4), load<std::uint32_t>(entries + 8)};
        if (chunk.words > model.chunk_size(i) || chunk.escapes > model.chunk_size(i))
            throw CodecError("chunk " + std::to_string(i) + " claims more words or escapes than it has symbols");
        offset += 4 * model.lanes() + 2 * std::size_t{chunk.words} + std::size_t{model.value_bytes} * chunk.escapes;
    }
    return offset;
}

}  // namespace

Frequencies read_table(ByteCursor& bytes, unsigned bits) {
    Frequencies table{};
    const unsigned total = 1u << bits;
    unsigned sum = 0;
    for (unsigned symbol = bytes.byte(); sum < total;) {
        if (symbol > 255) throw CodecError("a probability table does not sum to its total");
        unsigned frequency = bytes.byte();
        if (frequency == 0) {
            symbol += bytes.byte() + 1u;
            continue;
        }
        if (frequency & 0x80u) frequency = (frequency & 0x7Fu) | static_cast<unsigned>(bytes.byte()) << 7;
        if (frequency == 0 || frequency > total - sum) throw CodecError("a probability table does not sum to its total");
        table[symbol++] = static_cast<std::uint16_t>(frequency);
        sum += frequency;
    }
    return table;
}

void write_table(std::vector<std::uint8_t>& out, const Frequencies& table) {
    unsigned symbol = 0, last = 255;
    while (symbol < 255 && table[symbol] == 0) ++symbol;
    while (last > symbol && table[last] == 0) --last;
    out.push_back(static_cast<std::uint8_t>(symbol));
    while (symbol <= last) {
        const unsigned frequency = table[symbol];
        unsigned run = 1;
        while (frequency == 0 && table[symbol + run] == 0) ++run;
        if (frequency == 0) {
            out.push_back(0);
            out.push_back(static_cast<std::uint8_t>(run - 1));
        } else if (frequency < 0x80) {
            out.push_back(static_cast<std::uint8_t>(frequency));
        } else {
            out.push_back(static_cast<std::uint8_t>((frequency & 0x7F) | 0x80));
            out.push_back(static_cast<std::uint8_t>(frequency >> 7));
        }
        symbol += run;
    }
}

std::size_t Model::chunks() const { return only_symbol() >= 0 ? 0 : static_cast<std::size_t>((n + chunk - 1) / chunk); }

std::size_t Model::chunk_size(std::size_t index) const {
    return static_cast<std::size_t>(std::min<std::uint64_t>(chunk, n - std::uint64_t{index} * chunk));
}

int Model::only_symbol() const {
    if (selector != Selector::kOne || tables.size() != 1) return -1;
    const auto& table = tables[0];
    const auto only = std::find(table.begin(), table.end(), 1u << bits);
    const auto symbol = static_cast<unsigned>(only - table.begin());
    return only != table.end() && symbol < escape_first ? static_cast<int>(symbol) : -1;
}

void check(const Model& model) {
    if (model.bits < kMinBits || model.bits > kMaxBits) throw CodecError("probability bits are not 12, 13 or 14");
    if (model.lanes_log2 < kMinLanesLog2 || model.lanes_log2 > kMaxLanesLog2)
        throw CodecError("lanes are not a power of two from 4 to 256");
    if (model.chunk == 0 || model.chunk > kMaxChunk || model.chunk % model.lanes() != 0)
        throw CodecError("the chunk size is not a multiple of the lanes from 1 to 2^26");
    if (model.escape_first > kNoEscape) throw CodecError("the first escape symbol is above 256");
    if (model.value_bytes != 1 && model.value_bytes != 2 && model.value_bytes != 4)
        throw CodecError("values are not of 1, 2 or 4 bytes");
    const std::int64_t low = model.base, high = low + 255;
    const std::int64_t end = std::int64_t{1} << (8 * model.value_bytes - 1);
    if (model.value_bytes == 1 ? low != 0 : low < -end || high >= end)
        throw CodecError("the base of the values is out of range");
}

Stream parse(const std::uint8_t* data, std::size_t size, std::uint64_t expected_n) {
    Stream stream;
    Model& model = stream.model;
    if (size < kHeadBytes + 4) throw CodecError("the stream is cut short: " + std::to_string(size) + " bytes");
    const unsigned tables = read_fields(data, model);
    check(model);
    if (model.n != expected_n)
        throw CodecError("the stream holds " + std::to_string(model.n) + " symbols, not " + std::to_string(expected_n));
    const std::size_t model_bytes = load<std::uint32_t>(data + 28), rest = size - kHeadBytes - 4;
    if (model_bytes > rest) throw CodecError("the model of the stream is longer than the stream");
    read_model(ByteCursor(data + kHeadBytes, model_bytes), model, tables);
    const std::size_t count = model.chunks();
    if (count > (rest - model_bytes) / kChunkEntryBytes) throw CodecError("the chunk table is longer than the stream");
    const std::size_t summed = kHeadBytes + model_bytes + kChunkEntryBytes * count;
    stream.data = data;
    stream.head_bytes = summed + 4;
    if (load<std::uint32_t>(data + summed) != crc32c(0, data, summed)) throw CodecError("the head of the stream is damaged");
    const std::size_t end = read_chunks(stream, data + kHeadBytes + model_bytes, count);
    if (end != size)
        throw CodecError("the stream claims " + std::to_string(end) + " bytes and has " + std::to_string(size));
    return stream;
}

std::vector<std::uint8_t> head_of(const Model& model) {
    std::vector<std::uint8_t> out(kHeadBytes);
    std::copy(kMagic, kMagic + 4, out.begin());
    out[4] = static_cast<std::uint8_t>(model.bits);
    out[5] = static_cast<std::uint8_t>(model.lanes_log2);
    out[6] = static_cast<std::uint8_t>(model.selector);
    out[7] = static_cast<std::uint8_t>(model.tables.size() - 1);
    store(out.data() + 8, model.n);
    store(out.data() + 16, model.chunk);
    store(out.data() + 20, static_cast<std::uint16_t>(model.escape_first));
    out[22] = static_cast<std::uint8_t>(model.value_bytes);
    store(out.data() + 24, model.base);
    if (model.selector == Selector::kContext) write_map(out, model.table_of.data(), 256);
    if (model.selector == Selector::kAutomaton) write_automaton(out, model.automaton);
    for (const Frequencies& table : model.tables) write_table(out, table);
    store(out.data() + 28, static_cast<std::uint32_t>(out.size() - kHeadBytes));
    return out;
}

}  // namespace llmc
