// The loops of planes.h, written so that compilers vectorise them. Included once per instruction set, under LLMC_ISA.
#include <algorithm>
#include <array>

#include "planes.h"

namespace llmc {
namespace LLMC_ISA {

using Values = std::array<std::uint32_t, kBlock>;

inline std::uint32_t low_mask(unsigned bits) { return bits >= 32 ? ~0u : (1u << bits) - 1u; }

// One in every `step` bits.
constexpr std::uint64_t every(unsigned step) { return step == 64 ? 1 : ~std::uint64_t{0} / ((std::uint64_t{1} << step) - 1); }

template <typename T>
void load_all(const std::uint8_t* numbers, std::size_t n, Values& v) {
    for (std::size_t i = 0; i < n; ++i) v[i] = load<T>(numbers + i * sizeof(T));
}

template <typename T>
void store_all(const Values& v, std::size_t n, std::uint8_t* numbers) {
    for (std::size_t i = 0; i < n; ++i) store(numbers + i * sizeof(T), static_cast<T>(v[i]));
}

// Eight bytes below 2^bits, without the gaps between them: pairs, fours, eights.
inline std::uint64_t close_gaps(std::uint64_t x, unsigned bits) {
    for (unsigned step = 8; step < 64; step *= 2) {
        const std::uint64_t low = every(2 * step) * ((std::uint64_t{1} << step) - 1), gap = step - bits * step / 8;
        x = (x & low) | (x & ~low) >> gap;
    }
    return x;
}

// The inverse.
inline std::uint64_t open_gaps(std::uint64_t x, unsigned bits) {
    for (unsigned step = 32; step >= 8; step /= 2) {
        const std::uint64_t low = every(2 * step) * ((std::uint64_t{1} << bits * step / 8) - 1);
        x = (x & low) | (x & low << bits * step / 8) << (step - bits * step / 8);
    }
    return x;
}

// Bytes below 2^bits, eight at a time while eight bytes are there; then one by one.
inline void pack_bytes(const std::uint8_t* v, std::size_t n, unsigned bits, std::uint8_t* out) {
    std::size_t i = 0;
    for (; (n - i) * bits >= 64; i += 8, out += bits) store(out, close_gaps(load<std::uint64_t>(v + i), bits));
    std::uint32_t held = 0;
    unsigned count = 0;
    for (; i < n; ++i) {
        held |= static_cast<std::uint32_t>(v[i]) << count;
        for (count += bits; count >= 8; count -= 8, held >>= 8) *out++ = static_cast<std::uint8_t>(held);
    }
    if (count) *out = static_cast<std::uint8_t>(held);
}

inline void unpack_bytes(const std::uint8_t* in, std::size_t n, unsigned bits, std::uint8_t* v) {
    std::size_t i = 0;
    for (; (n - i) * bits >= 64; i += 8, in += bits) store(v + i, open_gaps(load<std::uint64_t>(in), bits));
    std::uint32_t held = 0;
    unsigned count = 0;
    for (; i < n; ++i) {
        if (count < bits) held |= static_cast<std::uint32_t>(*in++) << count, count += 8;
        v[i] = static_cast<std::uint8_t>(held & low_mask(bits));
        held >>= bits;
        count -= bits;
    }
}

// Values of `bits` bits to bytes, low bits first.
inline void pack(const Values& v, std::size_t n, unsigned bits, std::uint8_t* out) {
    if (bits <= 8) {
        std::array<std::uint8_t, kBlock> bytes;
        const std::uint32_t mask = low_mask(bits);
        for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::uint8_t>(v[i] & mask);
        return pack_bytes(bytes.data(), n, bits, out);
    }
    const std::uint32_t mask = low_mask(bits);
    std::uint64_t held = 0;
    unsigned count = 0;
    for (std::size_t i = 0; i < n; ++i) {
        held |= static_cast<std::uint64_t>(v[i] & mask) << count;
        count += bits;
        if (count < 32) continue;
        store(out, static_cast<std::uint32_t>(held));
        out += 4;
        held >>= 32;
        count -= 32;
    }
    for (; count > 0; count -= std::min(count, 8u), held >>= 8) *out++ = static_cast<std::uint8_t>(held);
}

inline void unpack(const std::uint8_t* in, std::size_t n, unsigned bits, Values& v) {
    if (bits <= 8) {
        std::array<std::uint8_t, kBlock> bytes;
        unpack_bytes(in, n, bits, bytes.data());
        for (std::size_t i = 0; i < n; ++i) v[i] = bytes[i];
        return;
    }
    const std::size_t size = (n * bits + 7) / 8, whole = size < 8 ? 0 : (size - 8) * 8 / bits;  // eight bytes are there
    const std::uint32_t mask = low_mask(bits);
    for (std::size_t i = 0; i < whole; ++i)
        v[i] = static_cast<std::uint32_t>(load<std::uint64_t>(in + i * bits / 8) >> (i * bits % 8)) & mask;
    for (std::size_t i = whole; i < n; ++i) {
        std::uint64_t held = 0;
        const std::size_t at = i * bits / 8;
        std::memcpy(&held, in + at, std::min<std::size_t>(8, size - at));
        v[i] = static_cast<std::uint32_t>(held >> (i * bits % 8)) & mask;
    }
}

inline void take(const Split& split, const std::uint8_t* numbers, std::size_t n, std::uint8_t* fields, std::uint8_t* raw) {
    Values v;
    if (split.bytes == 1) load_all<std::uint8_t>(numbers, n, v);
    if (split.bytes == 2) load_all<std::uint16_t>(numbers, n, v);
    if (split.bytes == 4) load_all<std::uint32_t>(numbers, n, v);
    const unsigned top = 8 * split.bytes - 1, below = top - split.sign_after, shift = split.raw_bits();
    const std::uint32_t rest = low_mask(top), low = low_mask(below);
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint32_t x = v[i] & rest;
        v[i] = (x & ~low) << 1 | (v[i] >> top) << below | (x & low);
    }
    if (shift && raw) pack(v, n, shift, raw);
    for (std::size_t i = 0; i < n; ++i) v[i] >>= shift;
    (split.value_bytes() == 1 ? store_all<std::uint8_t> : store_all<std::uint16_t>)(v, n, fields);
}

// Numbers from fields, which may be those of a damaged stream and too wide.
inline void merge(const Split& split, Values& fields, const std::uint8_t* raw, std::size_t n, std::uint8_t* numbers) {
    Values v;
    const unsigned shift = split.raw_bits();
    if (shift)
        unpack(raw, n, shift, v);
    else
        std::fill_n(v.begin(), n, 0u);
    const std::uint32_t mask = low_mask(split.coded);
    for (std::size_t i = 0; i < n; ++i) v[i] |= (fields[i] & mask) << shift;
    const unsigned top = 8 * split.bytes - 1, below = top - split.sign_after;
    const std::uint32_t low = low_mask(below);
    for (std::size_t i = 0; i < n; ++i) v[i] = (v[i] >> 1 & ~low) | (v[i] & low) | (v[i] >> below & 1u) << top;
    if (split.bytes == 1) store_all<std::uint8_t>(v, n, numbers);
    if (split.bytes == 2) store_all<std::uint16_t>(v, n, numbers);
    if (split.bytes == 4) store_all<std::uint32_t>(v, n, numbers);
}

// The hot case: 16 bits rotated left by one.
inline void rest16(const std::uint8_t* numbers, std::size_t n, unsigned bits, std::uint8_t* raw) {
    const auto mask = static_cast<std::uint8_t>(low_mask(bits));
    std::array<std::uint8_t, kBlock> unpacked;
    std::uint8_t* rest = bits == 8 ? raw : unpacked.data();
    for (std::size_t i = 0; i < n; ++i) {
        const auto x = load<std::uint16_t>(numbers + 2 * i);
        rest[i] = static_cast<std::uint8_t>((x << 1 | x >> 15) & mask);
    }
    if (bits < 8) pack_bytes(rest, n, bits, raw);
}

inline void take16(const Split& split, const std::uint8_t* numbers, std::size_t n, std::uint8_t* fields,
                   std::uint8_t* raw) {
    const unsigned shift = split.raw_bits();
    if (raw) rest16(numbers, n, shift, raw);
    if (split.value_bytes() == 1) {
        for (std::size_t i = 0; i < n; ++i) fields[i] = static_cast<std::uint8_t>(load<std::uint16_t>(numbers + 2 * i) >> 7);
        return;
    }
    for (std::size_t i = 0; i < n; ++i) {
        const auto x = static_cast<std::uint16_t>(load<std::uint16_t>(numbers + 2 * i) << 1);
        store(fields + 2 * i, static_cast<std::uint16_t>(x >> shift));
    }
}

// Symbols of wide fields. Most parts hold none that is not simply counted from the base.
inline void code16(const std::uint8_t* fields, const Coding& how, std::size_t n, std::uint8_t* symbols) {
    constexpr std::size_t kPart = 256;
    std::array<std::uint16_t, kPart> v;
    for (std::size_t at = 0; at < n; at += kPart) {
        const std::size_t count = std::min(kPart, n - at);
        std::uint16_t top = 0, bottom = 0xFFFF;
        for (std::size_t i = 0; i < count; ++i) {
            v[i] = static_cast<std::uint16_t>(load<std::uint16_t>(fields + 2 * (at + i)) - how.base);
            top = std::max(top, v[i]);
            bottom = std::min(bottom, v[i]);
        }
        if (bottom >= how.rare.low && top < how.rare.high && top < kWindow) {
            for (std::size_t i = 0; i < count; ++i) symbols[at + i] = static_cast<std::uint8_t>(v[i]);
            continue;
        }
        for (std::size_t i = 0; i < count; ++i)
            symbols[at + i] = v[i] < kWindow ? how.rare.map[v[i]] : static_cast<std::uint8_t>(how.escape);
    }
}

inline void code(const Split& split, const std::uint8_t* fields, const Coding& how, std::size_t n,
                 std::uint8_t* symbols) {
    if (split.value_bytes() == 2) return code16(fields, how, n, symbols);
    how.rare.apply(fields, n, symbols);
}

// `first` is the field of symbol 0.
inline void put16(const Split& split, const std::uint8_t* symbols, std::int32_t first, const std::uint8_t* raw,
                  std::size_t n, std::uint8_t* numbers) {
    const unsigned shift = split.raw_bits();
    std::array<std::uint8_t, kBlock> rest;
    if (shift < 8) unpack_bytes(raw, n, shift, rest.data());
    const std::uint8_t* low = shift < 8 ? rest.data() : raw;
    for (std::size_t i = 0; i < n; ++i) {
        const auto x = static_cast<std::uint16_t>((symbols[i] + static_cast<std::uint32_t>(first)) << shift | low[i]);
        store(numbers + 2 * i, static_cast<std::uint16_t>(x >> 1 | x << 15));
    }
}

inline void take_any(const Split& split, const std::uint8_t* numbers, std::size_t n, std::uint8_t* fields,
                     std::uint8_t* raw) {
    if (split.rotated16()) return take16(split, numbers, n, fields, raw);
    take(split, numbers, n, fields, raw);
}

inline void put_symbols(const Split& split, const std::uint8_t* symbols, std::int32_t base, const std::uint8_t* raw,
                        std::size_t n, std::uint8_t* numbers) {
    if (split.rotated16()) return put16(split, symbols, base, raw, n, numbers);
    Values fields;
    for (std::size_t i = 0; i < n; ++i) fields[i] = static_cast<std::uint32_t>(base + symbols[i]);
    merge(split, fields, raw, n, numbers);
}

inline void put_any(const Split& split, const std::uint8_t* fields, const std::uint8_t* raw, std::size_t n,
                    std::uint8_t* numbers) {
    if (split.value_bytes() == 1) return put_symbols(split, fields, 0, raw, n, numbers);
    Values wide;
    load_all<std::uint16_t>(fields, n, wide);
    merge(split, wide, raw, n, numbers);
}

}  // namespace LLMC_ISA
}  // namespace llmc
