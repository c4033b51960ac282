// Numbers to a stream and raw bits in two passes: one counts the fields and packs the rest, one codes.
#include <algorithm>
#include <array>
#include <utility>

#include "planes.h"
#include "threads.h"

namespace llmc {
namespace {

constexpr std::uint64_t kTask = 1u << 20;  // numbers to a thread at a time; a multiple of 8, so raw bits begin at a byte

using Block = std::array<std::uint8_t, 2 * kBlock>;  // fields of numbers

// Counts of fields, by one thread.
class Tally {
public:
    Tally(const Split& split, std::uint64_t expected)
        : bytes_(split.value_bytes() == 1 ? expected : 0),
          wide_(split.value_bytes() == 1 ? 0 : std::size_t{2} << split.coded),
          sums_(split.value_bytes() == 1 ? 256 : wide_.size() / 2) {}

    void add(const std::uint8_t* fields, std::size_t n) {
        wide_.empty() ? bytes_.add(fields, n) : add_wide(fields, n);
        if ((seen_ += n) >> 31) fold();  // the tables have 32 bits
    }

    const std::vector<std::uint64_t>& sums() {
        fold();
        return sums_;
    }

private:
    void add_wide(const std::uint8_t* fields, std::size_t n) {
        std::uint32_t* even = wide_.data();
        std::uint32_t* odd = even + wide_.size() / 2;
        std::size_t i = 0;
        for (; i + 2 <= n; i += 2) {
            ++even[load<std::uint16_t>(fields + 2 * i)];
            ++odd[load<std::uint16_t>(fields + 2 * i + 2)];
        }
        if (i < n) ++even[load<std::uint16_t>(fields + 2 * i)];
    }

    void fold() {
        seen_ = 0;
        if (wide_.empty()) return bytes_.move_into(sums_.data());
        for (std::size_t i = 0; i < wide_.size(); ++i) sums_[i % sums_.size()] += std::exchange(wide_[i], 0);
    }

    ByteTally bytes_;
    std::vector<std::uint32_t> wide_;
    std::vector<std::uint64_t> sums_;
    std::uint64_t seen_ = 0;
};

// First pass.
std::vector<std::uint64_t> count_fields(const Split& split, const std::uint8_t* numbers, std::uint64_t n,
                                        std::uint8_t* raw, unsigned threads) {
    std::vector<Tally> tallies(std::max(1u, threads), Tally(split, n));
    parallel_on(static_cast<std::size_t>((n + kTask - 1) / kTask), threads, [&](std::size_t index, std::size_t thread) {
        const std::uint64_t begin = index * kTask, end = std::min(n, begin + kTask);
        Tally& tally = tallies[thread];
        Block fields;
        for (std::uint64_t at = begin; at < end; at += kBlock) {
            const auto first = static_cast<std::size_t>(at);
            const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, end - at));
            plane_loops().take(split, numbers + first * split.bytes, count, fields.data(), raw + split.raw_bytes(first));
            tally.add(fields.data(), count);
        }
    });
    std::vector<std::uint64_t> counts = tallies[0].sums();
    for (std::size_t t = 1; t < tallies.size(); ++t) {
        const std::vector<std::uint64_t>& others = tallies[t].sums();
        for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += others[i];
    }
    return counts;
}

// Second pass.
class Fields final : public Source {
public:
    Fields(const Split& split, const std::uint8_t* numbers, const Coding& how)
        : split_(split), numbers_(numbers), how_(how) {}

    const std::uint8_t* symbols(std::size_t first, std::size_t n, Room& room) const override {
        std::uint8_t* symbols = room.of(n);
        const bool as_they_are = split_.value_bytes() == 1;  // but for rare ones
        Block block;
        for (std::size_t at = 0; at < n; at += kBlock) {
            const std::size_t count = std::min(kBlock, n - at);
            std::uint8_t* fields = as_they_are ? symbols + at : block.data();
            plane_loops().take(split_, numbers_ + (first + at) * split_.bytes, count, fields, nullptr);
            if (!as_they_are || how_.rare.any) plane_loops().code(split_, fields, how_, count, symbols + at);
        }
        return symbols;
    }

    const std::uint8_t* tables_of(std::size_t, std::size_t, Room&) const override { return nullptr; }

    std::int32_t value(std::size_t at) const override {
        std::array<std::uint8_t, 2> field{};
        plane_loops().take(split_, numbers_ + at * split_.bytes, 1, field.data(), nullptr);
        return load<std::uint16_t>(field.data());
    }

private:
    const Split& split_;
    const std::uint8_t* numbers_;
    const Coding& how_;
};

// Tables for the fields with these counts, and which symbols they are.
Coding choose(const Split& split, const std::vector<std::uint64_t>& counts, Model& model) {
    Coding how;
    const bool wide = split.value_bytes() == 2;
    if (wide) how.base = static_cast<std::uint32_t>(best_window(counts));
    const std::size_t begin = how.base, end = wide ? begin + kWindow : 256;
    Counts inside{};
    std::uint64_t outside = 0;
    for (std::size_t v = 0; v < counts.size(); ++v) (v >= begin && v < end ? inside[v - begin] : outside) += counts[v];
    model.base = static_cast<std::int32_t>(how.base);
    how.rare = choose_tables({inside}, outside, true, model);
    how.escape = model.escape_first;
    return how;
}

}  // namespace

std::vector<std::uint8_t> encode_planes(const Split& split, const std::uint8_t* numbers, Model model, std::uint8_t* raw,
                                        std::vector<std::uint64_t>& counts, unsigned threads, Path path) {
    model.value_bytes = split.value_bytes();
    model.tables.assign(1, Frequencies{});
    check(model);
    if (model.n > model.chunk && std::uint64_t{model.chunk} * split.raw_bits() % 8 != 0)
        throw CodecError("a chunk would begin inside a byte of the raw bits");
    counts = count_fields(split, numbers, model.n, raw, threads);
    const Coding how = choose(split, counts, model);
    return encode(model, Fields(split, numbers, how), threads, path);
}

}  // namespace llmc
