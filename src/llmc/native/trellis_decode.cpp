#include "trellis_decode.h"

#include <algorithm>

#include "cpu.h"
#include "crc32c.h"
#include "decode.h"
#include "threads.h"

namespace llmc {
namespace {

std::uint32_t nearest_half(std::uint32_t bits) {
    const std::uint32_t sign = bits >> 16 & 0x8000u;
    float size;
    bits &= 0x7FFFFFFFu;
    std::memcpy(&size, &bits, 4);
    if (size >= 65520.0f) return sign | 0x7C00u;
    if (size >= 0x1p-14f) return sign | ((bits + 0xFFFu + (bits >> 13 & 1u)) - (112u << 23)) >> 13;
    const float scaled = size * 0x1p24f;  // subnormals count in units of 2^-24; the sum rounds half to even
    return sign | static_cast<std::uint32_t>((scaled + 0x1p23f) - 0x1p23f);
}

template <Form K>
void put(std::uint8_t* to, float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (K == Form::kBfloat16) bits = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    if (K == Form::kFloat16) bits = nearest_half(bits);
    if (K == Form::kFloat32) return store(to, bits);
    store(to, static_cast<std::uint16_t>(bits));
}

CodecError wrong(const TileLanes& lanes, const char* what) {
    return CodecError("chunk " + std::to_string(lanes.chunk) + ": " + what);
}

// One step. Without `Checked` the words have to suffice for all lanes.
template <Form K, bool Checked>
void step(const TrellisTables& t, TileLanes& lanes, const std::uint32_t* lut, std::uint8_t* symbols, std::uint8_t* to) {
    const std::uint8_t* words = lanes.words;
    for (std::size_t i = 0; i < lanes.live; ++i) {
        std::uint32_t x = lanes.x[i], state = lanes.state[i];
        const std::uint32_t parity = state >> kParityAt & 1u;
        const std::uint32_t entry = lut[lanes.table[i] + (parity << kTrellisBits | (x & 0xFFFu))], symbol = entry >> 24;
        x = ((entry >> 12 & 0xFFFu) + 1) * (x >> kTrellisBits) + (entry & 0xFFFu);
        const bool due = x < kLowest;
        if (Checked && due && words == lanes.end) throw wrong(lanes, "its words end early");
        if (!Checked || due) {  // no branch where none has to be
            const std::uint32_t refilled = x << 16 | load<std::uint16_t>(words);
            x = due ? refilled : x;
            words += due ? 2 : 0;
        }
        lanes.x[i] = x;
        const std::uint32_t branch = (symbol ^ state >> kFlipAt) & 1u;
        lanes.state[i] = (state >> 1 & kRegisters) ^ (t.branch & (0u - branch));
        symbols[i] = static_cast<std::uint8_t>(symbol);
        if constexpr (K == Form::kCodes)
            store(to + 2 * i, static_cast<std::int16_t>(2 * (t.head->base + static_cast<int>(symbol)) + static_cast<int>(parity)));
        else
            put<K>(to + i * bytes_of(K), t.moved[parity << 8 | symbol] * lanes.step[i]);
    }
    lanes.words = words;
}

int next_escape(TileLanes& lanes, std::uint32_t symbol) {
    if (lanes.escapes == lanes.escapes_end) throw wrong(lanes, "its escapes end early");
    const int level = load<std::int16_t>(lanes.escapes);
    lanes.escapes += 2;
    if ((static_cast<std::uint32_t>(level) & 1u) != (symbol & 1u) || level < kLeastLevel || level > kMostLevel)
        throw wrong(lanes, "an escape announces another level");
    return level;
}

template <Form K>
void take_escapes(const TrellisTables& t, TileLanes& lanes, const std::uint8_t* symbols, std::uint8_t* to) {
    for (std::size_t i = 0; i < lanes.live; ++i) {
        if (symbols[i] < kFirstTrellisEscape) continue;
        const int code = 2 * next_escape(lanes, symbols[i]) + static_cast<int>(lanes.state[i] >> (kParityAt - 1) & 1u);
        if constexpr (K == Form::kCodes)
            store(to + 2 * i, static_cast<std::int16_t>(code));
        else
            put<K>(to + i * bytes_of(K), t.value(code) * lanes.step[i]);
    }
}

template <Form K, bool Checked>
void step_of(const TrellisTables& t, TileLanes& lanes, const TileRows& rows, std::size_t at, Escapes escapes) {
    std::uint8_t *symbols = rows.symbols + at * lanes.live, *to = rows.values + 64 * bytes_of(K) * at;
    rows.ask_for(at, bytes_of(K) * lanes.live);
    step<K, Checked>(t, lanes, t.lut.data() + rows.row_table[at], symbols, to);
    if (any_trellis_escape(symbols, lanes.live)) escapes(t, lanes, symbols, to);
}

template <Form K>
std::size_t scalar_tile_steps(const TrellisTables& t, TileLanes& lanes, const TileRows& rows, std::size_t steps,
                              Escapes escapes) {
    std::size_t done = 0;
    for (; done < steps && static_cast<std::size_t>(lanes.end - lanes.words) >= 2 * lanes.live; ++done)
        step_of<K, false>(t, lanes, rows, done, escapes);
    return done;
}

// Too few lanes fill no register.
template <Form K>
TileSteps steps_for(Path path, std::size_t live) {
#ifdef LLMC_X86
    if (path >= Path::kAvx512 && live >= 8) return avx512_tile_steps(K, live);
    if (path >= Path::kAvx2 && live >= 4) return avx2_tile_steps(K, live);
#endif
    static_cast<void>(path), static_cast<void>(live);
    return &scalar_tile_steps<K>;
}

TileLanes first_lanes(const TrellisStream& stream, std::size_t index) {
    const Chunk& chunk = stream.chunks[index];
    const std::uint8_t* p = stream.data + chunk.offset;
    TileLanes lanes;
    lanes.chunk = index;
    for (std::size_t i = 0; i < stream.head.lanes(); ++i, p += 4) {
        lanes.x[i] = load<std::uint32_t>(p);
        if (lanes.x[i] < kLowest) throw wrong(lanes, "a lane state is out of range");
    }
    lanes.words = p;
    lanes.end = lanes.escapes = p + 2 * std::size_t{chunk.words};
    lanes.escapes_end = lanes.end + 2 * std::size_t{chunk.escapes};
    return lanes;
}

void finish(const TrellisStream& stream, const TileLanes& lanes) {
    if (lanes.words != lanes.end || lanes.escapes != lanes.escapes_end) throw wrong(lanes, "words or escapes are left over");
    for (std::size_t i = 0; i < stream.head.lanes(); ++i)
        if (lanes.x[i] != kLowest) throw wrong(lanes, "a lane does not end where it began");
    if (crc32c(lanes.crc, lanes.end, static_cast<std::size_t>(lanes.escapes_end - lanes.end)) != stream.chunks[lanes.chunk].crc)
        throw wrong(lanes, "the sum of its symbols differs");
}

// The columns of the next lanes.
void take_columns(const TrellisTables& t, TileLanes& lanes, std::size_t column, std::size_t live) {
    const TrellisHead& head = *t.head;
    lanes.live = live;
    lanes.table.fill(0);
    for (std::size_t i = 0; i < live; ++i) {
        lanes.table[i] = static_cast<std::uint32_t>(head.column_class[column + i] * head.parities() << kTrellisBits);
        lanes.step[i] = t.steps[column + i];
    }
}

template <Form K>
void spread(const TileRows& rows, std::size_t n, std::size_t live) {
    constexpr std::size_t whole = 64 * bytes_of(K);
    for (std::size_t r = 0; r < n; ++r) {
        std::uint8_t* to = rows.out + rows.order[r] * rows.stride;
        if (live == 64)
            std::memcpy(to, rows.values + r * whole, whole);
        else
            std::memcpy(to, rows.values + r * whole, live * bytes_of(K));
    }
}

// The next `n` rows of the columns of the lanes.
template <Form K>
void decode_rows(const TrellisTables& t, TileLanes& lanes, TileSteps steps, const TileRows& rows, std::size_t n) {
    for (std::size_t done = 0; done < n; ++done) {
        TileRows rest = rows;
        rest.order += done;
        rest.row_table += done;
        rest.symbols += done * lanes.live;
        rest.values += done * 64 * bytes_of(K);
        const std::size_t quick = steps(t, lanes, rest, n - done, &take_escapes<K>);
        done += quick;
        if (done < n) step_of<K, true>(t, lanes, rest, quick, &take_escapes<K>);
    }
    lanes.crc = crc32c(lanes.crc, rows.symbols, n * lanes.live);
    spread<K>(rows, n, lanes.live);
}

template <Form K>
void decode_tile(const TrellisStream& stream, const TrellisTables& t, std::size_t index, Path path, std::uint8_t* out) {
    constexpr std::size_t kRows = 64;
    std::array<std::uint8_t, 64 * (kRows + 1)> symbols;
    alignas(64) std::array<std::uint8_t, 64 * kRows * bytes_of(K)> values;
    const TrellisHead& head = stream.head;
    const Tile tile = tile_of(head, index);
    const std::size_t stride = head.columns * bytes_of(K);
    TileLanes lanes = first_lanes(stream, index);
    for (std::size_t column = tile.column; column < tile.column_end; column += head.lanes()) {
        take_columns(t, lanes, column, std::min(head.lanes(), tile.column_end - column));
        const auto before = lanes.x;
        std::uint8_t* to = out + column * bytes_of(K);
        const TileSteps steps = steps_for<K>(path, lanes.live);
        for (std::size_t row = tile.row, end; row < tile.row_end; row = end) {
            const std::size_t into = (row - tile.row) % head.segment;
            if (into == 0) lanes.state.fill(0);
            end = std::min({row + kRows, row - into + head.segment, tile.row_end});
            const TileRows rows{&t.order[row], &t.row_table[row], symbols.data(), values.data(), to, stride};
            decode_rows<K>(t, lanes, steps, rows, end - row);
        }
        std::copy(before.begin() + static_cast<std::ptrdiff_t>(lanes.live), before.end(),
                  lanes.x.begin() + static_cast<std::ptrdiff_t>(lanes.live));  // vector code moves them too
    }
    finish(stream, lanes);
}

template <Form K>
void decode_as(const TrellisStream& stream, std::uint8_t* out, unsigned threads, Path path) {
    const TrellisTables tables = trellis_tables(stream.head);
    const auto decode_one = [&](std::size_t index) { decode_tile<K>(stream, tables, index, path, out); };
    parallel(stream.chunks.size(), threads, decode_one);
}

}  // namespace

float TrellisTables::value(int code) const {
    const int size = code < 0 ? -code : code;
    const float half = static_cast<float>(size) * 0.5f;
    const float result = half - shifts[static_cast<std::size_t>(std::min<int>(size, kTrellisShifts - 1))];
    return code < 0 ? -result : result;
}

TrellisTables trellis_tables(const TrellisHead& head) {
    TrellisTables t;
    t.head = &head;
    t.lut.resize(head.tables.size() << kTrellisBits);
    for (std::size_t i = 0; i < head.tables.size(); ++i) {
        std::size_t at = i << kTrellisBits;
        for (std::uint32_t symbol = 0; symbol < 256; ++symbol)
            for (std::uint32_t j = 0, q = head.tables[i][symbol]; j < q; ++j) t.lut[at++] = symbol << 24 | (q - 1) << 12 | j;
    }
    t.branch = registers_of(head.machine);
    t.order = head.row_order();
    for (const std::uint32_t row : t.order)
        t.row_table.push_back(static_cast<std::uint32_t>(head.row_class[row] * head.parities() << kTrellisBits));
    t.steps = head.steps();
    for (std::size_t i = 0; i < head.shifts.size(); ++i) t.shifts[i] = static_cast<float>(head.shifts[i]) * 0x1p-8f;
    for (int i = 0; i < 512; ++i) t.moved[static_cast<std::size_t>(i)] = t.value(2 * (head.base + (i & 255)) + (i >> 8));
    return t;
}

void decode_trellis(const TrellisStream& stream, Form form, std::uint8_t* out, unsigned threads, const std::string& name) {
    // How fast gathers are is measured for streams of one table; a path that runs there runs here.
    const Path path = path_for(path_named(name), DecodeTables(), 64);
    switch (form) {
        case Form::kFloat32: return decode_as<Form::kFloat32>(stream, out, threads, path);
        case Form::kBfloat16: return decode_as<Form::kBfloat16>(stream, out, threads, path);
        case Form::kFloat16: return decode_as<Form::kFloat16>(stream, out, threads, path);
        case Form::kCodes: return decode_as<Form::kCodes>(stream, out, threads, path);
    }
}

}  // namespace llmc
