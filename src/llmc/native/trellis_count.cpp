// What a pass of the search teaches: how often levels occur, and how far weights lie below what they became.
#include <algorithm>
#include <cmath>

#include "trellis.h"

namespace llmc {

void count_levels(const TrellisPass& pass, std::int64_t* counts, std::size_t column_kinds, std::size_t levels) {
    const int reach = static_cast<int>(levels / 2);
    for (std::size_t j = 0; j < pass.columns; ++j) {
        const std::int16_t* codes = pass.codes + j * pass.codes_stride;
        for (std::size_t r = 0; r < pass.rows; ++r) {
            const std::size_t kind = pass.row_class[r] * column_kinds + pass.column_class[j];
            const int level = std::clamp(codes[r] >> 1, -reach, reach - 1) + reach;
            ++counts[(2 * kind + (codes[r] & 1)) * levels + static_cast<std::size_t>(level)];
        }
    }
}

void tally_errors(const TrellisPass& pass, const float* errors, const float* step, double* seen, double* lack) {
    for (std::size_t j = 0; j < pass.columns; ++j) {
        const std::int16_t* codes = pass.codes + j * pass.codes_stride;
        const float inverse = 1.0f / step[j];
        for (std::size_t r = 0; r < pass.rows; ++r) {
            const int size = std::abs(codes[r]);
            if (size >= static_cast<int>(kTrellisShifts) - 1) continue;
            const float error = errors[j * pass.rows + r] * inverse;
            seen[size] += 1.0;
            lack[size] += codes[r] < 0 ? error : -error;
        }
    }
}

}  // namespace llmc
