// GPTQ's inner loop, see compressors/gptq.py: a lane is a row of the matrix. Included once per instruction set.
#include <algorithm>

#include "grid.h"
#include "grid_lanes.h"

namespace llmc {
namespace LLMC_ISA {

template <Number N>
void slab_as(const IntRule& rule, const Slab& slab) {
    const std::size_t rows = slab.rows;
    for (std::size_t r = 0; r < rows; r += kWidth) {
        const std::size_t n = std::min(kWidth, rows - r);
        F running[kSlab];
        for (std::size_t j = 0; j < slab.columns; ++j) running[j] = load_some(slab.running + j * rows + r, n);
        for (std::size_t j = 0; j < slab.columns; ++j) {
            const std::size_t at = j * rows + r, group = slab.group[j] * rows + r;
            const F scale = load_some(slab.scale + group, n);
            const F least = slab.least ? load_some(slab.least + group, n) : all(-rule.middle());
            const F level = rounded(clamped(running[j] / scale, least, least + rule.most()));
            const F value = as_stored<N>(level * scale), error = running[j] - value;
            store_some(slab.levels + at, level, n);
            store_some(slab.values + at, value, n);
            store_some(slab.errors + at, error, n);
            const float* unit = slab.unit + j * slab.columns;
            for (std::size_t i = j + 1; i < slab.columns; ++i) running[i] = running[i] - unit[i] * error;
        }
    }
}

inline void round_slab(const IntRule& rule, const Slab& slab) {
    if (slab.stored == Number::kFloat32) return slab_as<Number::kFloat32>(rule, slab);
    if (slab.stored == Number::kBfloat16) return slab_as<Number::kBfloat16>(rule, slab);
    slab_as<Number::kFloat16>(rule, slab);
}

}  // namespace LLMC_ISA
}  // namespace llmc
