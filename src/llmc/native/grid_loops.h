// The loops of grid.h. Included once per instruction set, under LLMC_ISA, with vectors of LLMC_WIDTH floats. Every float
// operation is that of the definition in its order: nothing here may be contracted or reordered.
#include <algorithm>
#include <cstring>

#include "grid.h"

namespace llmc {
namespace LLMC_ISA {

constexpr std::size_t kWidth = LLMC_WIDTH;
using F = float __attribute__((vector_size(4 * LLMC_WIDTH)));
using U = std::uint32_t __attribute__((vector_size(4 * LLMC_WIDTH)));
using Short = std::uint16_t __attribute__((vector_size(2 * LLMC_WIDTH)));

constexpr float kMagic = 0x1.8p23f;  // added and taken away: round half to even, of what lies within +-2^22
constexpr std::size_t kBlock = 128;  // values rounded at once

struct Bfloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

inline F all(float x) {
    F out;
    for (std::size_t i = 0; i < kWidth; ++i) out[i] = x;
    return out;
}

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
    const F magnitude = (F)((bits & 0x7FFFu) << 13) * 0x1p112f;  // subnormals too: the exponent's bias is all that differs
    return (F)((U)magnitude | (bits & 0x8000u) << 16);
}

inline F smaller(F a, F b) { return a < b ? a : b; }
inline F larger(F a, F b) { return a > b ? a : b; }
inline F clamped(F x, F low, F high) { return smaller(larger(x, low), high); }
inline F rounded(F x) { return (x + kMagic) - kMagic; }

struct Range {
    float low = 0, high = 0;  // of zero too: a group that misses it has a grid that does not
};

// Values to float32, with zeros up to a whole number of kSums; zeros change neither range nor error.
template <typename T>
Range take(const T* from, std::size_t n, float* to) {
    F low = all(0), high = all(0);
    const auto chunk = [&](const T* at, float* out) {
        for (std::size_t j = 0; j < kSums; j += kWidth) {
            const F x = widen(at + j);
            low = smaller(low, x);
            high = larger(high, x);
            store(out + j, x);
        }
    };
    const std::size_t whole = n / kSums * kSums;
    for (std::size_t i = 0; i < whole; i += kSums) chunk(from + i, to + i);
    if (whole < n) {
        T rest[kSums] = {};
        std::copy(from + whole, from + n, rest);
        chunk(rest, to + whole);
    }
    Range range;
    for (std::size_t i = 0; i < kWidth; ++i) {
        range.low = std::min(range.low, low[i]);
        range.high = std::max(range.high, high[i]);
    }
    return range;
}

// Params of several clip ratios at once.
struct Tried {
    alignas(64) float ratio[kTries], scale[kTries], inverse[kTries], zero[kTries];
};

inline F nearest_half(F x) {  // x <= 65280
    const U bits = (U)x;
    const F normal = (F)((bits + 0xFFFu + (bits >> 13 & 1u)) & ~0x1FFFu), subnormal = (x + 0.5f) - 0.5f;
    return x < all(0x1p-14f) ? subnormal : normal;
}

inline F nearest_brain(F x) {
    const U bits = (U)x;
    return (F)((bits + 0x7FFFu + (bits >> 16 & 1u)) & ~0xFFFFu);
}

inline F stored(const IntRule& rule, F scale) {
    scale = clamped(scale, all(rule.half ? 0x1p-24f : 1e-30f), all(rule.half ? 65280.0f : 1e30f));
    if (rule.half) scale = nearest_half(scale);
    return rule.brain ? nearest_brain(scale) : scale;
}

// `tried.ratio` is set; `width` of them are looked at, in whole vectors.
inline void make_params(const IntRule& rule, Range range, std::size_t width, Tried& tried) {
    const F most = all(rule.most());
    for (std::size_t k = 0; k < width; k += kWidth) {
        const F ratio = load(tried.ratio + k), low = range.low * ratio, high = range.high * ratio;
        const F scale = stored(rule, (high - low) / most);
        store(tried.scale + k, scale);
        store(tried.inverse + k, 1.0f / scale);
        store(tried.zero + k, rule.symmetric ? all(rule.middle()) : rounded(clamped(-low / scale, all(0), most)));
    }
}

// Sixteen to one, halves onto halves.
inline float folded(const float* sums) {
    float at[kSums / 2];
    for (std::size_t i = 0; i < kSums / 2; ++i) at[i] = sums[i] + sums[i + kSums / 2];
    for (std::size_t half = kSums / 4; half; half /= 2)
        for (std::size_t i = 0; i < half; ++i) at[i] += at[i + half];
    return at[0];
}

// Squared errors of `Tries` params, each summed as the definition does: value i goes to sum i % 16.
template <std::size_t Tries, bool Symmetric, bool Weighted>
void errors(const IntRule& rule, const float* values, const float* importance, std::size_t n, const Tried& tried,
            float* error) {
    alignas(64) float sums[Tries][kSums];
    const F least = all(Symmetric ? -rule.middle() : 0), most = all(Symmetric ? rule.middle() - 1 : rule.most());
    for (std::size_t part = 0; part < kSums; part += kWidth) {
        F sum[Tries], inverse[Tries], zero[Tries];
        for (std::size_t k = 0; k < Tries; ++k) {
            sum[k] = all(0);
            inverse[k] = all(tried.inverse[k]);
            zero[k] = all(tried.zero[k]);
        }
        for (std::size_t i = part; i < n; i += kSums) {
            const F x = load(values + i);
#pragma GCC unroll 8
            for (std::size_t k = 0; k < Tries; ++k) {
                F unit = x * inverse[k];
                if constexpr (!Symmetric) unit = unit + zero[k];
                F e = rounded(clamped(unit, least, most)) - unit;
                e = e * e;
                if constexpr (Weighted) e = e * load(importance + i);
                sum[k] = sum[k] + e;
            }
        }
        for (std::size_t k = 0; k < Tries; ++k) store(sums[k] + part, sum[k]);
    }
    for (std::size_t k = 0; k < Tries; ++k) error[k] = folded(sums[k]) * (tried.scale[k] * tried.scale[k]);
}

template <std::size_t Tries>
void errors_of(const IntRule& rule, const float* values, const float* importance, std::size_t n, const Tried& tried,
               float* error) {
    const auto chosen = rule.symmetric ? (importance ? &errors<Tries, true, true> : &errors<Tries, true, false>)
                                       : (importance ? &errors<Tries, false, true> : &errors<Tries, false, false>);
    chosen(rule, values, importance, n, tried, error);
}

// The first of the least; the first that is not a number counts as less than all.
inline std::size_t first_least(const float* error, std::size_t count) {
    std::size_t best = 0;
    for (std::size_t k = 1; k < count && error[best] == error[best]; ++k)
        if (!(error[k] >= error[best])) best = k;
    return best;
}

struct Chosen {
    float scale, inverse, zero;
};

inline Chosen pick(const Tried& tried, std::size_t k) { return {tried.scale[k], tried.inverse[k], tried.zero[k]}; }

constexpr std::size_t kNeeded = kWidth < 8 ? 8 : kWidth;

inline Chosen search(const IntRule& rule, Range range, const float* values, const float* importance, std::size_t n) {
    Tried coarse, fine;
    float error[kCoarse], finer[kFine];
    std::copy(rule.ratios, rule.ratios + kTries, coarse.ratio);
    make_params(rule, range, kNeeded, coarse);
    errors_of<kCoarse>(rule, values, importance, n, coarse, error);
    const std::size_t best = first_least(error, kCoarse);
    for (std::size_t k = 0; k < kTries; ++k) fine.ratio[k] = coarse.ratio[best] + rule.offsets[k];
    make_params(rule, range, kNeeded, fine);
    errors_of<kFine>(rule, values, importance, n, fine, finer);
    const std::size_t near = first_least(finer, kFine);
    return finer[near] < error[best] ? pick(fine, near) : pick(coarse, best);
}

// Codes of whole chunks. A product with the inverse stands for the quotient unless it comes too near a tie: then false.
template <bool Divide>
bool round_block(const IntRule& rule, const float* values, std::size_t n, const Chosen& p, std::uint8_t* codes) {
    const F least = all(-p.zero), most = all(rule.most() - p.zero), by = all(Divide ? p.scale : p.inverse);
    const U zero = U{} + static_cast<std::uint32_t>(p.zero);
    alignas(64) std::uint32_t bytes[kBlock];
    F far = all(0);
    for (std::size_t i = 0; i < n; i += kWidth) {
        const F x = load(values + i), unit = clamped(Divide ? x / by : x * by, least, most), sum = unit + kMagic;
        const F away = unit - (sum - kMagic);
        far = larger(far, (F)((U)away & 0x7FFFFFFFu));
        const U code = (U)sum + zero;
        std::memcpy(bytes + i, &code, sizeof code);
    }
    for (std::size_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(bytes[i]);
    if constexpr (Divide) return true;
    float worst = 0;
    for (std::size_t i = 0; i < kWidth; ++i) worst = far[i] > worst ? far[i] : worst;
    return worst < 0.5f - (rule.most() + 1) * 0x1p-22f;  // both are within 1.5 * 2^-23 of each other, relatively
}

inline void round_group(const IntRule& rule, const float* values, std::size_t n, const Chosen& p, std::uint8_t* codes) {
    const bool plain = p.scale >= 1e-30f && p.scale <= 1e30f;  // else the inverse may not be a normal number
    alignas(64) std::uint8_t block[kBlock];
    for (std::size_t i = 0; i < n; i += kBlock) {
        const std::size_t count = std::min(kBlock, n - i), whole = (count + kSums - 1) / kSums * kSums;
        if (!plain || !round_block<false>(rule, values + i, whole, p, block))
            round_block<true>(rule, values + i, whole, p, block);
        std::memcpy(codes + i, block, count);
    }
}

inline std::size_t padded(std::size_t n) { return (n + kSums - 1) / kSums * kSums; }

// Rows of importance, each with zeros up to a whole number of kSums.
inline std::vector<float> padded_rows(const Groups& groups) {
    const std::size_t width = padded(groups.size);
    std::vector<float> out(groups.importance ? width * groups.kinds : 0);
    for (std::size_t r = 0; !out.empty() && r < groups.kinds; ++r)
        std::copy_n(groups.importance + r * groups.size, groups.size, out.data() + r * width);
    return out;
}

template <typename T>
void fit_as(const IntRule& rule, const Groups& groups, const Fitted& out) {
    const std::size_t n = groups.size, width = padded(n);
    const std::vector<float> importance = padded_rows(groups);
    std::vector<float> values(width);
    const auto* from = reinterpret_cast<const T*>(groups.values);
    for (std::size_t g = 0; g < groups.count; ++g) {
        Range range = take(from + g * n, n, values.data());
        if (rule.symmetric) {
            range.high = std::max(range.high, -range.low);
            range.low = -range.high;
        }
        Chosen chosen;
        if (rule.search) {
            const float* weight = importance.empty() ? nullptr : importance.data() + g % groups.kinds * width;
            chosen = search(rule, range, values.data(), weight, width);
        } else {
            Tried whole;
            std::fill_n(whole.ratio, kWidth, 1.0f);
            make_params(rule, range, 1, whole);
            chosen = pick(whole, 0);
        }
        out.scale[g] = chosen.scale;
        if (out.zero) out.zero[g] = static_cast<std::uint8_t>(chosen.zero);
        if (out.codes) round_group(rule, values.data(), n, chosen, out.codes + g * n);
    }
}

template <typename T>
void round_as(const IntRule& rule, const Groups& groups, const Fitted& out) {
    std::vector<float> values(padded(groups.size));
    const auto* from = reinterpret_cast<const T*>(groups.values);
    for (std::size_t g = 0; g < groups.count; ++g) {
        take(from + g * groups.size, groups.size, values.data());
        const float zero = out.zero ? static_cast<float>(out.zero[g]) : rule.middle();
        const Chosen chosen{out.scale[g], 1.0f / out.scale[g], zero};
        round_group(rule, values.data(), groups.size, chosen, out.codes + g * groups.size);
    }
}

inline void fit(const IntRule& rule, const Groups& groups, const Fitted& out) {
    if (groups.number == Number::kFloat32) return fit_as<float>(rule, groups, out);
    if (groups.number == Number::kBfloat16) return fit_as<Bfloat16>(rule, groups, out);
    fit_as<Float16>(rule, groups, out);
}

inline void round(const IntRule& rule, const Groups& groups, const Fitted& out) {
    if (groups.number == Number::kFloat32) return round_as<float>(rule, groups, out);
    if (groups.number == Number::kBfloat16) return round_as<Bfloat16>(rule, groups, out);
    round_as<Float16>(rule, groups, out);
}

}  // namespace LLMC_ISA
}  // namespace llmc
