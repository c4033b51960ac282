// The part of llmc._native that formats/trellis_kernel.py calls: sizes are checked here.
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "module_grids.h"
#include "stream.h"
#include "trellis.h"
#include "trellis_stream.h"

namespace nb = nanobind;

namespace llmc {
namespace {

template <typename T>
using Flat = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Part = nb::ndarray<T, nb::ndim<2>, nb::device::cpu>;
template <typename T>
using Tables = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void want(bool holds, const char* message) {
    if (!holds) throw CodecError(message);
}

Machine machine_of(unsigned bits, unsigned parity, unsigned flip) {
    want(bits <= kMaxTrellisBits && parity >> bits == 0 && flip >> bits == 0, "a trellis has 1 to 64 states");
    Machine machine;
    machine.bits = bits;
    machine.parity = parity;
    machine.flip = flip;
    return machine;
}

void slab(unsigned bits, unsigned parity, unsigned flip, std::size_t segment, const Table<float>& running,
          const Table<const float>& unit, const Flat<const float>& step, const Flat<const std::uint8_t>& column_class,
          const Flat<const std::uint8_t>& row_class, const Flat<const float>& shift, const Tables<const float>& rate,
          unsigned stored, const Part<std::int16_t>& codes, const Table<float>& values, const std::string& path) {
    const TrellisLoops& loops = trellis_loops(path);
    TrellisSlab job;
    job.machine = machine_of(bits, parity, flip);
    job.columns = running.shape(0);
    job.rows = running.shape(1);
    job.segment = segment;
    want(segment > 0, "a segment has rows");
    const auto shaped = [&job](const auto& matrix) {
        return matrix.shape(0) == job.columns && matrix.shape(1) == job.rows;
    };
    want(shaped(codes) && shaped(values), "an output is not of the size of the columns");
    want(codes.stride(1) == 1 && codes.stride(0) >= 0, "a column of codes is not in one piece");
    want(unit.shape(0) == job.columns && unit.shape(1) == job.columns, "the triangle is not of the size of the slab");
    want(step.size() == job.columns && column_class.size() == job.columns, "there is not one step for each column");
    want(row_class.size() == job.rows, "there is not one class for each row");
    want(shift.size() == kTrellisShifts && shift(kTrellisShifts - 1) == 0.0f, "shifts are not 31 and a zero");
    want(rate.shape(1) == 2 && rate.shape(2) * sizeof(float) == sizeof(TrellisRate), "rates are not [classes, 2, 33]");
    const auto most = [](const Flat<const std::uint8_t>& classes) {
        return classes.size() ? std::size_t{*std::max_element(classes.data(), classes.data() + classes.size())} : 0;
    };
    want(most(column_class) + most(row_class) < rate.shape(0), "there is no such class");
    want(stored <= 2, "numbers are float32, bfloat16 or float16");
    job.running = running.data();
    job.unit = unit.data();
    job.step = step.data();
    job.column_class = column_class.data();
    job.row_class = row_class.data();
    job.shift = shift.data();
    job.rate = reinterpret_cast<const TrellisRate*>(rate.data());
    job.stored = static_cast<Number>(stored);
    job.codes = codes.data();
    job.codes_stride = static_cast<std::size_t>(codes.stride(0));
    job.values = values.data();
    const nb::gil_scoped_release unlocked;
    loops.slab(job);
}

TrellisPass pass_of(const Part<const std::int16_t>& codes) {
    want(codes.stride(1) == 1 && codes.stride(0) >= 0, "a column of codes is not in one piece");
    TrellisPass pass;
    pass.codes = codes.data();
    pass.columns = codes.shape(0);
    pass.rows = codes.shape(1);
    pass.codes_stride = static_cast<std::size_t>(codes.stride(0));
    return pass;
}

void count(const Part<const std::int16_t>& codes, const Flat<const std::uint8_t>& row_class,
           const Flat<const std::uint8_t>& column_class, const nb::ndarray<std::int64_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>& counts) {
    TrellisPass pass = pass_of(codes);
    want(row_class.size() == pass.rows && column_class.size() == pass.columns, "there is not one class for each row and column");
    const auto below = [](const Flat<const std::uint8_t>& classes, std::size_t kinds) {
        return std::all_of(classes.data(), classes.data() + classes.size(), [kinds](std::uint8_t c) { return c < kinds; });
    };
    want(below(row_class, counts.shape(0)) && below(column_class, counts.shape(1)), "there is no such class");
    want(counts.shape(2) == 2 && counts.shape(3) >= 2 && counts.shape(3) % 2 == 0, "counts are not of two parities");
    pass.row_class = row_class.data();
    pass.column_class = column_class.data();
    const nb::gil_scoped_release unlocked;
    count_levels(pass, counts.data(), counts.shape(1), counts.shape(3));
}

void tally(const Part<const std::int16_t>& codes, const Table<const float>& errors, const Flat<const float>& step,
           const Flat<double>& seen, const Flat<double>& lack) {
    const TrellisPass pass = pass_of(codes);
    want(errors.shape(0) == pass.columns && errors.shape(1) == pass.rows, "errors are not of the size of the codes");
    want(step.size() == pass.columns, "there is not one step for each column");
    want(seen.size() == kTrellisShifts - 1 && lack.size() == kTrellisShifts - 1, "there are 31 magnitudes");
    const nb::gil_scoped_release unlocked;
    tally_errors(pass, errors.data(), step.data(), seen.data(), lack.data());
}

TrellisHead head_of(unsigned bits, unsigned parity, unsigned flip, unsigned lanes_log2, unsigned segment,
                    unsigned segments_log2, unsigned tile, float step, int base, const Flat<const std::uint8_t>& step_code,
                    const Flat<const std::uint8_t>& row_class, const Flat<const std::uint8_t>& column_class,
                    const Flat<const std::int8_t>& shifts) {
    const auto copied = [](const auto& plane) { return std::vector(plane.data(), plane.data() + plane.size()); };
    const auto classes = [](const std::vector<std::uint8_t>& plane) {
        return plane.empty() ? 1u : *std::max_element(plane.begin(), plane.end()) + 1u;
    };
    TrellisHead head;
    head.machine = machine_of(bits, parity, flip);
    head.lanes_log2 = lanes_log2;
    head.segment = segment;
    head.segments_log2 = segments_log2;
    head.tile = tile;
    head.step = step;
    want(base >= -32768 && base <= 32767, "the first level is too far out");
    head.base = static_cast<std::int16_t>(base);
    head.step_code = copied(step_code);
    head.row_class = copied(row_class);
    head.column_class = copied(column_class);
    head.shifts = copied(shifts);
    head.row_classes = classes(head.row_class);
    head.column_classes = classes(head.column_class);
    head.rows = static_cast<std::uint32_t>(row_class.size());
    head.columns = static_cast<std::uint32_t>(column_class.size());
    want(head.step_code.size() == head.columns, "there is not one step for each column");
    return head;
}

nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>> pack(
    const Table<const std::int16_t>& codes, unsigned bits, unsigned parity, unsigned flip, unsigned lanes_log2,
    unsigned segment, unsigned segments_log2, unsigned tile, float step, int base,
    const Flat<const std::uint8_t>& step_code, const Flat<const std::uint8_t>& row_class, const Flat<const std::uint8_t>& column_class,
    const Flat<const std::int8_t>& shifts, unsigned threads) {
    TrellisHead head = head_of(bits, parity, flip, lanes_log2, segment, segments_log2, tile, step, base, step_code,
                               row_class, column_class, shifts);
    want(codes.shape(0) == head.rows && codes.shape(1) == head.columns, "the codes are not [rows, columns]");
    auto* made = new std::vector<std::uint8_t>;
    const nb::capsule owner(made, [](void* p) noexcept { delete static_cast<std::vector<std::uint8_t>*>(p); });
    {
        const nb::gil_scoped_release unlocked;
        *made = encode_trellis(std::move(head), codes.data(), threads);
    }
    return {made->data(), {made->size()}, owner};
}

void unpack(const Flat<const std::uint8_t>& stream, std::size_t rows, std::size_t columns, unsigned stored,
            const Flat<std::uint8_t>& out, unsigned threads, const std::string& path) {
    want(stored <= 2, "numbers are float32, bfloat16 or float16");
    want(out.size() == rows * columns * (stored == 0 ? 4 : 2), "the place is not of the size of the values");
    const nb::gil_scoped_release unlocked;
    const TrellisStream parsed = parse_trellis(stream.data(), stream.size(), rows, columns);
    decode_trellis(parsed, static_cast<Form>(stored), out.data(), threads, path);
}

void unpack_codes(const Flat<const std::uint8_t>& stream, const Table<std::int16_t>& codes, unsigned threads,
                  const std::string& path) {
    const nb::gil_scoped_release unlocked;
    const TrellisStream parsed = parse_trellis(stream.data(), stream.size(), codes.shape(0), codes.shape(1));
    decode_trellis(parsed, Form::kCodes, reinterpret_cast<std::uint8_t*>(codes.data()), threads, path);
}

nb::dict describe(const Flat<const std::uint8_t>& stream, std::size_t rows, std::size_t columns) {
    const TrellisStream parsed = parse_trellis(stream.data(), stream.size(), rows, columns);
    const TrellisHead& head = parsed.head;
    nb::dict out;
    out["machine"] = nb::make_tuple(head.machine.bits, head.machine.parity, head.machine.flip);
    out["lanes"] = head.lanes();
    out["segment"] = head.segment;
    out["segments"] = head.tile_rows() / head.segment;
    out["tile"] = head.tile;
    out["step"] = head.step;
    out["base"] = head.base;
    out["shifts"] = head.shifts;
    out["step_code"] = head.step_code;
    out["row_class"] = head.row_class;
    out["column_class"] = head.column_class;
    nb::list tables, chunks;
    for (const Frequencies& table : head.tables) tables.append(nb::cast(table));
    for (const Chunk& chunk : parsed.chunks) chunks.append(nb::make_tuple(chunk.offset, chunk.words, chunk.escapes));
    out["tables"] = tables;
    out["chunks"] = chunks;
    return out;
}

}  // namespace

void define_trellis(nb::module_& m) {
    m.def("trellis_slab", &slab, nb::arg("bits"), nb::arg("parity"), nb::arg("flip"), nb::arg("segment"),
          nb::arg("running").noconvert(), nb::arg("unit"), nb::arg("step"), nb::arg("column_class"), nb::arg("row_class"),
          nb::arg("shift"), nb::arg("rate"), nb::arg("stored"), nb::arg("codes").noconvert(),
          nb::arg("values").noconvert(), nb::arg("path"));
    m.def("trellis_count", &count, nb::arg("codes"), nb::arg("row_class"), nb::arg("column_class"),
          nb::arg("counts").noconvert());
    m.def("trellis_tally", &tally, nb::arg("codes"), nb::arg("errors"), nb::arg("step"), nb::arg("seen").noconvert(),
          nb::arg("lack").noconvert());
    m.def("trellis_encode", &pack, nb::arg("codes"), nb::arg("bits"), nb::arg("parity"), nb::arg("flip"),
          nb::arg("lanes_log2"), nb::arg("segment"), nb::arg("segments_log2"), nb::arg("tile"), nb::arg("step"), nb::arg("base"),
          nb::arg("step_code"), nb::arg("row_class"), nb::arg("column_class"), nb::arg("shifts"), nb::arg("threads"));
    m.def("trellis_decode", &unpack, nb::arg("stream"), nb::arg("rows"), nb::arg("columns"), nb::arg("stored"),
          nb::arg("out"), nb::arg("threads"), nb::arg("path"));
    m.def("trellis_codes", &unpack_codes, nb::arg("stream"), nb::arg("codes"), nb::arg("threads"), nb::arg("path"));
    m.def("trellis_describe", &describe, nb::arg("stream"), nb::arg("rows"), nb::arg("columns"));
}

}  // namespace llmc
