#include "lane.h"

namespace llmc {
namespace {

template <Selector S, bool Packed>
std::size_t run(const DecodeTables& t, Lanes& lanes, std::uint8_t* out, const std::uint8_t* contexts,
                std::size_t steps) {
    const std::size_t count = lanes.count;
    std::size_t done = 0;
    const std::uint8_t* words = lanes.words;
    for (; done < steps && static_cast<std::size_t>(lanes.end - words) >= 2 * count; ++done) {
        for (std::size_t i = 0; i < count; ++i) {
            std::uint32_t x = lanes.x[i];
            const std::uint8_t context = S == Selector::kContext ? contexts[i] : std::uint8_t{0};
            out[i] = decode_one<S, Packed>(t, x, lanes.state[i], context);
            // Branch-free: whether a word is due is a coin toss.
            const bool due = x < kLowest;
            const std::uint32_t refilled = x << 16 | load<std::uint16_t>(words);
            lanes.x[i] = due ? refilled : x;
            words += due ? 2 : 0;
        }
        out += count;
        if constexpr (S == Selector::kContext) contexts += count;
    }
    lanes.words = words;
    return done;
}

template <Selector S>
Steps pick(const DecodeTables& t) {
    return t.packed ? &run<S, true> : &run<S, false>;
}

template <Selector S, bool Packed>
std::uint8_t careful_lane(const DecodeTables& t, Lanes& lanes, std::size_t i, std::uint8_t context) {
    const std::uint8_t symbol = decode_one<S, Packed>(t, lanes.x[i], lanes.state[i], context);
    if (lanes.x[i] >= kLowest) return symbol;
    if (lanes.end - lanes.words < 2) throw CodecError("the words end before the symbols do");
    lanes.x[i] = lanes.x[i] << 16 | load<std::uint16_t>(lanes.words);
    lanes.words += 2;
    return symbol;
}

template <Selector S>
std::uint8_t careful(const DecodeTables& t, Lanes& lanes, std::size_t i, std::uint8_t context) {
    return t.packed ? careful_lane<S, true>(t, lanes, i, context) : careful_lane<S, false>(t, lanes, i, context);
}

}  // namespace

Steps scalar_steps(const DecodeTables& t) {
    if (t.selector == Selector::kContext) return pick<Selector::kContext>(t);
    if (t.selector == Selector::kAutomaton) return pick<Selector::kAutomaton>(t);
    return pick<Selector::kOne>(t);
}

void careful_step(const DecodeTables& t, Lanes& lanes, std::uint8_t* out, const std::uint8_t* contexts,
                  std::size_t active) {
    for (std::size_t i = 0; i < active; ++i) {
        if (t.selector == Selector::kContext)
            out[i] = careful<Selector::kContext>(t, lanes, i, contexts[i]);
        else if (t.selector == Selector::kAutomaton)
            out[i] = careful<Selector::kAutomaton>(t, lanes, i, 0);
        else
            out[i] = careful<Selector::kOne>(t, lanes, i, 0);
    }
}

}  // namespace llmc
