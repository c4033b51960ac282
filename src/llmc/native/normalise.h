// Frequencies that sum to 2^bits, from counts. Integer arithmetic only: the same on every machine.
#pragma once

#include <array>
#include <cstdint>

#include "stream.h"

namespace llmc {

using Counts = std::array<std::uint64_t, 256>;

__extension__ typedef unsigned __int128 Wide;

// The frequencies that minimise the coded size of symbols with these counts, each at least 1 where its count is.
// All zero: symbol 0 alone. Where two choices cost the same the smaller symbol gets more.
Frequencies normalise(const Counts& counts, unsigned bits);

// Size of the symbols under the frequencies, in 2^-48 bits.
Wide coded_size(const Counts& counts, const Frequencies& table, unsigned bits);

}  // namespace llmc
