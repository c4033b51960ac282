#include "decode.h"

#include <algorithm>

#include "crc32c.h"
#include "threads.h"

namespace llmc {
namespace {

void fill_table(DecodeTables& t, const Model& model, std::size_t index) {
    const Frequencies& table = model.tables[index];
    std::uint32_t start = 0;
    for (unsigned symbol = 0; symbol < 256; ++symbol) {
        const std::uint32_t q = table[symbol];
        const std::size_t at = (index << t.bits) + start;
        for (std::uint32_t i = 0; i < q; ++i) {
            if (t.packed)
                t.lut[at + i] = symbol << 24 | (q - 1) << 12 | i;
            else
                t.symbols[at + i] = static_cast<std::uint8_t>(symbol);
        }
        if (!t.packed) t.pairs[index << 8 | symbol] = q | start << 16;
        start += q;
    }
}

void fill_moves(DecodeTables& t, const Automaton& automaton) {
    const auto entry = [&](unsigned state) {
        return static_cast<std::uint32_t>(automaton.table_of[state]) << (t.bits + 8) | state;
    };
    t.moves.resize(std::size_t{automaton.states} << 8);
    for (unsigned state = 0; state < automaton.states; ++state)
        for (unsigned symbol = 0; symbol < 256; ++symbol)
            t.moves[state << 8 | symbol] = entry(automaton.next[state * automaton.classes + automaton.class_of[symbol]]);
    t.start_state = entry(0);
}

}  // namespace

DecodeTables decode_tables(const Model& model) {
    DecodeTables t;
    t.bits = model.bits;
    t.selector = model.selector;
    const auto highest = [](const Frequencies& table) { return *std::max_element(table.begin(), table.end()); };
    t.packed = model.bits == 12 || (model.selector == Selector::kOne && highest(model.tables[0]) <= 1u << 12);
    const std::size_t slots = model.tables.size() << model.bits;
    if (t.packed) {
        t.lut.resize(slots);
    } else {
        t.symbols.resize(slots + 3);
        t.pairs.resize(model.tables.size() << 8);
    }
    for (std::size_t i = 0; i < model.tables.size(); ++i) fill_table(t, model, i);
    if (model.selector == Selector::kOne) t.search = search_tables(model.tables[0], model.bits);
    if (model.selector == Selector::kAutomaton) fill_moves(t, model.automaton);
    if (model.selector == Selector::kContext)
        for (const std::uint8_t table : model.table_of) t.base.push_back(std::uint32_t{table} << model.bits);
    return t;
}

ChunkReader::ChunkReader(const Stream& stream, const DecodeTables& tables, std::size_t index, Steps steps)
    : stream_(stream), tables_(tables), index_(index), size_(stream.model.chunk_size(index)), steps_(steps),
      only_(stream.model.only_symbol()) {
    if (only_ >= 0) return;
    const Chunk& chunk = stream.chunks[index];
    const std::uint8_t* p = stream.data + chunk.offset;
    lanes_.count = stream.model.lanes();
    for (std::size_t i = 0; i < lanes_.count; ++i, p += 4) {
        lanes_.x[i] = load<std::uint32_t>(p);
        lanes_.state[i] = tables.start_state;
        if (lanes_.x[i] < kLowest) throw CodecError("chunk " + std::to_string(index) + ": a lane state is out of range");
    }
    lanes_.words = p;
    lanes_.end = escapes_ = p + 2 * std::size_t{chunk.words};
    escapes_left_ = chunk.escapes;
}

void ChunkReader::read(std::uint8_t* out, const std::uint8_t* contexts, std::size_t count) {
    if (only_ >= 0) {
        std::fill_n(out, count, static_cast<std::uint8_t>(only_));
        return;
    }
    const std::size_t lanes = lanes_.count;
    std::size_t done = steps_(tables_, lanes_, out, contexts, count / lanes) * lanes;
    while (done < count) {
        const std::size_t active = std::min(lanes, count - done);
        careful_step(tables_, lanes_, out + done, contexts ? contexts + done : nullptr, active);
        done += active;
    }
    lanes_.crc = crc32c(lanes_.crc, out, count);
}

std::size_t ChunkReader::merge(MergeSteps merge, const Merge16& to, std::size_t steps) {
    return only_ >= 0 ? 0 : merge(tables_, lanes_, to, steps);
}

void ChunkReader::read_bytes(std::uint8_t* out, const std::uint8_t* contexts, std::size_t count) {
    read(out, contexts, count);
    const unsigned first = stream_.model.escape_first;
    if (first == kNoEscape) return;
    constexpr std::size_t kPart = 256;  // escapes are rare: whole parts are seen to have none at once
    for (std::size_t at = 0; at < count; at += kPart) {
        const std::size_t end = std::min(count, at + kPart);
        std::uint8_t top = 0;
        for (std::size_t i = at; i < end; ++i) top = std::max(top, out[i]);
        for (std::size_t i = at; top >= first && i < end; ++i)
            if (out[i] >= first) out[i] = static_cast<std::uint8_t>(next_escape());
    }
}

std::int32_t ChunkReader::next_escape() {
    if (escapes_left_ == 0) throw CodecError("chunk " + std::to_string(index_) + ": the escapes end before the symbols do");
    --escapes_left_;
    const std::uint8_t* p = escapes_;
    escapes_ += stream_.model.value_bytes;
    if (stream_.model.value_bytes == 1) return *p;
    return stream_.model.value_bytes == 2 ? load<std::int16_t>(p) : load<std::int32_t>(p);
}

void ChunkReader::finish() {
    if (only_ >= 0) return;
    const Chunk& chunk = stream_.chunks[index_];
    const std::string where = "chunk " + std::to_string(index_) + ": ";
    if (lanes_.words != lanes_.end || escapes_left_ != 0) throw CodecError(where + "words or escapes are left over");
    for (std::size_t i = 0; i < lanes_.count; ++i)
        if (lanes_.x[i] != kLowest) throw CodecError(where + "a lane does not end where it began");
    const std::size_t bytes = std::size_t{stream_.model.value_bytes} * chunk.escapes;
    if (crc32c(lanes_.crc, lanes_.end, bytes) != chunk.crc) throw CodecError(where + "the sum of its symbols differs");
}

namespace {

// Reads all chunks in blocks: put(reader, first symbol, symbols of the block, count).
template <typename Put>
void each_block(const Stream& stream, const std::uint8_t* contexts, unsigned threads, Path path, const Put& put) {
    const Model& model = stream.model;
    const DecodeTables tables = decode_tables(model);
    const Steps steps = steps_for(path, tables, model.lanes());
    const std::size_t count = static_cast<std::size_t>((model.n + model.chunk - 1) / model.chunk);
    parallel(count, threads, [&](std::size_t index) {
        ChunkReader reader(stream, tables, index, steps);
        const std::size_t first = index * model.chunk;
        for (std::size_t at = 0; at < reader.size(); at += kBlock)
            put(reader, first + at, contexts ? contexts + first + at : nullptr, std::min(kBlock, reader.size() - at));
        reader.finish();
    });
}

}  // namespace

void decode_bytes(const Stream& stream, std::uint8_t* out, const std::uint8_t* contexts, unsigned threads, Path path) {
    each_block(stream, contexts, threads, path,
               [out](ChunkReader& reader, std::size_t first, const std::uint8_t* seen, std::size_t count) {
                   reader.read_bytes(out + first, seen, count);
               });
}

void decode_values(const Stream& stream, std::uint8_t* out, const std::uint8_t* contexts, unsigned threads, Path path) {
    const Model& model = stream.model;
    each_block(stream, contexts, threads, path,
               [out, &model](ChunkReader& reader, std::size_t first, const std::uint8_t* seen, std::size_t count) {
                   std::array<std::uint8_t, kBlock> symbols;
                   reader.read(symbols.data(), seen, count);
                   for (std::size_t i = 0; i < count; ++i) {
                       const bool escaped = symbols[i] >= model.escape_first;
                       const std::int32_t value = escaped ? reader.next_escape() : model.base + symbols[i];
                       std::memcpy(out + (first + i) * model.value_bytes, &value, model.value_bytes);
                   }
               });
}

void decode_range(const Stream& stream, std::uint64_t begin, std::uint64_t end, std::uint8_t* out,
                  const std::uint8_t* contexts, Path path) {
    const Model& model = stream.model;
    const DecodeTables tables = decode_tables(model);
    const Steps steps = steps_for(path, tables, model.lanes());
    for (std::size_t index = static_cast<std::size_t>(begin / model.chunk); begin < end; ++index) {
        ChunkReader reader(stream, tables, index, steps);
        std::vector<std::uint8_t> symbols(reader.size());
        const std::size_t first = index * model.chunk;
        reader.read_bytes(symbols.data(), contexts ? contexts + first : nullptr, symbols.size());
        reader.finish();
        const std::size_t skip = static_cast<std::size_t>(begin - first);
        const std::size_t take = std::min(symbols.size() - skip, static_cast<std::size_t>(end - begin));
        out = std::copy_n(symbols.data() + skip, take, out);
        begin += take;
    }
}

}  // namespace llmc
