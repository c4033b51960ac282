// What the loops of bitmaps.h share. Included once per instruction set, under LLMC_ISA.
#include "bitmaps.h"

namespace llmc {
namespace LLMC_ISA {

// The places of the ones of a mask, from `first` on. Few ones, how many being anybody's guess, cost no branch.
inline std::size_t note(std::uint64_t mask, std::size_t first, std::uint16_t* places, std::size_t count) {
    constexpr std::uint64_t kTop = std::uint64_t{1} << 63;
    const auto many = static_cast<std::size_t>(__builtin_popcountll(mask));
    std::uint16_t* at = places + count;
    for (std::size_t k = 0; k < kNoted; ++k, mask &= mask - 1)
        at[k] = static_cast<std::uint16_t>(first + static_cast<unsigned>(__builtin_ctzll(mask | kTop)));
    for (at += kNoted; mask; mask &= mask - 1)
        *at++ = static_cast<std::uint16_t>(first + static_cast<unsigned>(__builtin_ctzll(mask)));
    return count + many;
}

}  // namespace LLMC_ISA
}  // namespace llmc
