// Feeds mutated streams to the decoders, built with AddressSanitizer and UndefinedBehaviorSanitizer by scripts/sanitize.sh.
// The same seed makes the same inputs. Most are refused; some decode, to other values where a forged sum covers the edit.
// What a path accepts is decoded by the scalar one too, and must be the same; so is a part of what it refuses.
//
//   fuzz_rans INPUTS [SEED]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "crc32c.h"
#include "encode.h"
#include "planes.h"

using namespace llmc;

namespace {

using Bytes = std::vector<std::uint8_t>;

struct Sample {
    Bytes stream, contexts, expected;
    std::size_t n = 0, head = 0;  // bytes that the head's sum covers
    bool of_numbers = false;      // expected are numbers
    Split split;
    Bytes raw;
};

Bytes skewed(std::mt19937_64& random, std::size_t n, unsigned low) {
    Bytes symbols(n);
    std::geometric_distribution<unsigned> steps(0.3);
    for (std::uint8_t& symbol : symbols) symbol = static_cast<std::uint8_t>(low + steps(random) % 60);
    return symbols;
}

void select(Job& job, const Bytes& symbols, Sample& sample) {
    Model& model = job.model;
    if (model.selector == Selector::kContext) {
        for (std::uint8_t symbol : symbols) sample.contexts.push_back(symbol % 3u);
        for (unsigned i = 0; i < 3; ++i) model.table_of[i] = static_cast<std::uint8_t>(i % 2);
        job.contexts = sample.contexts.data();
        job.tables = 2;
    }
    if (model.selector == Selector::kAutomaton) {
        Automaton& automaton = model.automaton;
        automaton = {4, 2, {}, {0, 2, 3, 1, 2, 0, 1, 3}, {0, 1, 0, 1}};
        for (unsigned i = 0; i < 256; ++i) automaton.class_of[i] = i & 1u;
        job.tables = 2;
    }
}

void measure_head(Sample& sample) {
    sample.head = parse(sample.stream.data(), sample.stream.size(), sample.n).head_bytes - 4;
}

// Integers.
Sample make_sample(std::mt19937_64& random, unsigned kind) {
    Sample sample;
    Bytes symbols = skewed(random, 40 + 37 * (kind % 5), kind % 7 * 20);
    Job job;
    job.model.n = sample.n = symbols.size();
    job.model.bits = 12 + (kind % 8 == 7) * 2u + (kind % 8 == 3);
    job.model.lanes_log2 = 2 + kind % 4;
    job.model.chunk = 64;
    job.model.selector = static_cast<Selector>(kind % 3);
    select(job, symbols, sample);
    sample.expected = symbols;
    if (kind % 4 == 1) {  // two-byte values
        job.model.value_bytes = 2;
        job.model.escape_first = 250;
        sample.expected.clear();
        for (std::uint8_t& symbol : symbols) {
            const auto value = static_cast<std::int16_t>(symbol % 11 ? symbol : -300);
            if (value < 0) symbol = 251;
            sample.expected.push_back(static_cast<std::uint8_t>(value));
            sample.expected.push_back(static_cast<std::uint8_t>(static_cast<std::uint16_t>(value) >> 8));
        }
        job.values = sample.expected.data();
    }
    job.symbols = symbols.data();
    sample.stream = encode(job);
    measure_head(sample);
    return sample;
}

// Numbers: those of weights, with flat or few or very different exponents, for every way to find a symbol.
Bytes numbers_of(std::mt19937_64& random, const Split& split, std::size_t n, unsigned kind) {
    std::normal_distribution<float> normal(0.0F, 0.02F);
    Bytes numbers;
    for (std::size_t i = 0; i < n; ++i) {
        const float value = kind % 5 == 4 ? normal(random) * normal(random) * normal(random) : normal(random);
        std::uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const unsigned flat[] = {0, 15, 30, 100, 0};
        if (const unsigned exponents = flat[kind % 5])
            bits = (bits & 0x807FFFFFu) | (64 + static_cast<std::uint32_t>(random() % exponents)) << 23;
        if (random() % 200 == 0) bits = static_cast<std::uint32_t>(random());
        for (unsigned byte = 4 - split.bytes; byte < 4; ++byte) numbers.push_back(static_cast<std::uint8_t>(bits >> 8 * byte));
    }
    return numbers;
}

Sample make_numbers(std::mt19937_64& random, unsigned kind) {
    const Split splits[] = {{2, 15, 8}, {2, 15, 10}, {4, 31, 10}, {1, 7, 7}, {2, 15, 9}, {4, 31, 8}};
    Sample sample;
    sample.of_numbers = true;
    sample.split = splits[kind < 24 ? kind % 2 : kind % 6];
    sample.n = kind % 6 == 5 ? 200 : 300 + 300 * (kind % 7);
    sample.expected = numbers_of(random, sample.split, sample.n, kind / 2);
    sample.raw.resize(sample.split.raw_bytes(sample.n));
    Model model;
    model.n = sample.n;
    model.bits = 12 + kind % 3;
    model.lanes_log2 = kind < 24 ? 6 : 2 + kind / 2 % 6;
    model.chunk = 512u << (kind % 3);
    std::vector<std::uint64_t> counts;
    sample.stream = encode_planes(sample.split, sample.expected.data(), model, sample.raw.data(), counts, 1, Path::kScalar);
    measure_head(sample);
    return sample;
}

Bytes mutated(const Sample& sample, std::mt19937_64& random) {
    Bytes data = sample.stream;
    for (std::uint64_t edits = 1 + random() % 4; edits && !data.empty(); --edits) {
        // Half of the edits go to the head, where the claims are.
        const std::size_t reach = random() % 2 ? std::min(sample.head, data.size()) : data.size();
        const std::size_t at = random() % reach;
        const std::uint64_t what = random();
        switch (what % 6) {
            case 0: data[at] ^= static_cast<std::uint8_t>(1u << (what >> 8) % 8); break;
            case 1: data[at] = static_cast<std::uint8_t>(what >> 8); break;
            case 2: data[at] = what >> 8 & 1 ? 255 : 0; break;
            case 3: data.resize(at); break;
            case 4: data.insert(data.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::uint8_t>(what >> 8)); break;
            default: data[at] = static_cast<std::uint8_t>(data[at] + 1); break;
        }
    }
    // A head whose sum agrees is read further.
    if (random() % 4 && data.size() >= sample.head + 4) store(data.data() + sample.head, crc32c(0, data.data(), sample.head));
    return data;
}

// Memory of exactly that size: a byte behind it is an error.
std::unique_ptr<std::uint8_t[]> exact(const Bytes& data, std::size_t size) {
    std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[size]);
    std::copy_n(data.begin(), std::min(size, data.size()), copy.get());
    std::fill(copy.get() + std::min(size, data.size()), copy.get() + size, std::uint8_t{0});
    return copy;
}

// The bytes that `data` decodes to; false: it was refused.
bool decodes(const Sample& sample, const Bytes& data, std::size_t raw_bytes, Path path, Bytes& out) {
    const auto stream_bytes = exact(data, data.size());
    try {
        const Stream stream = parse(stream_bytes.get(), data.size(), sample.n);
        const Model& model = stream.model;
        const Bytes none(model.selector == Selector::kContext ? sample.n : 0);
        const Bytes& contexts = sample.contexts.empty() ? none : sample.contexts;
        const std::uint8_t* seen = model.selector == Selector::kContext ? contexts.data() : nullptr;
        if (sample.of_numbers) {
            const auto raw = exact(sample.raw, raw_bytes);
            out.assign(sample.n * sample.split.bytes, 0);
            decode_planes(sample.split, stream, raw.get(), raw_bytes, seen, out.data(), 1, path);
            return true;
        }
        out.assign(sample.n * model.value_bytes, 0);
        (model.value_bytes == 1 ? decode_bytes : decode_values)(stream, out.data(), seen, 1, path);
        return true;
    } catch (const CodecError&) {
        return false;
    }
}

struct Found {
    std::uint64_t accepted = 0, different = 0;
};

// False: two paths disagree.
bool feed(const Sample& sample, std::uint64_t input, std::mt19937_64& random, const std::vector<Path>& paths, Found& found) {
    const Path path = paths[input % paths.size()];
    const Bytes data = random() % 64 ? mutated(sample, random) : sample.stream;
    const std::size_t raw_bytes = random() % 32 ? sample.raw.size() : random() % (2 * sample.raw.size() + 2);
    Bytes out, plain;
    const bool accepted = decodes(sample, data, raw_bytes, path, out);
    if (accepted || input / paths.size() % 16 == 0) {
        if (decodes(sample, data, raw_bytes, Path::kScalar, plain) != accepted) return false;
        if (accepted && out != plain) return false;
    }
    found.accepted += accepted;
    found.different += accepted && out != sample.expected;
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t inputs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100000;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    std::mt19937_64 random(seed);
    std::vector<Sample> samples;
    for (unsigned kind = 0; kind < 24; ++kind) samples.push_back(make_sample(random, kind));
    for (unsigned kind = 0; kind < 48; ++kind) samples.push_back(make_numbers(random, kind));
    std::vector<Path> paths;
    for (const std::string& name : path_names()) paths.push_back(path_named(name));
    Bytes out;
    for (const Sample& sample : samples)
        for (const Path path : paths)
            if (!decodes(sample, sample.stream, sample.raw.size(), path, out) || out != sample.expected) return 1;
    const auto begin = std::chrono::steady_clock::now();
    Found found;
    for (std::uint64_t i = 0; i < inputs; ++i) {
        if (feed(samples[random() % samples.size()], i, random, paths, found)) continue;
        std::printf("input %llu: two paths disagree\n", static_cast<unsigned long long>(i));
        return 1;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("%llu mutated inputs from seed %llu over %zu streams and %zu paths: %llu decoded, %llu of them differently, "
                "no sanitizer report, %.0f inputs/s\n",
                static_cast<unsigned long long>(inputs), static_cast<unsigned long long>(seed), samples.size(),
                paths.size(), static_cast<unsigned long long>(found.accepted),
                static_cast<unsigned long long>(found.different), static_cast<double>(inputs) / seconds);
    return 0;
}
