// Which renormalisation word each of eight lanes takes. Only for files compiled for AVX2.
#pragma once

#include <array>
#include <cstdint>

namespace llmc {
namespace {

// places[mask]: for each lane of `mask` how many lanes below it are in `mask`: which word it takes.
using Places = std::array<std::array<std::uint8_t, 8>, 256>;

constexpr Places make_places() {
    Places places{};
    for (unsigned mask = 0; mask < 256; ++mask) {
        std::uint8_t taken = 0;
        for (unsigned lane = 0; lane < 8; ++lane)
            if (mask >> lane & 1u) places[mask][lane] = taken++;
    }
    return places;
}

constexpr Places kPlaces = make_places();

}  // namespace
}  // namespace llmc
