// Feeds mutated streams of trellises to the decoder, built with AddressSanitizer and UndefinedBehaviorSanitizer by
// scripts/sanitize.sh. The same seed makes the same inputs. What a path accepts is decoded by the scalar one too, and must
// be the same; so is a part of what it refuses, which has to be refused in the same words.
//
//   fuzz_trellis INPUTS [SEED]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "crc32c.h"
#include "decode.h"
#include "trellis_stream.h"

using namespace llmc;

namespace {

using Bytes = std::vector<std::uint8_t>;

struct Sample {
    Bytes stream;
    std::size_t rows = 0, columns = 0, head = 0;  // bytes that the head's sum covers
    Form form = Form::kCodes;
    Bytes expected;

    std::size_t size() const { return rows * columns * (form == Form::kFloat32 ? 4 : 2); }
};

TrellisHead make_head(std::mt19937_64& random, unsigned kind) {
    const Machine machines[] = {{0, 0, 0}, {2, 1, 2}, {3, 1, 6}, {4, 2, 9}, {5, 4, 18}, {6, 10, 33}};
    TrellisHead head;
    head.machine = machines[kind % 6];
    head.lanes_log2 = 2 + kind % 5;
    head.rows = 1 + static_cast<std::uint32_t>(random() % 40);
    head.columns = 1 + static_cast<std::uint32_t>(random() % 90);
    head.segment = 1u << kind % 7;
    head.segments_log2 = kind % 3;
    head.tile = kind % 4 ? 4096 : 40;
    head.step = 0.01f;
    head.base = kind % 8 == 7 ? -20 : -126;
    head.row_classes = 1 + kind % 3;
    head.column_classes = 1 + kind / 2 % 3;
    for (unsigned i = 0; i < kind % 32; ++i) head.shifts.push_back(static_cast<std::int8_t>(random() % 50));
    const auto plane = [&random](std::size_t n, unsigned limit) {
        Bytes out(n);
        for (std::uint8_t& value : out) value = static_cast<std::uint8_t>(random() % limit);
        return out;
    };
    head.step_code = plane(head.columns, 1 + kind % 30);
    head.row_class = plane(head.rows, head.row_classes);
    head.column_class = plane(head.columns, head.column_classes);
    return head;
}

// Codes that follow the machine.
std::vector<std::int16_t> codes_of(const TrellisHead& head, std::mt19937_64& random, double spread) {
    std::student_t_distribution<double> levels(3.0);
    const std::vector<std::uint32_t> order = head.row_order();
    std::vector<std::int16_t> codes(std::size_t{head.rows} * head.columns);
    for (std::size_t column = 0; column < head.columns; ++column) {
        std::size_t state = 0;
        for (std::size_t place = 0; place < head.rows; ++place) {
            if (place % head.segment == 0) state = 0;
            const int level = static_cast<int>(std::min(16383.0, std::max(-16384.0, spread * levels(random))));
            const unsigned parity = head.machine.parity_of(state), branch = (level & 1) ^ head.machine.flip_of(state);
            codes[order[place] * head.columns + column] = static_cast<std::int16_t>(2 * level + static_cast<int>(parity));
            state = (2 * state + branch) & (head.machine.states() - 1);
        }
    }
    return codes;
}

Sample make_sample(std::mt19937_64& random, unsigned kind) {
    const TrellisHead head = make_head(random, kind);
    const double spreads[] = {0.5, 3.0, 40.0, 0.0, 500.0};
    const std::vector<std::int16_t> codes = codes_of(head, random, spreads[kind % 5]);
    Sample sample;
    sample.stream = encode_trellis(head, codes.data(), 1);
    sample.rows = head.rows;
    sample.columns = head.columns;
    sample.form = static_cast<Form>(kind % 4);
    sample.head = kTrellisHeadBytes + load<std::uint32_t>(sample.stream.data() + 36) + kChunkEntryBytes * head.chunks();
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

// What `data` decodes to; or nothing, and why.
Bytes decoded(const Sample& sample, const Bytes& data, const std::string& path, std::string& refusal) {
    // Memory of exactly that size: a byte behind it is an error.
    const std::unique_ptr<std::uint8_t[]> stream(new std::uint8_t[data.size()]);
    std::copy(data.begin(), data.end(), stream.get());
    Bytes out(sample.size());
    refusal.clear();
    try {
        const TrellisStream parsed = parse_trellis(stream.get(), data.size(), sample.rows, sample.columns);
        decode_trellis(parsed, sample.form, out.data(), 1, path);
        return out;
    } catch (const CodecError& error) {
        refusal = error.what();
        return {};
    }
}

struct Found {
    std::uint64_t accepted = 0, different = 0;
};

// False: two paths disagree.
bool feed(const Sample& sample, std::uint64_t input, std::mt19937_64& random, const std::vector<std::string>& paths,
          Found& found) {
    const std::string& path = paths[input % paths.size()];
    const Bytes data = random() % 64 ? mutated(sample, random) : sample.stream;
    std::string refusal, other;
    const Bytes out = decoded(sample, data, path, refusal);
    if (refusal.empty() || input / paths.size() % 16 == 0)
        if (decoded(sample, data, "scalar", other) != out || refusal != other) return false;
    found.accepted += refusal.empty();
    found.different += refusal.empty() && out != sample.expected;
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t inputs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100000;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    std::mt19937_64 random(seed);
    std::vector<Sample> samples;
    for (unsigned kind = 0; kind < 60; ++kind) samples.push_back(make_sample(random, kind));
    std::vector<std::string> paths;
    for (const std::string& name : path_names())
        if (path_named(name) != Path::kAvx512Search) paths.push_back(name);
    std::string refusal;
    for (Sample& sample : samples) {
        sample.expected = decoded(sample, sample.stream, "scalar", refusal);
        for (const std::string& path : paths)
            if (decoded(sample, sample.stream, path, refusal) != sample.expected || !refusal.empty()) return 1;
    }
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
