// The search for the best way through the trellis (Viterbi), column by column. Included once per instruction set.
//
// First every weight finds its best level in each of four classes (parity of the state, level mod 2), many weights at a
// time; then the states are a vector, and a step takes the better of two predecessors for each.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "carry.h"
#include "trellis.h"
#include "trellis_lanes.h"

namespace llmc {
namespace LLMC_ISA {

constexpr std::size_t kClasses = 4;                     // 2 * parity + level mod 2
constexpr std::size_t kBeside = kWidth >= 8 ? 2 : 1;  // segments searched side by side: one would wait for itself

using Costs = float __attribute__((vector_size(16 * kBeside)));  // of four states of each segment
using Places = std::int32_t __attribute__((vector_size(16 * kBeside)));

inline Costs picked(Costs x, Places at) {  // of four each
#if LLMC_WIDTH >= 8
    return (Costs)_mm256_permutevar_ps((__m256)x, (__m256i)at);
#elif defined(__AVX__)
    return (Costs)_mm_permutevar_ps((__m128)x, (__m128i)at);
#elif defined(__clang__)
    return Costs{x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
#else
    return __builtin_shuffle(x, at);
#endif
}

inline Costs interleaved(Costs a, Costs b, bool upper) {
#if LLMC_WIDTH >= 8
    return (Costs)(upper ? _mm256_unpackhi_ps((__m256)a, (__m256)b) : _mm256_unpacklo_ps((__m256)a, (__m256)b));
#elif defined(__SSE__)
    return (Costs)(upper ? _mm_unpackhi_ps((__m128)a, (__m128)b) : _mm_unpacklo_ps((__m128)a, (__m128)b));
#else
    return upper ? Costs{a[2], b[2], a[3], b[3]} : Costs{a[0], b[0], a[1], b[1]};
#endif
}

inline unsigned bits_of(Places x) {
#if LLMC_WIDTH >= 8
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)x));
#elif defined(__SSE__)
    return static_cast<unsigned>(_mm_movemask_ps((__m128)x));
#else
    return (x[0] & 1u) | (x[1] & 2u) | (x[2] & 4u) | (x[3] & 8u);
#endif
}

// The same four of each segment.
inline Costs of_each(const float* const* from, std::size_t at) {
#if LLMC_WIDTH >= 8
    return (Costs)_mm256_set_m128(_mm_loadu_ps(from[1] + at), _mm_loadu_ps(from[0] + at));
#else
    Costs out;
    std::memcpy(&out, from[0] + at, sizeof out);
    return out;
#endif
}

// What every row of segments side by side may become.
struct Choices {
    std::size_t rows;
    std::vector<float> cost;          // [segment, rows, kClasses]
    std::vector<float> centre;        // [segment, rows, kClasses] level + parity / 2
    std::vector<std::uint8_t> taken;  // [rows, half of the states / 4, branch] which predecessor: a bit for each of four
                                      // states of each segment; of fewer than eight states [segment, rows]

    Choices(std::size_t rows, std::size_t states)
        : rows(rows),
          cost(kBeside * kClasses * rows),
          centre(kBeside * kClasses * rows),
          taken(rows * std::max(states / 4, kBeside)) {}

    std::size_t first(std::size_t segment) const { return kClasses * segment * rows; }
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
                   std::size_t at, float* costs, float* centres) {
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
        store_rows(costs + kClasses * r, cost);
        store_rows(centres + kClasses * r, centre);
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
                for (std::size_t i = 0; i < kBeside; ++i)
                    of[s / (States / 2)][u][s % (States / 2) / 4][4 * i + s % 4] =
                        static_cast<std::int32_t>(machine.class_of(s, u));
    }
};

// The state where each segment's best way ends, after the first `n` rows of it; n falls.
template <std::size_t States>
void forward(const Wiring<States>& wiring, const std::size_t* n, Choices& choices, std::size_t* ends) {
    constexpr std::size_t G = States / 8;
    const float* costs[kBeside];
    for (std::size_t i = 0; i < kBeside; ++i) costs[i] = choices.cost.data() + choices.first(i);
    Costs cost[2 * G];
    for (Costs& each : cost) each = Costs{} + 1e30f;
    for (std::size_t i = 0; i < kBeside; ++i) cost[0][4 * i] = 0.0f;
    std::size_t r = 0;
    for (std::size_t segment = kBeside; segment-- > 0;) {  // the last one ends first
        for (; r < n[segment]; ++r) {
            Costs next[2 * G];
            const Costs by_class = of_each(costs, kClasses * r);
            std::uint8_t* taken = choices.taken.data() + 2 * G * r;
#pragma GCC unroll 8
            for (std::size_t g = 0; g < G; ++g) {
                const Costs a0 = cost[g] + picked(by_class, wiring.of[0][0][g]);
                const Costs b0 = cost[G + g] + picked(by_class, wiring.of[1][0][g]);
                const Costs a1 = cost[g] + picked(by_class, wiring.of[0][1][g]);
                const Costs b1 = cost[G + g] + picked(by_class, wiring.of[1][1][g]);
                const Places later0 = b0 < a0, later1 = b1 < a1;
                const Costs even = later0 ? b0 : a0, odd = later1 ? b1 : a1;
                next[2 * g] = interleaved(even, odd, false);
                next[2 * g + 1] = interleaved(even, odd, true);
                taken[2 * g] = static_cast<std::uint8_t>(bits_of(later0));
                taken[2 * g + 1] = static_cast<std::uint8_t>(bits_of(later1));
            }
#pragma GCC unroll 16
            for (std::size_t g = 0; g < 2 * G; ++g) cost[g] = next[g];
        }
        std::size_t best = 0;
        const auto of = [&](std::size_t state) { return cost[state / 4][4 * segment + state % 4]; };
        for (std::size_t s = 1; s < States; ++s)
            if (of(s) < of(best)) best = s;
        ends[segment] = best;
    }
}

// Fewer than eight states: the definition.
inline std::size_t forward_few(const Machine& machine, std::size_t n, const float* costs, std::uint8_t* taken) {
    const std::size_t states = machine.states();
    std::array<float, 4> cost{0.0f, 1e30f, 1e30f, 1e30f}, next{};
    for (std::size_t r = 0; r < n; ++r) {
        const float* by_class = costs + kClasses * r;
        taken[r] = 0;
        for (std::size_t to = 0; to < states; ++to) {
            float best = 0;
            for (std::size_t half = 0; half < 2; ++half) {
                const std::size_t from = states == 1 ? 0 : to / 2 + half * states / 2;
                const unsigned u = states == 1 ? static_cast<unsigned>(half) : static_cast<unsigned>(to & 1);
                const float total = cost[from] + by_class[machine.class_of(from, u)];
                if (half == 0 || total < best) best = total;
                else continue;
                if (half == 1) taken[r] = static_cast<std::uint8_t>(taken[r] | 1u << to);
            }
            next[to] = best;
        }
        cost = next;
    }
    return static_cast<std::size_t>(std::min_element(cost.begin(), cost.begin() + states) - cost.begin());
}

// Classes of both branches of all states.
inline std::array<std::uint8_t, 2 << kMaxTrellisBits> branch_classes(const Machine& machine) {
    std::array<std::uint8_t, 2 << kMaxTrellisBits> out{};
    for (std::size_t s = 0; s < machine.states(); ++s)
        for (unsigned u = 0; u < 2; ++u)
            out[2 * s + u] = static_cast<std::uint8_t>(machine.class_of(s, u));
    return out;
}

// `centres` [segment, choices.rows] of the best ways, which end in `ends`.
template <std::size_t States>
void backward(const Machine& machine, const std::size_t* n, const std::size_t* ends, const Choices& choices,
              float* centres) {
    const auto class_of = branch_classes(machine);
    std::size_t r = n[0];
    std::uint32_t state[kBeside];
    for (std::size_t i = 0; i < kBeside; ++i) state[i] = static_cast<std::uint32_t>(ends[i]);
    const auto step = [&](std::size_t i) {
        const std::uint32_t u = state[i] & 1, k = state[i] / 2;
        const std::uint32_t taken = choices.taken[r * (States / 4) + k / 4 * 2 + u];
        const std::uint32_t from = k + (taken >> (4 * i + k % 4) & 1u) * (States / 2);
        centres[i * choices.rows + r] = choices.centre[choices.first(i) + kClasses * r + class_of[2 * from + u]];
        state[i] = from;
    };
    while (r > n[kBeside - 1]) --r, step(0);
    while (r > 0) {
        --r;
#pragma GCC unroll 2
        for (std::size_t i = 0; i < kBeside; ++i) step(i);
    }
}

inline void backward_few(const Machine& machine, std::size_t n, std::size_t state, const float* centre,
                         const std::uint8_t* taken, float* centres) {
    const auto class_of = branch_classes(machine);
    const std::size_t states = machine.states();
    for (std::size_t r = n; r-- > 0;) {
        const std::size_t later = taken[r] >> state & 1u, u = states == 1 ? later : state & 1;
        const std::size_t from = states == 1 ? 0 : state / 2 + later * (states / 2);
        centres[r] = centre[kClasses * r + class_of[2 * from + u]];
        state = from;
    }
}

// `centres` [segment, choices.rows] of the best ways through segments of `n` rows; n falls.
template <std::size_t States>
void best_ways_of(const Machine& machine, const std::size_t* n, Choices& choices, float* centres) {
    std::size_t ends[kBeside];
    forward(Wiring<States>(machine), n, choices, ends);
    backward<States>(machine, n, ends, choices, centres);
}

inline void best_ways(const Machine& machine, const std::size_t* n, Choices& choices, float* centres) {
    if (machine.bits == 3) return best_ways_of<8>(machine, n, choices, centres);
    if (machine.bits == 4) return best_ways_of<16>(machine, n, choices, centres);
    if (machine.bits == 5) return best_ways_of<32>(machine, n, choices, centres);
    if (machine.bits == 6) return best_ways_of<64>(machine, n, choices, centres);
    for (std::size_t i = 0; i < kBeside; ++i) {
        std::uint8_t* taken = choices.taken.data() + i * choices.rows;
        const std::size_t end = forward_few(machine, n[i], choices.cost.data() + choices.first(i), taken);
        backward_few(machine, n[i], end, choices.centre.data() + choices.first(i), taken, centres + i * choices.rows);
    }
}

// Codes and values of rows [at, at + n) of column j; what these lack of the weights takes their place.
template <Number N>
void finish(const TrellisSlab& slab, std::size_t j, std::size_t at, std::size_t n, const float* centres) {
    const std::size_t first = j * slab.rows + at;
    std::int16_t* codes = slab.codes + j * slab.codes_stride + at;
    for (std::size_t r = 0; r < n; ++r) codes[r] = static_cast<std::int16_t>(2.0f * centres[r]);
    for (std::size_t r = 0; r < n; r += kWidth) {
        const std::size_t some = std::min(kWidth, n - r);
        const F value = as_stored<N>(value_of(load(centres + r), slab.shift) * slab.step[j]);
        store_some(slab.values + first + r, value, some);
        store_some(slab.running + first + r, load_some(slab.running + first + r, some) - value, some);
    }
}

// The choices of rows [at, at + n) of column j: segment `i` of those side by side.
inline void choose_segment(const TrellisSlab& slab, std::size_t j, std::size_t at, std::size_t n, std::size_t i,
                           float* column, Choices& choices) {
    std::copy_n(slab.running + j * slab.rows + at, n, column);
    for (std::size_t from = 0; from < n;) {  // a run of rows of one class; what is written behind it is written again
        const std::uint8_t kind = slab.row_class[at + from];
        std::size_t end = from;
        while (end < n && slab.row_class[at + end] == kind) ++end;
        choose(slab, column, 1.0f / slab.step[j], slab.rate + 2 * (slab.column_class[j] + kind), end, from,
               choices.cost.data() + choices.first(i), choices.centre.data() + choices.first(i));
        from = end;
    }
}

// Segments by segments: what is worked on stays in the cache.
template <Number N>
void trellis_slab_as(const TrellisSlab& slab) {
    const std::size_t segment = std::min(slab.segment, slab.rows), padded = segment + kWidth;  // whole vectors are read
    Choices choices(padded, slab.machine.states());
    std::vector<float> column(padded), centres(kBeside * padded);
    const std::vector<float> later = transposed(slab.unit, slab.columns);
    for (std::size_t at = 0; at < slab.rows; at += kBeside * segment) {
        const std::size_t rows = std::min(kBeside * segment, slab.rows - at);
        std::size_t n[kBeside];
        for (std::size_t i = 0; i < kBeside; ++i) n[i] = std::min(segment, rows - std::min(rows, i * segment));
        for (std::size_t j = 0; j < slab.columns; ++j) {
            for (std::size_t i = 0; i < kBeside; ++i)
                choose_segment(slab, j, at + i * segment, n[i], i, column.data(), choices);
            best_ways(slab.machine, n, choices, centres.data());
            for (std::size_t i = 0; i < kBeside; ++i)
                finish<N>(slab, j, at + i * segment, n[i], centres.data() + i * padded);
            carry_on(slab.running + at, slab.rows, rows, slab.columns, j, later.data());
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
