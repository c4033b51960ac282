// CRC-32C (Castagnoli, reflected 0x82F63B78), by the processor's instruction where it has one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llmc {

// The sum of `before` (0 at first) continued over `size` bytes.
std::uint32_t crc32c(std::uint32_t before, const std::uint8_t* data, std::size_t size);

std::uint32_t crc32c_portable(std::uint32_t before, const std::uint8_t* data, std::size_t size);
std::uint32_t crc32c_sse42(std::uint32_t before, const std::uint8_t* data, std::size_t size);

// What `crc` becomes when `zeros` zero bytes follow (without the inversions at both ends).
std::uint32_t crc32c_shift(std::uint32_t crc, std::size_t zeros);

}  // namespace llmc
