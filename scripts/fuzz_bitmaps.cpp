// Feeds mutated bitmap streams to their decoder, built with AddressSanitizer and UndefinedBehaviorSanitizer by
// scripts/sanitize.sh. The same seed makes the same inputs. All paths must say the same about each: refused, or these bytes.
//
//   fuzz_bitmaps INPUTS [SEED]
#include <algorithm>
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
    std::vector<std::size_t> escapes_at;  // of each chunk, and the end
};

constexpr std::array<std::size_t, 8> kSizes{0, 1, 63, 200, 4096, 4100, 8192, 9000};
constexpr std::array<std::size_t, 4> kAlphabets{1, 7, 40, 256};
constexpr std::size_t kSmall = kSizes.size() * kAlphabets.size();
constexpr std::size_t kTwoChunks = kBitmapChunk + 5000;  // slow: one input in 8192

Sample make_sample(Random& random, std::size_t n, std::size_t alphabet) {
    Sample sample;
    sample.symbols.resize(n);
    for (std::uint8_t& symbol : sample.symbols)
        symbol = static_cast<std::uint8_t>(std::min(random.below(alphabet), random.below(alphabet)));
    for (std::size_t i = 0; i < n; ++i) sample.raw.push_back(static_cast<std::uint8_t>(random()));
    sample.stream = encode_bitmaps(sample.symbols.data(), n, 1, bitmap_loops("auto"));
    const std::uint8_t* data = sample.stream.data();
    const Bitmaps parsed = parse_bitmaps(data, sample.stream.size(), n);
    sample.sums = static_cast<std::size_t>(parsed.sums - data);
    sample.summed = sample.sums + 4 * parsed.chunks();
    sample.words = static_cast<std::size_t>(parsed.words - data);
    for (const std::uint64_t before : parsed.escapes_before)
        sample.escapes_at.push_back(static_cast<std::size_t>(parsed.escapes - data + before));
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

// The sums of chunks as they would be after an edit.
void sum_again(const Sample& sample, std::vector<std::uint8_t>& data) {
    constexpr std::size_t whole = kBitmapChunk / kGroup * kGroupBytes;
    for (std::size_t chunk = 0; chunk + 1 < sample.escapes_at.size(); ++chunk) {
        const std::size_t from = sample.words + chunk * whole, until = std::min(from + whole, sample.escapes_at[0]);
        const std::size_t first = sample.escapes_at[chunk], end = sample.escapes_at[chunk + 1];
        const std::uint32_t crc = crc32c(crc32c(0, data.data() + from, until - from), data.data() + first, end - first);
        store(data.data() + sample.sums + 4 * chunk, crc);
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
    if (data.size() == sample.stream.size() && random.below(2)) sum_again(sample, data);
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
        [&]() noexcept { check_bitmaps(stream, 1); }();  // what decodes has the right sums, or all ends here
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
    for (std::size_t kind = 0; kind < kSmall; ++kind)
        samples.push_back(make_sample(random, kSizes[kind % kSizes.size()], kAlphabets[kind / kSizes.size()]));
    samples.push_back(make_sample(random, kTwoChunks, 10));
    const std::vector<std::string> paths = bitmap_path_names();
    for (const Sample& sample : samples)
        if (decoded(sample, sample.stream, "scalar", 0).symbols != sample.symbols) return 1;
    const auto begin = std::chrono::steady_clock::now();
    std::uint64_t accepted = 0, different = 0;
    for (std::uint64_t i = 0; i < inputs; ++i) {
        const Sample& sample = samples[random.below(8192) ? random.below(kSmall) : kSmall];
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
