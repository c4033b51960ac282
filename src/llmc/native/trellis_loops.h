// The search for the best way through the trellis (Viterbi), column by column. Included once per instruction set.
//
// First every weight finds its best level in each of four classes (parity of the state, level mod 2), many weights at a
// time; then the states are a vector, and a step takes the better of two predecessors for each.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "trellis.h"
#include "trellis_lanes.h"

namespace llmc {
namespace LLMC_ISA {

constexpr std::size_t kClasses = 4;  // 2 * parity + level mod 2

using Four = float __attribute__((vector_size(16)));
using Places = std::int32_t __attribute__((vector_size(16)));

inline Four picked(Four x, Places at) {
#if defined(__AVX__)
    return (Four)_mm_permutevar_ps((__m128)x, (__m128i)at);
#elif defined(__clang__)
    return Four{x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
#else
    return __builtin_shuffle(x, at);
#endif
}

inline Four interleaved(Four a, Four b, bool upper) {
#if defined(__SSE__)
    return (Four)(upper ? _mm_unpackhi_ps((__m128)a, (__m128)b) : _mm_unpacklo_ps((__m128)a, (__m128)b));
#else
    return upper ? Four{a[2], b[2], a[3], b[3]} : Four{a[0], b[0], a[1], b[1]};
#endif
}

inline unsigned bits_of(Places x) {
#if defined(__SSE__)
    return static_cast<unsigned>(_mm_movemask_ps((__m128)x));
#else
    return (x[0] & 1u) | (x[1] & 2u) | (x[2] & 4u) | (x[3] & 8u);
#endif
}

// What every row of a segment may become.
struct Choices {
    std::vector<float> cost;           // [rows, kClasses]
    std::vector<float> centre;         // [rows, kClasses] level + parity / 2
    std::vector<std::uint64_t> taken;  // [rows] which predecessor each state has

    explicit Choices(std::size_t rows) : cost(kClasses * rows), centre(kClasses * rows), taken(rows) {}
};

// Lanes of a and b in turn: the first or the second half of them.
template <std::size_t Upper, std::size_t... J>
F in_turn(F a, F b, std::index_sequence<J...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, (J / 2 + J % 2 * kWidth + Upper * kWidth / 2)...);
#else
    return __builtin_shuffle(a, b, U{(J / 2 + J % 2 * kWidth + Upper * kWidth / 2)...});
#endif
}

// Vectors of the four classes as rows of four.
inline void store_rows(float* to, const F* v) {
    constexpr auto lanes = std::make_index_sequence<kWidth>();
    const F even[2] = {in_turn<0>(v[0], v[2], lanes), in_turn<1>(v[0], v[2], lanes)};
    const F odd[2] = {in_turn<0>(v[1], v[3], lanes), in_turn<1>(v[1], v[3], lanes)};
    for (std::size_t i = 0; i < 2; ++i) {
        store(to + 2 * i * kWidth, in_turn<0>(even[i], odd[i], lanes));
        store(to + (2 * i + 1) * kWidth, in_turn<1>(even[i], odd[i], lanes));
    }
}

// |2 * centre|, at most the last entry of a table.
inline I place(F size, I last) {
    const I at = __builtin_convertvector(size, I);
    return at < last ? at : last;
}

// The value that a level stands for, in steps; `centre` is level + parity / 2.
inline F value_of(F centre, const float* shift) {
    const F size = magnitude(centre);
    const F moved = size - entry(shift, place(size + size, I{} + static_cast<std::int32_t>(kTrellisShifts - 1)));
    return (F)((U)moved | ((U)centre & 0x80000000u));
}

inline F cost_of(F x, F centre, const float* shift, const TrellisRate& rate) {
    const F size = magnitude(centre), error = x - value_of(centre, shift);
    const I at = place(size, I{} + static_cast<std::int32_t>(kTrellisRates - 1));
    const F beyond = size - __builtin_convertvector(at, F);
    const F bits = entry(rate.of, at) + (at < static_cast<std::int32_t>(kTrellisRates - 1) ? F{} : beyond) * rate.slope;
    return error * error + bits;
}

// For each class the nearest level, or the next one towards zero, which costs less. Rows [at, n) of whole vectors.
inline void choose(const TrellisSlab& slab, const float* running, float inverse, const TrellisRate* rate, std::size_t n,
                   std::size_t at, Choices& out) {
    for (std::size_t r = at; r < n; r += kWidth) {
        const F x = clamped(load(running + r) * inverse, all(-kTrellisMost), all(kTrellisMost));
        F cost[kClasses], centre[kClasses];
#pragma GCC unroll 4
        for (std::size_t c = 0; c < kClasses; ++c) {
            const float offset = 0.5f * static_cast<float>(c >> 1) + static_cast<float>(c & 1);
            const F near = rounded((x - offset) * 0.5f), first = near + near + offset;
            const F second = first > F{} ? first - 2.0f : first + 2.0f;
            const F a = cost_of(x, first, slab.shift, rate[c >> 1]), b = cost_of(x, second, slab.shift, rate[c >> 1]);
            cost[c] = b < a ? b : a;
            centre[c] = b < a ? second : first;
        }
        store_rows(out.cost.data() + kClasses * r, cost);
        store_rows(out.centre.data() + kClasses * r, centre);
    }
}

// Classes of both branches of all states, four states to a vector: [half of the states][branch][vector].
template <std::size_t States>
struct Wiring {
    static constexpr std::size_t kGroups = States / 8;
    Places of[2][2][kGroups];

    explicit Wiring(const Machine& machine) {
        for (std::size_t s = 0; s < States; ++s)
            for (unsigned u = 0; u < 2; ++u)
                of[s / (States / 2)][u][s % (States / 2) / 4][s % 4] =
                    static_cast<std::int32_t>(2 * machine.parity_of(s) + (u ^ machine.flip_of(s)));
    }
};

template <std::size_t States>
std::size_t forward(const Wiring<States>& wiring, std::size_t n, Choices& choices) {
    constexpr std::size_t G = States / 8;
    Four cost[2 * G];
    for (Four& each : cost) each = Four{1e30f, 1e30f, 1e30f, 1e30f};
    cost[0][0] = 0.0f;
    for (std::size_t r = 0; r < n; ++r) {
        Four by_class, next[2 * G];
        std::memcpy(&by_class, choices.cost.data() + kClasses * r, sizeof by_class);
        std::uint64_t taken = 0;
#pragma GCC unroll 8
        for (std::size_t g = 0; g < G; ++g) {
            const Four a0 = cost[g] + picked(by_class, wiring.of[0][0][g]);
            const Four b0 = cost[G + g] + picked(by_class, wiring.of[1][0][g]);
            const Four a1 = cost[g] + picked(by_class, wiring.of[0][1][g]);
            const Four b1 = cost[G + g] + picked(by_class, wiring.of[1][1][g]);
            const Places later0 = b0 < a0, later1 = b1 < a1;
            const Four even = later0 ? b0 : a0, odd = later1 ? b1 : a1;
            next[2 * g] = interleaved(even, odd, false);
            next[2 * g + 1] = interleaved(even, odd, true);
            taken |= static_cast<std::uint64_t>(bits_of(later0) | bits_of(later1) << 4) << 8 * g;
        }
#pragma GCC unroll 16
        for (std::size_t g = 0; g < 2 * G; ++g) cost[g] = next[g];
        choices.taken[r] = taken;
    }
    std::size_t best = 0;
    for (std::size_t s = 1; s < States; ++s)
        if (cost[s / 4][s % 4] < cost[best / 4][best % 4]) best = s;
    return best;
}

// Fewer than eight states: the definition.
inline std::size_t forward_few(const Machine& machine, std::size_t n, Choices& choices) {
    const std::size_t states = machine.states();
    std::array<float, 4> cost{0.0f, 1e30f, 1e30f, 1e30f}, next{};
    for (std::size_t r = 0; r < n; ++r) {
        const float* by_class = choices.cost.data() + kClasses * r;
        std::uint64_t taken = 0;
        for (std::size_t to = 0; to < states; ++to) {
            float best = 0;
            for (std::size_t half = 0; half < 2; ++half) {
                const std::size_t from = states == 1 ? 0 : to / 2 + half * states / 2;
                const unsigned u = states == 1 ? static_cast<unsigned>(half) : static_cast<unsigned>(to & 1);
                const float total = cost[from] + by_class[2 * machine.parity_of(from) + (u ^ machine.flip_of(from))];
                if (half == 0 || total < best) best = total;
                else continue;
                if (half == 1) taken |= std::uint64_t{1} << to;
            }
            next[to] = best;
        }
        cost = next;
        choices.taken[r] = taken;
    }
    return static_cast<std::size_t>(std::min_element(cost.begin(), cost.begin() + states) - cost.begin());
}

// `centres` of the best way that ends in `state`.
inline void backward(const Machine& machine, std::size_t state, std::size_t n, const Choices& choices, float* centres) {
    const std::size_t states = machine.states();
    std::array<std::uint8_t, 2 << kMaxTrellisBits> class_of{};  // [state, branch]
    for (std::size_t s = 0; s < states; ++s)
        for (unsigned u = 0; u < 2; ++u)
            class_of[2 * s + u] = static_cast<std::uint8_t>(2 * machine.parity_of(s) + (u ^ machine.flip_of(s)));
    for (std::size_t r = n; r-- > 0;) {
        std::size_t from, u = state & 1;
        if (states >= 8) {
            const std::size_t k = state / 2, bit = 8 * (k / 4) + 4 * u + k % 4;
            from = k + (choices.taken[r] >> bit & 1) * (states / 2);
        } else {
            const std::size_t taken = choices.taken[r] >> state & 1;
            from = states == 1 ? 0 : state / 2 + taken * (states / 2);
            if (states == 1) u = taken;
        }
        centres[r] = choices.centre[kClasses * r + class_of[2 * from + u]];
        state = from;
    }
}

inline std::size_t best_way(const Machine& machine, std::size_t n, Choices& choices) {
    switch (machine.bits) {
        case 3: return forward<8>(Wiring<8>(machine), n, choices);
        case 4: return forward<16>(Wiring<16>(machine), n, choices);
        case 5: return forward<32>(Wiring<32>(machine), n, choices);
        case 6: return forward<64>(Wiring<64>(machine), n, choices);
        default: return forward_few(machine, n, choices);
    }
}

// Codes and values of a column, and what these lack of the weights.
template <Number N>
void finish(const TrellisSlab& slab, std::size_t j, const float* running, const float* centres) {
    std::int16_t* codes = slab.codes + j * slab.rows;
    float *values = slab.values + j * slab.rows, *errors = slab.errors + j * slab.rows;
    for (std::size_t r = 0; r < slab.rows; ++r) codes[r] = static_cast<std::int16_t>(2.0f * centres[r]);
    for (std::size_t r = 0; r < slab.rows; r += kWidth) {
        const std::size_t n = std::min(kWidth, slab.rows - r);
        const F value = as_stored<N>(value_of(load(centres + r), slab.shift) * slab.step[j]);
        store_some(values + r, value, n);
        store_some(errors + r, load(running + r) - value, n);
    }
}

template <Number N>
void trellis_slab_as(const TrellisSlab& slab) {
    const std::size_t rows = slab.rows, segment = std::min(slab.segment, rows);
    Choices choices(segment + kWidth);  // whole vectors are read and written
    std::vector<float> running(slab.columns * rows + kWidth), centres(rows + kWidth);
    std::copy_n(slab.running, slab.columns * rows, running.data());
    for (std::size_t j = 0; j < slab.columns; ++j) {
        const float *column = running.data() + j * rows, *errors = slab.errors + j * rows, inverse = 1.0f / slab.step[j];
        for (std::size_t r = 0; r < rows; r += segment) {
            const std::size_t n = std::min(segment, rows - r);
            for (std::size_t at = 0; at < n;) {  // a run of rows of one class; what is written behind it is written again
                const std::uint8_t kind = slab.row_class[r + at];
                std::size_t end = at;
                while (end < n && slab.row_class[r + end] == kind) ++end;
                choose(slab, column + r, inverse, slab.rate + 2 * (slab.column_class[j] + kind), end, at, choices);
                at = end;
            }
            backward(slab.machine, best_way(slab.machine, n, choices), n, choices, centres.data() + r);
        }
        finish<N>(slab, j, column, centres.data());
        const float* unit = slab.unit + j * slab.columns;
        for (std::size_t i = j + 1; i < slab.columns; ++i) {
            float* later = running.data() + i * rows;
            for (std::size_t r = 0; r < rows; ++r) later[r] = later[r] - unit[i] * errors[r];
        }
    }
}

inline void trellis_slab(const TrellisSlab& slab) {
    if (slab.stored == Number::kFloat32) return trellis_slab_as<Number::kFloat32>(slab);
    if (slab.stored == Number::kBfloat16) return trellis_slab_as<Number::kBfloat16>(slab);
    trellis_slab_as<Number::kFloat16>(slab);
}

}  // namespace LLMC_ISA
}  // namespace llmc
