// Feeds mutated streams to the decoder, built with AddressSanitizer and UndefinedBehaviorSanitizer by scripts/sanitize.sh.
// The same seed makes the same inputs. Most are refused; some decode, to other values where a forged sum covers the edit.
//
//   fuzz_rans INPUTS [SEED]
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

struct Sample {
    std::vector<std::uint8_t> stream, symbols, contexts, expected;
    std::size_t head = 0;  // bytes that the head's sum covers
};

std::vector<std::uint8_t> skewed(std::mt19937_64& random, std::size_t n, unsigned low) {
    std::vector<std::uint8_t> symbols(n);
    std::geometric_distribution<unsigned> steps(0.3);
    for (std::uint8_t& symbol : symbols) symbol = static_cast<std::uint8_t>(low + steps(random) % 60);
    return symbols;
}

void select(Job& job, Sample& sample, std::mt19937_64& random) {
    Model& model = job.model;
    if (model.selector == Selector::kContext) {
        for (std::uint8_t symbol : sample.symbols) sample.contexts.push_back(symbol % 3u);
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
    static_cast<void>(random);
}

Sample make_sample(std::mt19937_64& random, unsigned kind) {
    Sample sample;
    sample.symbols = skewed(random, 40 + 37 * (kind % 5), kind % 7 * 20);
    Job job;
    job.model.n = sample.symbols.size();
    job.model.bits = 12 + (kind % 8 == 7) * 2u;
    job.model.lanes_log2 = 2 + kind % 4;
    job.model.chunk = 64;
    job.model.selector = static_cast<Selector>(kind % 3);
    select(job, sample, random);
    sample.expected = sample.symbols;
    if (kind % 4 == 1) {  // two-byte values
        job.model.value_bytes = 2;
        job.model.escape_first = 250;
        sample.expected.clear();
        for (std::uint8_t& symbol : sample.symbols) {
            const auto value = static_cast<std::int16_t>(symbol % 11 ? symbol : -300);
            if (value < 0) symbol = 251;
            sample.expected.push_back(static_cast<std::uint8_t>(value));
            sample.expected.push_back(static_cast<std::uint8_t>(static_cast<std::uint16_t>(value) >> 8));
        }
        job.values = sample.expected.data();
    }
    job.symbols = sample.symbols.data();
    sample.stream = encode(job);
    sample.head = parse(sample.stream.data(), sample.stream.size(), job.model.n).head_bytes - 4;
    return sample;
}

std::vector<std::uint8_t> mutated(const Sample& sample, std::mt19937_64& random) {
    std::vector<std::uint8_t> data = sample.stream;
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

// The bytes that `data` decodes to; false: it was refused. All memory has exactly the size it claims.
bool decodes(const Sample& sample, const std::vector<std::uint8_t>& data, Path path, std::vector<std::uint8_t>& out) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[data.size()]);
    std::copy(data.begin(), data.end(), exact.get());
    try {
        const Stream stream = parse(exact.get(), data.size(), sample.symbols.size());
        const Model& model = stream.model;
        std::vector<std::uint8_t> none(model.selector == Selector::kContext ? sample.symbols.size() : 0);
        const std::vector<std::uint8_t>& contexts = sample.contexts.empty() ? none : sample.contexts;
        out.assign(sample.symbols.size() * model.value_bytes, 0);
        const std::uint8_t* seen = model.selector == Selector::kContext ? contexts.data() : nullptr;
        (model.value_bytes == 1 ? decode_bytes : decode_values)(stream, out.data(), seen, 1, path);
        return true;
    } catch (const CodecError&) {
        return false;
    }
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t inputs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100000;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    std::mt19937_64 random(seed);
    std::vector<Sample> samples;
    for (unsigned kind = 0; kind < 24; ++kind) samples.push_back(make_sample(random, kind));
    std::vector<Path> paths;
    for (const std::string& name : path_names()) paths.push_back(path_named(name));
    std::vector<std::uint8_t> out;
    for (const Sample& sample : samples)
        if (!decodes(sample, sample.stream, Path::kScalar, out) || out != sample.expected) return 1;
    const auto begin = std::chrono::steady_clock::now();
    std::uint64_t accepted = 0, different = 0;
    for (std::uint64_t i = 0; i < inputs; ++i) {
        const Sample& sample = samples[random() % samples.size()];
        if (!decodes(sample, mutated(sample, random), paths[i % paths.size()], out)) continue;
        ++accepted;
        different += out != sample.expected;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("%llu mutated inputs from seed %llu over %zu streams and %zu paths: %llu decoded, %llu of them differently, "
                "no sanitizer report, %.0f inputs/s\n",
                static_cast<unsigned long long>(inputs), static_cast<unsigned long long>(seed), samples.size(),
                paths.size(), static_cast<unsigned long long>(accepted), static_cast<unsigned long long>(different),
                static_cast<double>(inputs) / seconds);
    return 0;
}
