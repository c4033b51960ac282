// The loops of planes.h, written so that compilers vectorise them. Included once per instruction set, under LLMC_ISA.
#include <algorithm>
#include <array>

#include "planes.h"

namespace llmc {
namespace LLMC_ISA {

using Values = std::array<std::uint32_t, kBlock>;

inline std::uint32_t low_mask(unsigned bits) { return bits >= 32 ? ~0u : (1u << bits) - 1u; }

template <typename T>
void load_all(const std::uint8_t* numbers, std::size_t n, Values& v) {
    for (std::size_t i = 0; i < n; ++i) v[i] = load<T>(numbers + i * sizeof(T));
}

template <typename T>
void store_all(const Values& v, std::size_t n, std::uint8_t* numbers) {
    for (std::size_t i = 0; i < n; ++i) store(numbers + i * sizeof(T), static_cast<T>(v[i]));
}

// Values of `bits` bits to bytes, low bits first.
inline void pack(const Values& v, std::size_t n, unsigned bits, std::uint8_t* out) {
    const std::uint32_t mask = low_mask(bits);
    if (bits == 8) {
        for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::uint8_t>(v[i]);
        return;
    }
    std::uint64_t held = 0;
    unsigned count = 0;
    for (std::size_t i = 0; i < n; ++i) {
        held |= static_cast<std::uint64_t>(v[i] & mask) << count;
        for (count += bits; count >= 8; count -= 8, held >>= 8) *out++ = static_cast<std::uint8_t>(held);
    }
    if (count) *out = static_cast<std::uint8_t>(held);
}

// Eight values of up to 8 bits are one load.
inline void unpack_eights(const std::uint8_t* in, std::size_t n, unsigned bits, Values& v) {
    const std::uint32_t mask = low_mask(bits);
    for (std::size_t i = 0; i < n; i += 8, in += bits) {
        std::uint64_t held = 0;
        std::memcpy(&held, in, bits);
        for (unsigned k = 0; k < 8; ++k) v[i + k] = static_cast<std::uint32_t>(held >> (k * bits)) & mask;
    }
}

inline void unpack(const std::uint8_t* in, std::size_t n, unsigned bits, Values& v) {
    if (bits == 8) {
        for (std::size_t i = 0; i < n; ++i) v[i] = in[i];
        return;
    }
    const std::size_t eights = bits < 8 ? n / 8 * 8 : 0;
    unpack_eights(in, eights, bits, v);
    in += eights / 8 * bits;
    std::uint64_t held = 0;
    unsigned count = 0;
    for (std::size_t i = eights; i < n; ++i) {
        for (; count < bits; count += 8) held |= static_cast<std::uint64_t>(*in++) << count;
        v[i] = static_cast<std::uint32_t>(held) & low_mask(bits);
        held >>= bits;
        count -= bits;
    }
}

inline void take(const Split& split, const std::uint8_t* numbers, std::size_t n, Planes coded, std::uint8_t* raw) {
    Values v;
    if (split.bytes == 1) load_all<std::uint8_t>(numbers, n, v);
    if (split.bytes == 2) load_all<std::uint16_t>(numbers, n, v);
    if (split.bytes == 4) load_all<std::uint32_t>(numbers, n, v);
    const unsigned top = 8 * split.bytes - 1, below = top - split.sign_after;
    const std::uint32_t rest = low_mask(top), low = low_mask(below);
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint32_t x = v[i] & rest;
        v[i] = (x & ~low) << 1 | (v[i] >> top) << below | (x & low);
    }
    unsigned shift = top + 1;
    for (std::size_t p = 0; p < split.coded.size(); ++p) {
        shift -= split.coded[p];
        const std::uint32_t mask = low_mask(split.coded[p]);
        std::uint8_t* out = coded[p];
        for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::uint8_t>(v[i] >> shift & mask);
    }
    if (shift) pack(v, n, shift, raw);
}

inline void put(const Split& split, ConstPlanes coded, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers) {
    Values v;
    const unsigned raw_bits = split.raw_bits();
    if (raw_bits)
        unpack(raw, n, raw_bits, v);
    else
        std::fill_n(v.begin(), n, 0u);
    unsigned shift = 8 * split.bytes;
    for (std::size_t p = 0; p < split.coded.size(); ++p) {
        shift -= split.coded[p];
        // A damaged stream may hold symbols that do not fit their field.
        const std::uint32_t mask = low_mask(split.coded[p]);
        const std::uint8_t* in = coded[p];
        for (std::size_t i = 0; i < n; ++i) v[i] |= (in[i] & mask) << shift;
    }
    const unsigned top = 8 * split.bytes - 1, below = top - split.sign_after;
    const std::uint32_t low = low_mask(below);
    for (std::size_t i = 0; i < n; ++i) v[i] = (v[i] >> 1 & ~low) | (v[i] & low) | (v[i] >> below & 1u) << top;
    if (split.bytes == 1) store_all<std::uint8_t>(v, n, numbers);
    if (split.bytes == 2) store_all<std::uint16_t>(v, n, numbers);
    if (split.bytes == 4) store_all<std::uint32_t>(v, n, numbers);
}

// The hot case: a bf16 rotated left by one is exponent, mantissa, sign.
inline void take_bf16(const std::uint8_t* numbers, std::size_t n, std::uint8_t* exponents, std::uint8_t* raw) {
    for (std::size_t i = 0; i < n; ++i) {
        const auto x = load<std::uint16_t>(numbers + 2 * i);
        exponents[i] = static_cast<std::uint8_t>(x >> 7);
        raw[i] = static_cast<std::uint8_t>(x << 1 | x >> 15);
    }
}

inline void put_bf16(const std::uint8_t* exponents, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers) {
    for (std::size_t i = 0; i < n; ++i) {
        const auto x = static_cast<std::uint16_t>(exponents[i] << 8 | raw[i]);
        store(numbers + 2 * i, static_cast<std::uint16_t>(x >> 1 | x << 15));
    }
}

inline void take_any(const Split& split, const std::uint8_t* numbers, std::size_t n, Planes coded, std::uint8_t* raw) {
    if (split.balanced_bf16()) return take_bf16(numbers, n, coded[0], raw);
    take(split, numbers, n, coded, raw);
}

inline void put_any(const Split& split, ConstPlanes coded, const std::uint8_t* raw, std::size_t n,
                    std::uint8_t* numbers) {
    if (split.balanced_bf16()) return put_bf16(coded[0], raw, n, numbers);
    put(split, coded, raw, n, numbers);
}

}  // namespace LLMC_ISA
}  // namespace llmc
