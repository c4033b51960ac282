// How what a column lacks goes to the columns after it. Included once per instruction set.
#pragma once

#include <vector>

#include "grid_lanes.h"

namespace llmc {
namespace LLMC_ISA {

constexpr std::size_t kBlock = 16;                      // columns whose errors are taken from those behind them at once
constexpr std::size_t kHeld = kWidth == 16 ? 16 : 8;    // of them in registers

// Of a matrix [n, n].
inline std::vector<float> transposed(const float* from, std::size_t n) {
    std::vector<float> to(n * n);
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j) to[j * n + i] = from[i * n + j];
    return to;
}

// Takes the errors of column j, which stand where it stood, from `running` [columns, stride], rows [0, rows). The
// columns of its block get them now, the others when the block ends. `later` [columns, columns] has how much of an error
// a column gets, by that column first.
inline void carry_on(float* running, std::size_t stride, std::size_t rows, std::size_t columns, std::size_t j,
                     const float* later) {
    const std::size_t begin = j / kBlock * kBlock, end = std::min(begin + kBlock, columns);
    const float* errors = running + j * stride;
    for (std::size_t i = j + 1; i < end; ++i) {
        float* to = running + i * stride;
        const float share = later[i * columns + j];
        for (std::size_t r = 0; r < rows; ++r) to[r] = to[r] - share * errors[r];
    }
    if (j + 1 < end) return;
    for (std::size_t r = 0; r < rows && end < columns; r += kWidth) {
        const std::size_t n = std::min(kWidth, rows - r);
        for (std::size_t k = begin; k < end; k += kHeld) {
            F held[kHeld];
            for (std::size_t h = 0; h < kHeld; ++h) held[h] = load_some(running + (k + h) * stride + r, n);
            for (std::size_t i = end; i < columns; ++i) {
                const float* share = later + i * columns + k;
                F to = load_some(running + i * stride + r, n);
#pragma GCC unroll 16
                for (std::size_t h = 0; h < kHeld; ++h) to = to - share[h] * held[h];
                store_some(running + i * stride + r, to, n);
            }
        }
    }
}

}  // namespace LLMC_ISA
}  // namespace llmc
