// Compiled with -msse4.2. Three sums run side by side, because the instruction takes 3 cycles and starts every cycle.
#include <nmmintrin.h>

#include <array>
#include <cstring>

#include "crc32c.h"

namespace llmc {
namespace {

constexpr std::size_t kPart = 1360;  // three of them and 16 bytes are a block of 4096

using Shift = std::array<std::array<std::uint32_t, 256>, 4>;

// The linear map "followed by kPart zero bytes", by bytes of the sum.
Shift make_shift() {
    Shift shift{};
    for (std::size_t k = 0; k < 4; ++k)
        for (std::uint32_t b = 0; b < 256; ++b) shift[k][b] = crc32c_shift(b << (8 * k), kPart);
    return shift;
}

std::uint32_t shifted(const Shift& s, std::uint32_t crc) {
    return s[0][crc & 0xFFu] ^ s[1][(crc >> 8) & 0xFFu] ^ s[2][(crc >> 16) & 0xFFu] ^ s[3][crc >> 24];
}

std::uint64_t load8(const std::uint8_t* p) {
    std::uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
}

}  // namespace

std::uint32_t crc32c_sse42(std::uint32_t before, const std::uint8_t* data, std::size_t size) {
    static const Shift shift = make_shift();
    std::uint64_t crc = static_cast<std::uint32_t>(~before);
    for (; size >= 3 * kPart; size -= 3 * kPart, data += 3 * kPart) {
        std::uint64_t second = 0, third = 0;
        for (std::size_t i = 0; i < kPart; i += 8) {
            crc = _mm_crc32_u64(crc, load8(data + i));
            second = _mm_crc32_u64(second, load8(data + kPart + i));
            third = _mm_crc32_u64(third, load8(data + 2 * kPart + i));
        }
        crc = shifted(shift, static_cast<std::uint32_t>(crc)) ^ second;
        crc = shifted(shift, static_cast<std::uint32_t>(crc)) ^ third;
    }
    for (; size >= 8; size -= 8, data += 8) crc = _mm_crc32_u64(crc, load8(data));
    for (; size; --size, ++data) crc = _mm_crc32_u8(static_cast<std::uint32_t>(crc), *data);
    return ~static_cast<std::uint32_t>(crc);
}

}  // namespace llmc
