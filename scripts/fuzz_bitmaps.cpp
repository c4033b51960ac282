// Feeds mutated bitmap streams to their decoder, built with AddressSanitizer and UndefinedBehaviorSanitizer by
// scripts/sanitize.sh. The same seed makes the same inputs. All paths must say the same about each: refused, or these bytes.
//
//   fuzz_bitmaps INPUTS [SEED]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "bitmaps.h"
#include "crc32c.h"

using namespace llmc;

namespace {

// SplitMix64 (Steele, Lea, Flood 2014): the same numbers everywhere.
struct Random {
    std::uint64_t state;

    std::uint64_t operator()() {
        std::uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    std::size_t below(std::size_t limit) { return static_cast<std::size_t>((*this)() % limit); }
};

struct Sample {
    std::vector<std::uint8_t> stream, symbols, raw;
    std::size_t summed = 0;  // bytes under the head's sum
    std::size_t words = 0, sums = 0;
};

Sample make_sample(Random& random, unsigned kind) {
    constexpr std::array<std::size_t, 8> sizes{0, 1, 63, 200, 4096, 4100, 8192, 9000};
    const std::array<std::size_t, 4> alphabets{1, 7, 40, 256};
    Sample sample;
    sample.symbols.resize(sizes[kind % sizes.size()]);
    const std::size_t alphabet = alphabets[kind / sizes.size() % alphabets.size()];
    for (std::uint8_t& symbol : sample.symbols)
        symbol = static_cast<std::uint8_t>(std::min(random.below(alphabet), random.below(alphabet)));
    sample.raw.assign(sample.symbols.size(), 0x5A);
    const std::size_t n = sample.symbols.size();
    sample.stream = encode_bitmaps(sample.symbols.data(), n, 1, bitmap_loops("auto"));
    const std::uint8_t* data = sample.stream.data();
    const Bitmaps parsed = parse_bitmaps(data, sample.stream.size(), n);
    sample.sums = static_cast<std::size_t>(parsed.sums - data);
    sample.summed = sample.sums + 4 * parsed.chunks();
    sample.words = static_cast<std::size_t>(parsed.words - data);
    return sample;
}

void edit(std::vector<std::uint8_t>& data, std::size_t at, std::uint64_t what) {
    const auto value = static_cast<std::uint8_t>(what >> 8);
    switch (what % 6) {
        case 0: data[at] ^= static_cast<std::uint8_t>(1u << value % 8); break;
        case 1: data[at] = value; break;
        case 2: data[at] = value & 1 ? 255 : 0; break;
        case 3: data.resize(at); break;
        case 4: data.insert(data.begin() + static_cast<std::ptrdiff_t>(at), value); break;
        default: data[at] = static_cast<std::uint8_t>(data[at] + 1); break;
    }
}

std::vector<std::uint8_t> mutated(const Sample& sample, Random& random) {
    std::vector<std::uint8_t> data = sample.stream;
    for (std::size_t edits = 1 + random.below(3); edits && !data.empty(); --edits) {
        // Half of the edits go to the head, where the claims are.
        const std::size_t reach = random.below(2) ? std::min(sample.words, data.size()) : data.size();
        edit(data, random.below(reach), random());
    }
    // Sums that agree: what lies behind them is reached.
    const bool whole = data.size() == sample.stream.size();
    if (whole && sample.symbols.size() && random.below(2))
        store(data.data() + sample.sums, crc32c(0, data.data() + sample.words, data.size() - sample.words));
    if (random.below(4) && data.size() >= sample.summed + 4)
        store(data.data() + sample.summed, crc32c(0, data.data(), sample.summed));
    return data;
}

struct Decoded {
    std::string refusal;  // empty: it was decoded
    std::vector<std::uint8_t> symbols, part, numbers;

    bool operator==(const Decoded& other) const {
        return refusal == other.refusal && symbols == other.symbols && part == other.part && numbers == other.numbers;
    }
};

// What `data` decodes to by all ways. All memory has exactly the size it claims.
Decoded decoded(const Sample& sample, const std::vector<std::uint8_t>& data, const std::string& path, std::size_t from) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[data.size()]);
    std::copy(data.begin(), data.end(), exact.get());
    const std::size_t n = sample.symbols.size();
    Decoded out;
    try {
        const Bitmaps stream = parse_bitmaps(exact.get(), data.size(), n);
        const BitmapLoops& loops = bitmap_loops(path);
        out.symbols.resize(n);
        decode_bitmaps(stream, 0, n, out.symbols.data(), 1, loops);
        out.part.resize((n - from) / 2);
        decode_bitmaps(stream, from, from + out.part.size(), out.part.data(), 1, loops);
        out.numbers.resize(2 * n);
        decode_bitmap_numbers(Split{2, 15, 8}, stream, sample.raw.data(), out.numbers.data(), 1, loops);
    } catch (const CodecError& error) {
        out.refusal = error.what();
    }
    return out;
}

bool consistent(const Decoded& out, const Sample& sample, std::size_t from) {
    for (std::size_t i = 0; i < out.part.size(); ++i)
        if (out.part[i] != out.symbols[from + i]) return false;
    for (std::size_t i = 0; i < out.numbers.size() / 2; ++i) {
        const unsigned bits = out.symbols[i] * 256u + sample.raw[i];
        if (load<std::uint16_t>(out.numbers.data() + 2 * i) != ((bits >> 1 | bits << 15) & 0xFFFF)) return false;
    }
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t inputs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100000;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    Random random{seed};
    std::vector<Sample> samples;
    for (unsigned kind = 0; kind < 32; ++kind) samples.push_back(make_sample(random, kind));
    const std::vector<std::string> paths = bitmap_path_names();
    for (const Sample& sample : samples)
        if (decoded(sample, sample.stream, "scalar", 0).symbols != sample.symbols) return 1;
    const auto begin = std::chrono::steady_clock::now();
    std::uint64_t accepted = 0, different = 0;
    for (std::uint64_t i = 0; i < inputs; ++i) {
        const Sample& sample = samples[random.below(samples.size())];
        const std::vector<std::uint8_t> data = mutated(sample, random);
        const std::size_t from = random.below(sample.symbols.size() + 1);
        const Decoded first = decoded(sample, data, paths[0], from);
        const Decoded other = decoded(sample, data, paths[i % paths.size()], from);
        if (!(first == other) || (first.refusal.empty() && !consistent(first, sample, from))) {
            std::printf("input %llu: the paths differ\n", static_cast<unsigned long long>(i));
            return 1;
        }
        accepted += first.refusal.empty();
        different += first.refusal.empty() && first.symbols != sample.symbols;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("%llu mutated inputs from seed %llu over %zu bitmap streams and %zu paths: %llu decoded, %llu of them "
                "differently, no sanitizer report, %.0f inputs/s\n",
                static_cast<unsigned long long>(inputs), static_cast<unsigned long long>(seed), samples.size(),
                paths.size(), static_cast<unsigned long long>(accepted), static_cast<unsigned long long>(different),
                static_cast<double>(inputs) / seconds);
    return 0;
}
