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

// Sums of cubes of errors of one group under `Tries` params from `first` on: value i goes to sum i % kSums.
template <std::size_t Tries, bool Symmetric, bool Weighted>
void add_up(const IntRule& rule, Batch& batch, const Tried* tried, std::size_t first, std::size_t g) {
    const F least = all(Symmetric ? -rule.middle() : 0), most = all(Symmetric ? rule.middle() - 1 : rule.most());
    const float *values = &batch.values[g * batch.width], *weights = batch.weights[g];
    for (std::size_t part = 0; part < kParts; ++part) {
        F sum[Tries], inverse[Tries], zero[Tries];
        for (std::size_t k = 0; k < Tries; ++k) {
            sum[k] = all(0);
            inverse[k] = all(tried[first + k].inverse[g]);
            zero[k] = all(tried[first + k].zero[g]);
        }
        for (std::size_t i = part * kWidth; i < batch.width; i += kSums) {
            const F x = load(values + i);
#pragma GCC unroll 8
            for (std::size_t k = 0; k < Tries; ++k) {
                F unit = x * inverse[k];
                if constexpr (!Symmetric) unit = unit + zero[k];
                F e = rounded(clamped(unit, least, most)) - unit;
                e = e * e * magnitude(e);
                if constexpr (Weighted) e = e * load(weights + i);
                sum[k] = sum[k] + e;
            }
        }
        for (std::size_t k = 0; k < Tries; ++k) batch.sums[first + k][g][part] = sum[k];
    }
}

// By the flags of add_up.
template <std::size_t Tries, bool... Flags>
auto adder() {
    return &add_up<Tries, Flags...>;
}
template <std::size_t Tries, bool... Flags, typename... Rest>
auto adder(bool flag, Rest... rest) {
    return flag ? adder<Tries, Flags..., true>(rest...) : adder<Tries, Flags..., false>(rest...);
}

template <std::size_t Tries>
void add_up_all(const IntRule& rule, Batch& batch, const Tried* tried, std::size_t first) {
    const auto add = adder<Tries>(rule.symmetric, !batch.importance.empty());
    for (std::size_t g = 0; g < batch.count; ++g) add(rule, batch, tried, first, g);
}

template <std::size_t Tries>
void errors(const IntRule& rule, Batch& batch, Tried* tried) {
    constexpr std::size_t at_once = kWidth == 16 ? Tries : (Tries + 1) / 2;  // as many as there are registers for
    add_up_all<at_once>(rule, batch, tried, 0);
    if constexpr (at_once < Tries) add_up_all<Tries - at_once>(rule, batch, tried, at_once);
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
            store(tried[k].error + g, sum * (scale * scale * scale));
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

// Codes from the low bits of sums with kMagic.
inline void narrow(const float* sums, std::size_t n, float zero, std::uint8_t* codes) {
    const auto add = static_cast<std::uint32_t>(zero);
    for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, sums + i, sizeof bits);
        codes[i] = static_cast<std::uint8_t>(bits + add);
    }
}

inline void round_group(const IntRule& rule, const float* values, std::size_t n, float scale, float zero,
                        std::uint8_t* codes) {
    const F least = all(-zero), most = all(rule.most() - zero), by = all(scale);
    alignas(64) float sums[kBlock];
    for (std::size_t i = 0; i < n; i += kBlock) {
        const std::size_t count = std::min(kBlock, n - i), whole = padded(count);
        for (std::size_t j = 0; j < whole; j += kWidth)
            store(sums + j, clamped(load(values + i + j) / by, least, most) + kMagic);
        narrow(sums, count, zero, codes + i);
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
            const float scale = best.scale[g], zero = best.zero[g], *values = &batch.values[g * batch.width];
            out.scale[at + g] = scale;
            if (out.zero) out.zero[at + g] = static_cast<std::uint8_t>(zero);
            if (out.codes) round_group(rule, values, groups.size, scale, zero, out.codes + (at + g) * groups.size);
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
        round_group(rule, values.data(), groups.size, out.scale[g], zero, out.codes + g * groups.size);
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
