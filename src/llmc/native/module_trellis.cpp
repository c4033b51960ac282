// The part of llmc._native that formats/trellis_kernel.py calls: sizes are checked here.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>

#include "module_grids.h"
#include "stream.h"
#include "trellis.h"

namespace nb = nanobind;

namespace llmc {
namespace {

template <typename T>
using Flat = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Table = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
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

void slab(unsigned bits, unsigned parity, unsigned flip, std::size_t segment, const Table<const float>& running,
          const Table<const float>& unit, const Flat<const float>& step, const Flat<const std::uint8_t>& column_class,
          const Flat<const std::uint8_t>& row_class, const Flat<const float>& shift, const Tables<const float>& rate,
          unsigned stored, const Table<std::int16_t>& levels, const Table<float>& values, const Table<float>& errors,
          const std::string& path) {
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
    want(shaped(levels) && shaped(values) && shaped(errors), "an output is not of the size of the columns");
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
    job.levels = levels.data();
    job.values = values.data();
    job.errors = errors.data();
    const nb::gil_scoped_release unlocked;
    loops.slab(job);
}

}  // namespace

void define_trellis(nb::module_& m) {
    m.def("trellis_slab", &slab, nb::arg("bits"), nb::arg("parity"), nb::arg("flip"), nb::arg("segment"),
          nb::arg("running"), nb::arg("unit"), nb::arg("step"), nb::arg("column_class"), nb::arg("row_class"),
          nb::arg("shift"), nb::arg("rate"), nb::arg("stored"), nb::arg("levels"), nb::arg("values"),
          nb::arg("errors"), nb::arg("path"));
}

}  // namespace llmc
