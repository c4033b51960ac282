// Values of codes beside the weights that they stand for. Included once per instruction set, after grid_slab.h.
#include <algorithm>
#include <numeric>

#include "grid.h"
#include "grid_lanes.h"

namespace llmc {
namespace LLMC_ISA {

using Bytes = std::uint8_t __attribute__((vector_size(LLMC_WIDTH)));
using Half = float __attribute__((vector_size(2 * LLMC_WIDTH)));
using D = double __attribute__((vector_size(4 * LLMC_WIDTH)));

constexpr std::size_t kHalves = kSums / (kWidth / 2);

// Float32 squares summed in float64: value i of a group goes to sum i % kSums.
struct Energy {
    D sums[kHalves] = {};

    void add(std::size_t at, F x) {
        Half halves[2];
        x = x * x;
        std::memcpy(halves, &x, sizeof x);
        for (std::size_t i = 0; i < 2; ++i) {
            D& sum = sums[at / (kWidth / 2) + i];
            sum = sum + __builtin_convertvector(halves[i], D);
        }
    }

    double total() const {
        double all[kSums];
        std::memcpy(all, sums, sizeof all);
        return std::accumulate(all, all + kSums, 0.0);
    }
};

template <Number N, typename T>
Energies decode_as(const IntRule& rule, const Groups& groups, const Decoded& out) {
    constexpr std::size_t width = N == Number::kFloat32 ? 4 : 2;
    Energy signal, noise;
    const auto* weights = reinterpret_cast<const T*>(groups.values);
    for (std::size_t g = 0; g < groups.count; ++g) {
        const float middle = out.zero ? static_cast<float>(out.zero[g]) : rule.middle();
        const F zero = all(middle), scale = all(out.scale[g]);
        const auto some = [&](std::size_t lane, const std::uint8_t* codes, const T* from, std::uint8_t* to) {
            Bytes bytes;
            std::memcpy(&bytes, codes, sizeof bytes);
            const F x = widen(from), value = as_stored<N>((__builtin_convertvector(bytes, F) - zero) * scale);
            signal.add(lane, x);
            noise.add(lane, x - value);
            store_as<N>(to, value);
        };
        const std::size_t begin = g * groups.size, whole = groups.size / kWidth * kWidth, rest = groups.size - whole;
        for (std::size_t i = 0; i < whole; i += kWidth)
            some(i % kSums, out.codes + begin + i, weights + begin + i, out.values + (begin + i) * width);
        if (rest) {
            std::uint8_t codes[kWidth], to[kWidth * width];
            T from[kWidth] = {};
            std::fill_n(codes, kWidth, static_cast<std::uint8_t>(middle));  // the code of zero
            std::copy_n(out.codes + begin + whole, rest, codes);
            std::copy_n(weights + begin + whole, rest, from);
            some(whole % kSums, codes, from, to);
            std::copy_n(to, rest * width, out.values + (begin + whole) * width);
        }
    }
    return {signal.total(), noise.total()};
}

template <Number N>
Energies decode_to(const IntRule& rule, const Groups& groups, const Decoded& out) {
    if (groups.number == Number::kFloat32) return decode_as<N, float>(rule, groups, out);
    if (groups.number == Number::kBfloat16) return decode_as<N, Bfloat16>(rule, groups, out);
    return decode_as<N, Float16>(rule, groups, out);
}

inline Energies decode(const IntRule& rule, const Groups& groups, const Decoded& out) {
    if (out.stored == Number::kFloat32) return decode_to<Number::kFloat32>(rule, groups, out);
    if (out.stored == Number::kBfloat16) return decode_to<Number::kBfloat16>(rule, groups, out);
    return decode_to<Number::kFloat16>(rule, groups, out);
}

}  // namespace LLMC_ISA
}  // namespace llmc
