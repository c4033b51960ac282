// The part of llmc._native that formats/int_kernel.py calls: sizes are checked here.
#include "module_grids.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "grid.h"
#include "stream.h"

namespace nb = nanobind;

namespace llmc {
namespace {

template <typename T>
using Flat = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void want(bool holds, const char* message) {
    if (!holds) throw CodecError(message);
}

IntRule rule_of(unsigned bits, bool symmetric, bool half, bool brain) {
    want(bits >= 2 && bits <= 8, "an integer grid has 2 to 8 bits");
    IntRule rule;
    rule.bits = bits;
    rule.symmetric = symmetric;
    rule.half = half;
    rule.brain = brain;
    return rule;
}

Groups groups_of(const Flat<const std::uint8_t>& values, unsigned number, std::size_t size) {
    want(number <= 2, "numbers are float32, bfloat16 or float16");
    Groups groups;
    groups.values = values.data();
    groups.number = static_cast<Number>(number);
    groups.size = size;
    const std::size_t bytes = size * (groups.number == Number::kFloat32 ? 4 : 2);
    want(bytes > 0 && values.size() % bytes == 0, "the values do not fill their groups");
    groups.count = values.size() / bytes;
    return groups;
}

Fitted fitted_of(const Groups& groups, bool symmetric, const Flat<float>& scale,
                 const std::optional<Flat<std::uint8_t>>& zero, const std::optional<Flat<std::uint8_t>>& codes) {
    want(scale.size() == groups.count, "there is not one scale for each group");
    want(zero.has_value() != symmetric, "asymmetric grids have zero points, symmetric ones do not");
    want(symmetric || zero->size() == groups.count, "there is not one zero point for each group");
    want(!codes || codes->size() == groups.count * groups.size, "there is not one code for each value");
    return {scale.data(), zero ? zero->data() : nullptr, codes ? codes->data() : nullptr};
}

void fit(const Flat<const std::uint8_t>& values, unsigned number, std::size_t size,
         const std::optional<Flat<const float>>& importance, unsigned bits, bool symmetric, bool half, bool brain,
         const std::vector<float>& ratios, const std::vector<float>& offsets, const Flat<float>& scale,
         const std::optional<Flat<std::uint8_t>>& zero, const std::optional<Flat<std::uint8_t>>& codes,
         const std::string& path) {
    const GridLoops& loops = grid_loops(path);
    IntRule rule = rule_of(bits, symmetric, half, brain);
    Groups groups = groups_of(values, number, size);
    const Fitted out = fitted_of(groups, symmetric, scale, zero, codes);
    if (!ratios.empty()) {
        want(ratios.size() == kCoarse && offsets.size() == kFine, "a search tries 7 ratios and then 4");
        rule.search = true;
        std::copy(ratios.begin(), ratios.end(), rule.ratios);
        std::copy(offsets.begin(), offsets.end(), rule.offsets);
    }
    if (importance) {
        want(importance->size() > 0 && importance->size() % size == 0, "the importance does not fill its groups");
        groups.importance = importance->data();
        groups.kinds = importance->size() / size;
    }
    const nb::gil_scoped_release unlocked;
    loops.fit(rule, groups, out);
}

void round(const Flat<const std::uint8_t>& values, unsigned number, std::size_t size, unsigned bits,
           const Flat<float>& scale, const std::optional<Flat<std::uint8_t>>& zero, const Flat<std::uint8_t>& codes,
           const std::string& path) {
    const GridLoops& loops = grid_loops(path);
    const IntRule rule = rule_of(bits, !zero.has_value(), false, false);
    const Groups groups = groups_of(values, number, size);
    const Fitted out = fitted_of(groups, rule.symmetric, scale, zero, codes);
    const nb::gil_scoped_release unlocked;
    loops.round(rule, groups, out);
}

using Matrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Constant = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void slab(const Constant& running, const Constant& unit, const Constant& scale, const std::optional<Constant>& least,
          const std::vector<std::uint32_t>& group, unsigned bits, unsigned stored, const Matrix& levels,
          const Matrix& values, const Matrix& errors, const std::string& path) {
    const GridLoops& loops = grid_loops(path);
    const IntRule rule = rule_of(bits, !least.has_value(), false, false);
    Slab job;
    job.columns = running.shape(0);
    job.rows = running.shape(1);
    const auto shaped = [](const auto& matrix, std::size_t rows, std::size_t columns) {
        return matrix.shape(0) == rows && matrix.shape(1) == columns;
    };
    want(job.columns <= kSlab && group.size() == job.columns, "a slab has up to 16 columns, each with a group");
    want(shaped(unit, job.columns, job.columns), "the triangle is not of the size of the slab");
    for (const Matrix& out : {levels, values, errors})
        want(shaped(out, job.columns, job.rows), "an output is not of the size of the slab");
    want(scale.shape(1) == job.rows && (!least || shaped(*least, scale.shape(0), job.rows)),
         "there is not one scale for each row");
    want(std::all_of(group.begin(), group.end(), [&scale](std::uint32_t g) { return g < scale.shape(0); }),
         "there is no such group");
    want(stored <= 2, "numbers are float32, bfloat16 or float16");
    job.running = running.data();
    job.unit = unit.data();
    job.scale = scale.data();
    job.least = least ? least->data() : nullptr;
    job.group = group.data();
    job.stored = static_cast<Number>(stored);
    job.levels = levels.data();
    job.values = values.data();
    job.errors = errors.data();
    const nb::gil_scoped_release unlocked;
    loops.slab(rule, job);
}

std::pair<double, double> decode(const Flat<const std::uint8_t>& codes, const Flat<const float>& scale,
                                 const std::optional<Flat<const std::uint8_t>>& zero, unsigned bits,
                                 const Flat<const std::uint8_t>& weights, unsigned number, std::size_t size,
                                 unsigned stored, const Flat<std::uint8_t>& values, const std::string& path) {
    const GridLoops& loops = grid_loops(path);
    const IntRule rule = rule_of(bits, !zero.has_value(), false, false);
    const Groups groups = groups_of(weights, number, size);
    want(stored <= 2, "numbers are float32, bfloat16 or float16");
    want(scale.size() == groups.count && (!zero || zero->size() == groups.count),
         "there is not one scale for each group");
    want(codes.size() == groups.count * size, "there is not one code for each value");
    Decoded out;
    out.codes = codes.data();
    out.scale = scale.data();
    out.zero = zero ? zero->data() : nullptr;
    out.stored = static_cast<Number>(stored);
    out.values = values.data();
    want(values.size() == codes.size() * (out.stored == Number::kFloat32 ? 4 : 2),
         "an output is not of the size of the values");
    const nb::gil_scoped_release unlocked;
    const Energies sums = loops.decode(rule, groups, out);
    return {sums.signal, sums.noise};
}

}  // namespace

void define_grids(nb::module_& m) {
    m.def("grid_fit", &fit, nb::arg("values"), nb::arg("number"), nb::arg("size"), nb::arg("importance").none(),
          nb::arg("bits"), nb::arg("symmetric"), nb::arg("half"), nb::arg("brain"), nb::arg("ratios"),
          nb::arg("offsets"), nb::arg("scale"), nb::arg("zero").none(), nb::arg("codes").none(),
          nb::arg("path"));
    m.def("grid_round", &round, nb::arg("values"), nb::arg("number"), nb::arg("size"), nb::arg("bits"),
          nb::arg("scale"), nb::arg("zero").none(), nb::arg("codes"), nb::arg("path"));
    m.def("grid_slab", &slab, nb::arg("running"), nb::arg("unit"), nb::arg("scale"), nb::arg("least").none(),
          nb::arg("group"), nb::arg("bits"), nb::arg("stored"), nb::arg("levels"), nb::arg("values"),
          nb::arg("errors"), nb::arg("path"));
    m.def("grid_decode", &decode, nb::arg("codes"), nb::arg("scale"), nb::arg("zero").none(), nb::arg("bits"),
          nb::arg("weights"), nb::arg("number"), nb::arg("size"), nb::arg("stored"), nb::arg("values"),
          nb::arg("path"));
    m.def("grid_paths", &grid_paths);
}

}  // namespace llmc
