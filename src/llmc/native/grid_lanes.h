// Vectors of LLMC_WIDTH floats for grid_loops.h, in a namespace LLMC_ISA of their own. Every float operation is that of
// the definition: nothing here may be contracted or reordered.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "grid.h"

namespace llmc {
namespace LLMC_ISA {

constexpr std::size_t kWidth = LLMC_WIDTH;
using F = float __attribute__((vector_size(4 * LLMC_WIDTH)));
using U = std::uint32_t __attribute__((vector_size(4 * LLMC_WIDTH)));
using Short = std::uint16_t __attribute__((vector_size(2 * LLMC_WIDTH)));

constexpr float kMagic = 0x1.8p23f;  // added and taken away: round half to even, of what lies within +-2^22

struct Bfloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

inline F all(float x) { return x - F{}; }  // set element by element it becomes as many moves

inline F load(const float* from) {
    F out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

inline void store(float* to, F x) { std::memcpy(to, &x, sizeof x); }

inline U load_words(const void* from) {
    Short out;
    std::memcpy(&out, from, sizeof out);
    return __builtin_convertvector(out, U);
}

inline F widen(const float* from) { return load(from); }
inline F widen(const Bfloat16* from) { return (F)(load_words(from) << 16); }
inline F widen(const Float16* from) {
    const U bits = load_words(from);
    const F magnitude = (F)((bits & 0x7FFFu) << 13) * 0x1p112f;  // subnormals too: only the exponent's bias differs
    return (F)((U)magnitude | (bits & 0x8000u) << 16);
}

inline F smaller(F a, F b) { return a < b ? a : b; }
inline F larger(F a, F b) { return a > b ? a : b; }
inline F magnitude(F x) { return (F)((U)x & 0x7FFFFFFFu); }
inline F clamped(F x, F low, F high) { return smaller(larger(x, low), high); }
inline F rounded(F x) { return (x + kMagic) - kMagic; }

inline F nearest_half(F x) {  // x <= 65280
    const U bits = (U)x;
    const F normal = (F)((bits + 0xFFFu + (bits >> 13 & 1u)) & ~0x1FFFu), subnormal = (x + 0.5f) - 0.5f;
    return x < all(0x1p-14f) ? subnormal : normal;
}

inline F nearest_brain(F x) {
    const U bits = (U)x;
    return (F)((bits + 0x7FFFu + (bits >> 16 & 1u)) & ~0xFFFFu);
}

// What a number becomes when it is stored.
template <Number N>
F as_stored(F x) {
    if constexpr (N == Number::kBfloat16) return nearest_brain(x);
    if constexpr (N == Number::kFloat16) {
        const U sign = (U)x & 0x80000000u;
        const F size = (F)((U)x & 0x7FFFFFFFu), near = size < all(65520.0f) ? nearest_half(size) : all(HUGE_VALF);
        return (F)((U)near | sign);
    }
    return x;
}

inline U half_bits(F x) {  // of what as_stored made
    const U sign = ((U)x & 0x80000000u) >> 16;
    const F size = magnitude(x);
    const U normal = ((U)size - 0x38000000u) >> 13, subnormal = (U)(size + 0.5f) - 0x3F000000u;
    return sign | (size >= all(65536.0f) ? U{} + 0x7C00u : size < all(0x1p-14f) ? subnormal : normal);
}

// To memory, what as_stored made.
template <Number N>
void store_as(std::uint8_t* to, F x) {
    if constexpr (N == Number::kFloat32) {
        std::memcpy(to, &x, sizeof x);
    } else {
        const Short bits = __builtin_convertvector(N == Number::kBfloat16 ? (U)x >> 16 : half_bits(x), Short);
        std::memcpy(to, &bits, sizeof bits);
    }
}

inline F load_some(const float* from, std::size_t n) {
    if (n >= kWidth) return load(from);
    float some[kWidth] = {};
    std::copy_n(from, n, some);
    return load(some);
}

inline void store_some(float* to, F x, std::size_t n) {
    if (n >= kWidth) return store(to, x);
    float some[kWidth];
    store(some, x);
    std::copy_n(some, n, to);
}

// Of a and b, made of segments of 2 * Half lanes, the lower or the upper half of each segment.
template <std::size_t Half, std::size_t Upper, std::size_t... I>
F halves(F a, F b, std::index_sequence<I...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, (I / Half * 2 * Half + I % Half + Upper * Half)...);
#else
    return __builtin_shuffle(a, b, U{(I / Half * 2 * Half + I % Half + Upper * Half)...});
#endif
}

// Folds kWidth vectors, upper halves onto lower ones, until lane i of the first holds what vector i comes to.
template <std::size_t Half = kWidth / 2, typename Op>
F folded(F* v, Op op) {
    constexpr auto lanes = std::make_index_sequence<kWidth>();
    for (std::size_t i = 0; i < Half; ++i)
        v[i] = op(halves<Half, 0>(v[2 * i], v[2 * i + 1], lanes), halves<Half, 1>(v[2 * i], v[2 * i + 1], lanes));
    if constexpr (Half > 1) return folded<Half / 2>(v, op);
    return v[0];
}

}  // namespace LLMC_ISA
}  // namespace llmc
