// The part of llmc._native that formats/int_kernel.py calls: sizes are checked here.
#include "module_grids.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
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

}  // namespace

void add_grids(nb::module_& m) {
    m.def("grid_fit", &fit, nb::arg("values"), nb::arg("number"), nb::arg("size"), nb::arg("importance").none(),
          nb::arg("bits"), nb::arg("symmetric"), nb::arg("half"), nb::arg("brain"), nb::arg("ratios"),
          nb::arg("offsets"), nb::arg("scale"), nb::arg("zero").none(), nb::arg("codes").none(), nb::arg("path"));
    m.def("grid_round", &round, nb::arg("values"), nb::arg("number"), nb::arg("size"), nb::arg("bits"),
          nb::arg("scale"), nb::arg("zero").none(), nb::arg("codes"), nb::arg("path"));
    m.def("grid_paths", &grid_paths);
}

}  // namespace llmc
