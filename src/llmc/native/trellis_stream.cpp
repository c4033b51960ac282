#include "trellis_stream.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "crc32c.h"

namespace llmc {
namespace {

constexpr std::uint8_t kMagic[4] = {'l', 'T', 'Q', '1'};
constexpr float kRoots[kOctave] = {1.0f, 1.1892071150027210667f, 1.4142135623730950488f, 1.6817928305074290861f};

// Integers of few bits: the least of them, their width above it, then all of them, low bits first.
std::vector<std::uint8_t> read_plane(ByteCursor& bytes, std::size_t size, unsigned limit) {
    const unsigned least = bytes.byte(), width = bytes.byte();
    if (width > 8) throw CodecError("a plane of the stream has more than 8 bits");
    const std::uint8_t* packed = bytes.take((size * width + 7) / 8);
    std::vector<std::uint8_t> out(size);
    for (std::size_t i = 0; i < size; ++i) {
        unsigned value = 0;
        for (unsigned b = 0; b < width; ++b) {
            const std::size_t at = i * width + b;
            value |= (packed[at / 8] >> at % 8 & 1u) << b;
        }
        if (least + value >= limit) throw CodecError("a plane of the stream points outside");
        out[i] = static_cast<std::uint8_t>(least + value);
    }
    return out;
}

void write_plane(std::vector<std::uint8_t>& out, const std::vector<std::uint8_t>& plane) {
    const auto [least, most] = std::minmax_element(plane.begin(), plane.end());
    const unsigned low = plane.empty() ? 0 : *least, span = plane.empty() ? 0u : static_cast<unsigned>(*most) - low;
    unsigned width = 0;
    while (span >> width != 0) ++width;
    out.push_back(static_cast<std::uint8_t>(low));
    out.push_back(static_cast<std::uint8_t>(width));
    const std::size_t start = out.size();
    out.resize(start + (plane.size() * width + 7) / 8);
    for (std::size_t i = 0; i < plane.size() * width; ++i)
        if ((plane[i / width] - low) >> i % width & 1u) out[start + i / 8] |= static_cast<std::uint8_t>(1u << i % 8);
}

void read_fields(const std::uint8_t* p, TrellisHead& head) {
    if (!std::equal(kMagic, kMagic + 4, p)) throw CodecError("not a stream of a trellis, or of a version unknown here");
    head.machine.bits = p[4];
    head.machine.parity = p[5];
    head.machine.flip = p[6];
    head.lanes_log2 = p[7];
    head.rows = load<std::uint32_t>(p + 8);
    head.columns = load<std::uint32_t>(p + 12);
    head.segment = load<std::uint32_t>(p + 16);
    head.tile = load<std::uint32_t>(p + 20);
    head.step = load<float>(p + 24);
    head.base = load<std::int16_t>(p + 28);
    head.row_classes = p[30];
    head.column_classes = p[31];
    head.shifts.resize(p[32]);
    head.segments_log2 = p[33];
    if (p[34] != 0 || p[35] != 0) throw CodecError("a reserved byte of the stream is not zero");
    check(head);
}

void read_model(ByteCursor bytes, TrellisHead& head) {
    const std::uint8_t* shifts = bytes.take(head.shifts.size());
    std::copy_n(reinterpret_cast<const std::int8_t*>(shifts), head.shifts.size(), head.shifts.begin());
    head.step_code = read_plane(bytes, head.columns, 256);
    head.row_class.assign(head.rows, 0);
    head.column_class.assign(head.columns, 0);
    if (head.row_classes > 1) head.row_class = read_plane(bytes, head.rows, head.row_classes);
    if (head.column_classes > 1) head.column_class = read_plane(bytes, head.columns, head.column_classes);
    for (std::size_t i = 0; i < head.classes() * head.parities(); ++i) head.tables.push_back(read_table(bytes, kTrellisBits));
    if (!bytes.done()) throw CodecError("bytes follow the model of the stream");
    for (const float step : head.steps())
        if (!std::isfinite(step)) throw CodecError("a step of the stream is not finite");
}

std::size_t read_chunks(TrellisStream& stream, const std::uint8_t* entries, std::size_t offset) {
    const TrellisHead& head = stream.head;
    stream.chunks.resize(head.chunks());
    for (std::size_t i = 0; i < stream.chunks.size(); ++i, entries += kChunkEntryBytes) {
        Chunk& chunk = stream.chunks[i];
        chunk = {offset, load<std::uint32_t>(entries), load<std::uint32_t>(entries + 4), load<std::uint32_t>(entries + 8)};
        const std::size_t size = tile_of(head, i).size();
        if (chunk.words > size || chunk.escapes > size)
            throw CodecError("chunk " + std::to_string(i) + " claims more words or escapes than it has symbols");
        offset += 4 * head.lanes() + 2 * (std::size_t{chunk.words} + chunk.escapes);
    }
    return offset;
}

}  // namespace

void check(const TrellisHead& head) {
    const Machine& machine = head.machine;
    if (machine.bits > kMaxTrellisBits || machine.parity >> machine.bits != 0 || machine.flip >> machine.bits != 0)
        throw CodecError("the machine of the trellis is none of 1 to 64 states");
    if (head.segments_log2 > 26) throw CodecError("a tile has more than 2^26 segments");
    if (head.lanes_log2 < kMinLanesLog2 || head.lanes_log2 > 6) throw CodecError("lanes are not a power of two from 4 to 64");
    if (head.segment == 0 || head.tile == 0 || std::uint64_t{head.segment} * head.tile > kMaxTile >> head.segments_log2)
        throw CodecError("a tile of the trellis is empty, or larger than 2^26");
    if (!(head.step > 0.0f) || !std::isfinite(head.step)) throw CodecError("the step is no positive number");
    if (head.base % 2 != 0 || head.base < kLeastLevel || head.base > kMostLevel - 253) throw CodecError("the first level is odd, or too far out");
    if (head.row_classes - 1 >= kMaxTrellisClasses || head.column_classes - 1 >= kMaxTrellisClasses)
        throw CodecError("classes of rows or columns are not 1 to 8");
    if (head.shifts.size() >= kTrellisShifts) throw CodecError("there are more than 31 shifts");
}

std::vector<std::uint32_t> TrellisHead::row_order() const {
    std::vector<std::uint32_t> order(rows);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [this](auto a, auto b) { return row_class[a] < row_class[b]; });
    return order;
}

std::vector<float> TrellisHead::steps() const {
    std::vector<float> out;
    for (const std::uint8_t code : step_code)
        out.push_back(std::ldexp(step * kRoots[code % kOctave], static_cast<int>(code / kOctave)));
    return out;
}

Tile tile_of(const TrellisHead& head, std::size_t chunk) {
    const std::size_t row = chunk / head.column_tiles() * head.tile_rows(), column = chunk % head.column_tiles() * head.tile;
    return {row, std::min<std::size_t>(row + head.tile_rows(), head.rows), column,
            std::min<std::size_t>(column + head.tile, head.columns)};
}

TrellisStream parse_trellis(const std::uint8_t* data, std::size_t size, std::size_t rows, std::size_t columns) {
    TrellisStream stream;
    TrellisHead& head = stream.head;
    if (size < kTrellisHeadBytes + 4) throw CodecError("the stream is cut short: " + std::to_string(size) + " bytes");
    read_fields(data, head);
    if (head.rows != rows || head.columns != columns)
        throw CodecError("the stream holds " + std::to_string(head.rows) + " x " + std::to_string(head.columns) +
                         " weights, not " + std::to_string(rows) + " x " + std::to_string(columns));
    const std::size_t model = load<std::uint32_t>(data + 36), rest = size - kTrellisHeadBytes - 4;
    if (model > rest) throw CodecError("the model of the stream is longer than the stream");
    if (head.chunks() > (rest - model) / kChunkEntryBytes) throw CodecError("the chunk table is longer than the stream");
    const std::size_t summed = kTrellisHeadBytes + model + kChunkEntryBytes * head.chunks();
    if (load<std::uint32_t>(data + summed) != crc32c(0, data, summed)) throw CodecError("the head of the stream is damaged");
    read_model(ByteCursor(data + kTrellisHeadBytes, model), head);
    stream.data = data;
    const std::size_t end = read_chunks(stream, data + kTrellisHeadBytes + model, summed + 4);
    if (end != size)
        throw CodecError("the stream claims " + std::to_string(end) + " bytes and has " + std::to_string(size));
    return stream;
}

std::vector<std::uint8_t> head_of(const TrellisHead& head) {
    check(head);
    std::vector<std::uint8_t> out(kTrellisHeadBytes);
    std::copy(kMagic, kMagic + 4, out.begin());
    out[4] = static_cast<std::uint8_t>(head.machine.bits);
    out[5] = static_cast<std::uint8_t>(head.machine.parity);
    out[6] = static_cast<std::uint8_t>(head.machine.flip);
    out[7] = static_cast<std::uint8_t>(head.lanes_log2);
    store(out.data() + 8, head.rows);
    store(out.data() + 12, head.columns);
    store(out.data() + 16, head.segment);
    store(out.data() + 20, head.tile);
    store(out.data() + 24, head.step);
    store(out.data() + 28, head.base);
    out[30] = static_cast<std::uint8_t>(head.row_classes);
    out[31] = static_cast<std::uint8_t>(head.column_classes);
    out[32] = static_cast<std::uint8_t>(head.shifts.size());
    out[33] = static_cast<std::uint8_t>(head.segments_log2);
    for (const std::int8_t shift : head.shifts) out.push_back(static_cast<std::uint8_t>(shift));
    write_plane(out, head.step_code);
    if (head.row_classes > 1) write_plane(out, head.row_class);
    if (head.column_classes > 1) write_plane(out, head.column_class);
    for (const Frequencies& table : head.tables) write_table(out, table);
    store(out.data() + 36, static_cast<std::uint32_t>(out.size() - kTrellisHeadBytes));
    return out;
}

}  // namespace llmc
