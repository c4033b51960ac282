// The loops of grid.h, on some groups at a time: what a group has one of fills vectors with those of its neighbours.
// Included once per instruction set.
#include <algorithm>

#include "grid.h"
#include "grid_lanes.h"

namespace llmc {
namespace LLMC_ISA {

constexpr std::size_t kGroups = 16;                // in a batch ...
constexpr std::size_t kFloats = 1 << 14;           // ... and floats, so that they stay in the cache
constexpr std::size_t kBlock = 128;                // values rounded at once
constexpr std::size_t kParts = kSums / kWidth;     // vectors that hold the sums of an error

inline std::size_t padded(std::size_t n) { return (n + kSums - 1) / kSums * kSums; }

// Params of the groups of a batch.
struct Tried {
    alignas(64) float ratio[kGroups], scale[kGroups], inverse[kGroups], zero[kGroups], error[kGroups];
};

struct Batch {
    std::size_t count = 0, size = 0, width = 0;  // groups, values of each, and with the zeros behind them
    std::vector<float> values, importance;       // [count, width], [kinds, width]
    const float* weights[kGroups] = {};          // the importance of each group
    alignas(64) float low[kGroups] = {}, high[kGroups] = {};
    F sums[kCoarse][kGroups][kParts] = {};
};

// A row of float32, with zeros up to a whole number of kSums; zeros change neither range nor error. The range is of zero
// too: a group that misses it has a grid that does not.
template <typename T>
void take(const T* from, std::size_t n, float* to, F& low, F& high) {
    low = high = all(0);
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
}

template <typename T>
void take_groups(const IntRule& rule, const T* from, Batch& batch) {
    F low[kGroups] = {}, high[kGroups] = {};
    for (std::size_t g = 0; g < batch.count; ++g)
        take(from + g * batch.size, batch.size, &batch.values[g * batch.width], low[g], high[g]);
    for (std::size_t g = 0; g < kGroups; g += kWidth) {
        F least = folded(low + g, smaller), most = folded(high + g, larger);
        if (rule.symmetric) {
            most = larger(most, -least);
            least = -most;
        }
        store(batch.low + g, least);
        store(batch.high + g, most);
    }
}

inline F stored(const IntRule& rule, F scale) {
    scale = clamped(scale, all(rule.half ? 0x1p-24f : 1e-30f), all(rule.half ? 65280.0f : 1e30f));
    if (rule.half) scale = nearest_half(scale);
    return rule.brain ? nearest_brain(scale) : scale;
}

// The other params from the ratio.
inline void make_params(const IntRule& rule, const Batch& batch, Tried& tried) {
    const F most = all(rule.most());
    for (std::size_t g = 0; g < kGroups; g += kWidth) {
        const F ratio = load(tried.ratio + g), low = load(batch.low + g) * ratio, high = load(batch.high + g) * ratio;
        const F scale = stored(rule, (high - low) / most);
        store(tried.scale + g, scale);
        store(tried.inverse + g, 1.0f / scale);
        store(tried.zero + g, rule.symmetric ? all(rule.middle()) : rounded(clamped(-low / scale, all(0), most)));
    }
}

// Sums of squared errors of one group under `Tries` params: value i goes to sum i % kSums.
template <std::size_t Tries, bool Symmetric, bool Weighted>
void add_up(const IntRule& rule, Batch& batch, const Tried* tried, std::size_t g) {
    const F least = all(Symmetric ? -rule.middle() : 0), most = all(Symmetric ? rule.middle() - 1 : rule.most());
    const float *values = &batch.values[g * batch.width], *weights = batch.weights[g];
    for (std::size_t part = 0; part < kParts; ++part) {
        F sum[Tries], inverse[Tries], zero[Tries];
        for (std::size_t k = 0; k < Tries; ++k) {
            sum[k] = all(0);
            inverse[k] = all(tried[k].inverse[g]);
            zero[k] = all(tried[k].zero[g]);
        }
        for (std::size_t i = part * kWidth; i < batch.width; i += kSums) {
            const F x = load(values + i);
#pragma GCC unroll 8
            for (std::size_t k = 0; k < Tries; ++k) {
                F unit = x * inverse[k];
                if constexpr (!Symmetric) unit = unit + zero[k];
                F e = rounded(clamped(unit, least, most)) - unit;
                e = e * e;
                if constexpr (Weighted) e = e * load(weights + i);
                sum[k] = sum[k] + e;
            }
        }
        for (std::size_t k = 0; k < Tries; ++k) batch.sums[k][g][part] = sum[k];
    }
}

template <std::size_t Tries>
void errors(const IntRule& rule, Batch& batch, Tried* tried) {
    const bool weighted = !batch.importance.empty();
    const auto add = rule.symmetric ? (weighted ? &add_up<Tries, true, true> : &add_up<Tries, true, false>)
                                    : (weighted ? &add_up<Tries, false, true> : &add_up<Tries, false, false>);
    for (std::size_t g = 0; g < batch.count; ++g) add(rule, batch, tried, g);
    for (std::size_t k = 0; k < Tries; ++k) {
        for (std::size_t g = 0; g < kGroups; g += kWidth) {
            F one[kWidth];
            for (std::size_t i = 0; i < kWidth; ++i) {
                F sums[kParts];
                std::copy_n(batch.sums[k][g + i], kParts, sums);
                for (std::size_t half = kParts / 2; half; half /= 2)
                    for (std::size_t p = 0; p < half; ++p) sums[p] = sums[p] + sums[p + half];
                one[i] = sums[0];
            }
            const F scale = load(tried[k].scale + g), sum = folded(one, [](F a, F b) { return a + b; });
            store(tried[k].error + g, sum * (scale * scale));
        }
    }
}

// Replaces the params of groups for which `better(its error, the error so far)`.
template <typename Better>
void improve(Tried& best, const Tried& other, Better better) {
    for (std::size_t g = 0; g < kGroups; g += kWidth) {
        const auto mask = better(load(other.error + g), load(best.error + g));
        for (const auto field : {&Tried::ratio, &Tried::scale, &Tried::inverse, &Tried::zero, &Tried::error})
            store(best.*field + g, mask ? load(other.*field + g) : load(best.*field + g));
    }
}

// The first of the least errors; the first that is not a number counts as less than all.
template <std::size_t Tries>
Tried first_least(const Tried* tried) {
    Tried best = tried[0];
    for (std::size_t k = 1; k < Tries; ++k)
        improve(best, tried[k], [](F e, F least) { return ~(e >= least) & (least == least); });
    return best;
}

inline Tried search(const IntRule& rule, Batch& batch) {
    Tried coarse[kCoarse], fine[kFine];
    for (std::size_t k = 0; k < kCoarse; ++k) {
        std::fill_n(coarse[k].ratio, kGroups, rule.ratios[k]);
        make_params(rule, batch, coarse[k]);
    }
    errors<kCoarse>(rule, batch, coarse);
    Tried best = first_least<kCoarse>(coarse);
    for (std::size_t k = 0; k < kFine; ++k) {
        for (std::size_t g = 0; g < kGroups; ++g) fine[k].ratio[g] = best.ratio[g] + rule.offsets[k];
        make_params(rule, batch, fine[k]);
    }
    errors<kFine>(rule, batch, fine);
    improve(best, first_least<kFine>(fine), [](F e, F least) { return e < least; });
    return best;
}

struct Chosen {
    float scale, inverse, zero;
};

// Codes of whole chunks by the inverse of the scale. False where a quotient may lie on the other side of a tie: the two
// are within 1.5 * 2^-23 of each other, relatively.
inline bool round_by_inverse(const IntRule& rule, const float* values, std::size_t n, const Chosen& p,
                             std::uint8_t* codes, bool divide) {
    const F least = all(-p.zero), most = all(rule.most() - p.zero), inverse = all(p.inverse), scale = all(p.scale);
    const F bound = all(0.5f - (rule.most() + 1) * 0x1p-22f);
    const U zero = U{} + static_cast<std::uint32_t>(p.zero);
    F far = all(0);
    for (std::size_t i = 0; i < n; i += kWidth) {
        const F x = load(values + i);
        F unit = clamped(x * inverse, least, most), sum = unit + kMagic;
        const F away = magnitude(unit - (sum - kMagic));
        if (divide) {
            if (any_above(away, bound)) sum = clamped(x / scale, least, most) + kMagic;
        } else {
            far = larger(far, away);
        }
        const Byte code = __builtin_convertvector((U)sum + zero, Byte);
        std::memcpy(codes + i, &code, sizeof code);
    }
    return !any_above(far, bound);
}

inline void round_by_quotient(const IntRule& rule, const float* values, std::size_t n, const Chosen& p,
                              std::uint8_t* codes) {
    const F least = all(-p.zero), most = all(rule.most() - p.zero), scale = all(p.scale);
    const U zero = U{} + static_cast<std::uint32_t>(p.zero);
    for (std::size_t i = 0; i < n; i += kWidth) {
        const F sum = clamped(load(values + i) / scale, least, most) + kMagic;
        const Byte code = __builtin_convertvector((U)sum + zero, Byte);
        std::memcpy(codes + i, &code, sizeof code);
    }
}

inline void round_group(const IntRule& rule, const float* values, std::size_t n, const Chosen& p, std::uint8_t* codes) {
    const bool plain = p.scale >= 1e-30f && p.scale <= 1e30f;  // else the inverse may not be a normal number
    alignas(64) std::uint8_t block[kBlock];
    for (std::size_t i = 0; i < n; i += kBlock) {
        const std::size_t count = std::min(kBlock, n - i), whole = padded(count);
        std::uint8_t* to = whole == count ? codes + i : block;
        if (!plain)
            round_by_quotient(rule, values + i, whole, p, to);
        else if (!round_by_inverse(rule, values + i, whole, p, to, false))
            round_by_inverse(rule, values + i, whole, p, to, true);
        if (to == block) std::memcpy(codes + i, block, count);
    }
}

// Room for a batch, and the rows of importance, each with zeros up to a whole number of kSums.
inline Batch batch_for(const Groups& groups) {
    Batch batch;
    batch.size = groups.size;
    batch.width = padded(groups.size);
    batch.count = std::max<std::size_t>(1, std::min(kGroups, kFloats / batch.width));
    batch.values.resize(batch.count * batch.width);
    if (!groups.importance) return batch;
    batch.importance.resize(groups.kinds * batch.width);
    for (std::size_t r = 0; r < groups.kinds; ++r)
        std::copy_n(groups.importance + r * groups.size, groups.size, &batch.importance[r * batch.width]);
    return batch;
}

template <typename T>
void fit_as(const IntRule& rule, const Groups& groups, const Fitted& out) {
    Batch batch = batch_for(groups);
    const auto* from = reinterpret_cast<const T*>(groups.values);
    for (std::size_t at = 0; at < groups.count; at += batch.count) {
        batch.count = std::min(batch.count, groups.count - at);
        take_groups(rule, from + at * groups.size, batch);
        for (std::size_t g = 0; !batch.importance.empty() && g < batch.count; ++g)
            batch.weights[g] = &batch.importance[(at + g) % groups.kinds * batch.width];
        Tried best;
        if (rule.search) {
            best = search(rule, batch);
        } else {
            std::fill_n(best.ratio, kGroups, 1.0f);
            make_params(rule, batch, best);
        }
        for (std::size_t g = 0; g < batch.count; ++g) {
            const Chosen chosen{best.scale[g], best.inverse[g], best.zero[g]};
            out.scale[at + g] = chosen.scale;
            if (out.zero) out.zero[at + g] = static_cast<std::uint8_t>(chosen.zero);
            if (!out.codes) continue;
            round_group(rule, &batch.values[g * batch.width], groups.size, chosen, out.codes + (at + g) * groups.size);
        }
    }
}

template <typename T>
void round_as(const IntRule& rule, const Groups& groups, const Fitted& out) {
    std::vector<float> values(padded(groups.size));
    const auto* from = reinterpret_cast<const T*>(groups.values);
    F low, high;
    for (std::size_t g = 0; g < groups.count; ++g) {
        take(from + g * groups.size, groups.size, values.data(), low, high);
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
