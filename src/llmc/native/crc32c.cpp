#include "crc32c.h"

#include <array>

#include "cpu.h"

namespace llmc {
namespace {

using Slices = std::array<std::array<std::uint32_t, 256>, 4>;

// slices[k][b]: the sum of byte b followed by k zero bytes.
Slices make_slices() {
    Slices slices{};
    for (std::uint32_t b = 0; b < 256; ++b) {
        std::uint32_t crc = b;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? 0x82F63B78u : 0u);
        slices[0][b] = crc;
    }
    for (std::size_t k = 1; k < slices.size(); ++k)
        for (std::size_t b = 0; b < 256; ++b)
            slices[k][b] = (slices[k - 1][b] >> 8) ^ slices[0][slices[k - 1][b] & 0xFFu];
    return slices;
}

const Slices& slices() {
    static const Slices made = make_slices();
    return made;
}

}  // namespace

std::uint32_t crc32c_shift(std::uint32_t crc, std::size_t zeros) {
    const auto& table = slices()[0];
    for (std::size_t i = 0; i < zeros; ++i) crc = (crc >> 8) ^ table[crc & 0xFFu];
    return crc;
}

std::uint32_t crc32c_portable(std::uint32_t before, const std::uint8_t* data, std::size_t size) {
    const Slices& s = slices();
    std::uint32_t crc = ~before;
    for (; size >= 4; size -= 4, data += 4) {
        const std::uint32_t x =
            crc ^ (data[0] | std::uint32_t{data[1]} << 8 | std::uint32_t{data[2]} << 16 | std::uint32_t{data[3]} << 24);
        crc = s[3][x & 0xFFu] ^ s[2][(x >> 8) & 0xFFu] ^ s[1][(x >> 16) & 0xFFu] ^ s[0][x >> 24];
    }
    for (; size; --size, ++data) crc = (crc >> 8) ^ s[0][(crc ^ *data) & 0xFFu];
    return ~crc;
}

std::uint32_t crc32c(std::uint32_t before, const std::uint8_t* data, std::size_t size) {
#ifdef LLMC_X86
    if (cpu().sse42) return crc32c_sse42(before, data, size);
#endif
    return crc32c_portable(before, data, size);
}

}  // namespace llmc
