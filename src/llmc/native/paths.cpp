// Which code runs. How fast gathers are depends on the processor and on its microcode, so the choice is measured, once.
#include <chrono>

#include "cpu.h"
#include "decode.h"

namespace llmc {
namespace {

struct Named {
    const char* name;
    Path path;
    bool runs;
};

std::array<Named, 4> all_paths() {
    return {{{"scalar", Path::kScalar, true},
             {"avx2", Path::kAvx2, cpu().avx2},
             {"avx512", Path::kAvx512, cpu().avx512},
             {"avx512-search", Path::kAvx512Search, cpu().avx512}}};
}

#ifdef LLMC_X86
Steps exactly(Path path, const DecodeTables& tables, std::size_t lanes) {
    if (path == Path::kAvx512Search) return avx512_search_steps(tables, lanes);
    if (path == Path::kAvx512) return avx512_steps(tables, lanes);
    if (path == Path::kAvx2) return avx2_steps(tables, lanes);
    return scalar_steps(tables);
}

// One table, halving from 2^11.
DecodeTables sample_tables(unsigned symbols) {
    Model model;
    model.tables.resize(1);
    std::uint16_t left = 4096;
    for (unsigned symbol = 0; symbol < symbols; ++symbol) {
        const std::uint16_t q = symbol < 6 ? static_cast<std::uint16_t>(left / 2) : std::uint16_t{1};
        model.tables[0][symbol] = q;
        left = static_cast<std::uint16_t>(left - q);
    }
    model.tables[0][0] = static_cast<std::uint16_t>(model.tables[0][0] + left);
    return decode_tables(model);
}

// Nanoseconds for a block of random words, the best of some runs.
double time_of(Steps steps, const DecodeTables& tables, const std::vector<std::uint8_t>& words) {
    std::array<std::uint8_t, kBlock> out;
    double best = 1e30;
    for (int run = 0; run < 12; ++run) {
        Lanes lanes;
        lanes.count = 64;
        lanes.words = words.data();
        lanes.end = words.data() + words.size();
        for (std::size_t i = 0; i < lanes.count; ++i) lanes.x[i] = kLowest + static_cast<std::uint32_t>(i * 7919);
        const auto begin = std::chrono::steady_clock::now();
        steps(tables, lanes, out.data(), nullptr, kBlock / lanes.count);
        const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begin;
        best = spent.count() < best ? spent.count() : best;
    }
    return best;
}

Path measured(unsigned symbols) {
    const DecodeTables tables = sample_tables(symbols);
    std::vector<std::uint8_t> words(2 * kBlock);
    std::uint32_t random = 1;
    for (std::uint8_t& byte : words) byte = static_cast<std::uint8_t>((random = random * 1664525u + 1013904223u) >> 24);
    Path fastest = Path::kScalar;
    double best = 1e30;
    for (const Named& candidate : all_paths()) {
        const Steps steps = candidate.runs ? exactly(candidate.path, tables, 64) : nullptr;
        if (!steps) continue;
        // A short search wins ties: it leaves the caches to others, and numbers may be stored past them.
        const bool favoured = candidate.path == Path::kAvx512Search && symbols <= 32;
        const double time = time_of(steps, tables, words) * (favoured ? 0.9 : 1.0);
        if (time < best) fastest = candidate.path;
        if (time < best) best = time;
    }
    return fastest;
}

// Each is measured when it is first asked for.
template <std::size_t Symbols>
Path fastest_of() {
    static const Path found = measured(Symbols);
    return found;
}

Path fastest(Search search) {
    if (search == Search::kNone) return fastest_of<2 * kSearch>();
    return search == Search::kHalve6 ? fastest_of<kSearch>() : fastest_of<32>();
}
#endif

}  // namespace

Path path_named(const std::string& name) {
    if (name == "auto") return Path::kAuto;
    for (const Named& candidate : all_paths()) {
        if (name != candidate.name) continue;
        if (candidate.runs) return candidate.path;
        throw CodecError("this processor or build cannot run the path " + name);
    }
    throw CodecError("no path is named " + name);
}

std::vector<std::string> path_names() {
    std::vector<std::string> names;
    for (const Named& candidate : all_paths())
        if (candidate.runs) names.emplace_back(candidate.name);
    return names;
}

#ifdef LLMC_X86
Path path_for(Path path, const DecodeTables& tables, std::size_t lanes) {
    if (path == Path::kAuto) path = fastest(tables.search.how);
    auto rank = static_cast<unsigned>(path);
    while (rank > static_cast<unsigned>(Path::kScalar) && !exactly(static_cast<Path>(rank), tables, lanes)) --rank;
    return static_cast<Path>(rank);
}

Steps steps_for(Path path, const DecodeTables& tables, std::size_t lanes) {
    return exactly(path_for(path, tables, lanes), tables, lanes);
}

MergeSteps merge_steps_for(Path path, const DecodeTables& tables, std::size_t lanes, unsigned raw_bits, bool past_caches) {
    const Path chosen = path_for(path, tables, lanes);
    if (chosen < Path::kAvx512 || lanes != kMergeLanes || tables.selector != Selector::kOne) return nullptr;
    // Gathers, where microcode makes them safe, wait for stores past the caches: a third of the speed.
    const bool search = chosen == Path::kAvx512Search;
    return avx512_merge_steps(tables, search, raw_bits, past_caches && search);
}
#else
Path path_for(Path, const DecodeTables&, std::size_t) { return Path::kScalar; }
Steps steps_for(Path, const DecodeTables& tables, std::size_t) { return scalar_steps(tables); }
MergeSteps merge_steps_for(Path, const DecodeTables&, std::size_t, unsigned, bool) { return nullptr; }
#endif

std::string path_name(Path path) {
    for (const Named& candidate : all_paths())
        if (candidate.path == path) return candidate.name;
    return "auto";
}

}  // namespace llmc
