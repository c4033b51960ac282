#include "choose.h"

#include <algorithm>
#include <numeric>

#include "decode.h"

namespace llmc {
namespace {

using Rare = std::array<bool, 256>;

// Size in 2^-48 bits of everything coded, tables and escaped values included.
Wide size_with(const std::vector<Counts>& counts, std::uint64_t escaped, Model& model) {
    Wide size = 0;
    model.tables.clear();
    for (const Counts& each : counts) {
        model.tables.push_back(normalise(each, model.bits));
        size += coded_size(each, model.tables.back(), model.bits);
    }
    const Wide bytes = Wide{head_of(model).size()} + Wide{escaped} * model.value_bytes;
    return size + (bytes << (48 + 3));
}

// The symbols below 1 / 2^bits of all.
Rare below(const Counts& total, std::uint64_t n, unsigned bits) {
    Rare rare{};
    for (std::size_t s = 0; s < 256; ++s) rare[s] = total[s] > 0 && Wide{total[s]} << bits < Wide{n};
    return rare;
}

// All but the `most` most frequent symbols.
Rare beyond(const Counts& total, std::size_t most) {
    std::array<unsigned, 256> order;
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](unsigned a, unsigned b) { return total[a] > total[b]; });
    Rare rare{};
    for (std::size_t i = most; i < 256; ++i) rare[order[i]] = total[order[i]] > 0;
    return rare;
}

struct Candidate {
    Wide size = 0;
    Model model;
    Rare rare{};
    bool found = false;
};

// The rare symbols, and what is outside, share the escape above all others. Not found: there is no room for it, or one
// symbol would only change its name.
Candidate merged(const std::vector<Counts>& counts, const Counts& total, std::uint64_t outside, const Rare& rare,
                 const Model& model) {
    Candidate candidate{0, model, rare, false};
    unsigned escape = 0, found = 0;
    for (unsigned s = 0; s < 256; ++s) {
        found += rare[s];
        if (total[s] > 0 && !rare[s]) escape = s + 1;
    }
    if ((found < 2 && outside == 0) || escape > 255) return candidate;
    std::vector<Counts> left = counts;
    std::uint64_t escaped = outside;
    left[0][escape] += outside;
    for (Counts& each : left)
        for (std::size_t s = 0; s < 256; ++s) {
            const std::uint64_t count = rare[s] ? each[s] : 0;
            each[s] -= count;
            each[escape] += count;
            escaped += count;
        }
    candidate.model.escape_first = escape;
    candidate.size = size_with(left, escaped, candidate.model);
    candidate.found = true;
    return candidate;
}

std::size_t symbols_of(const Model& model) {
    return static_cast<std::size_t>(std::count_if(model.tables[0].begin(), model.tables[0].end(), [](auto q) { return q > 0; }));
}

void keep_smaller(Candidate& best, Candidate&& other) {
    if (other.found && (!best.found || other.size < best.size)) best = std::move(other);
}

Replacement replacement(const Candidate& chosen) {
    Replacement made;
    const unsigned escape = chosen.model.escape_first;
    for (unsigned s = 0; s < 256; ++s) {
        made.map[s] = static_cast<std::uint8_t>(chosen.rare[s] ? escape : s);
        made.any = made.any || chosen.rare[s];
    }
    made.low = made.high = escape;
    while (made.low > 0 && !chosen.rare[made.low - 1]) --made.low;
    return made;
}

}  // namespace

Replacement choose_tables(const std::vector<Counts>& counts, std::uint64_t outside, bool free, Model& model) {
    Candidate best{0, model, {}, outside == 0};
    if (outside == 0) best.size = size_with(counts, 0, best.model);
    Counts total{};
    for (const Counts& each : counts)
        for (std::size_t s = 0; s < 256; ++s) total[s] += each[s];
    if (outside) keep_smaller(best, merged(counts, total, outside, Rare{}, model));
    if (free) {
        // What is rare: below a slot, a quarter, a sixteenth of one.
        for (const unsigned under : {0u, 2u, 4u})
            keep_smaller(best, merged(counts, total, outside, below(total, model.n, model.bits + under), model));
    }
    if (free && counts.size() == 1) {
        const Wide limit = best.size + (best.size >> 10);
        for (const std::size_t most : {kSearch / 4, kSearch / 2, kSearch}) {
            if (symbols_of(best.model) <= most) break;
            Candidate small = merged(counts, total, outside, beyond(total, most - 1), model);
            if (small.found && small.size <= limit) best = std::move(small);
        }
    }
    model = best.model;
    return replacement(best);
}

std::size_t best_window(const std::vector<std::uint64_t>& counts) {
    std::uint64_t inside = 0, most = 0;
    std::size_t best = 0;
    for (std::size_t end = 0; end < counts.size(); ++end) {
        inside += counts[end];
        const std::size_t first = end < kWindow ? 0 : end - kWindow + 1;
        if (end >= kWindow) inside -= counts[end - kWindow];
        if (inside > most) most = inside, best = first;
    }
    while (best + 1 < counts.size() && counts[best] == 0 && most > 0) ++best;  // a table begins with a symbol that is there
    return std::min(best, counts.size() > 256 ? counts.size() - 256 : 0);
}

void Replacement::apply(const std::uint8_t* in, std::size_t n, std::uint8_t* out) const {
    constexpr std::size_t kPart = 256;
    for (std::size_t at = 0; at < n; at += kPart) {
        const std::size_t end = std::min(n, at + kPart);
        std::uint8_t top = 0, bottom = 255;
        for (std::size_t i = at; i < end; ++i) top = std::max(top, in[i]);
        for (std::size_t i = at; i < end; ++i) bottom = std::min(bottom, in[i]);
        const bool all_stay = bottom >= low && top < high;
        if (all_stay && in != out) std::memcpy(out + at, in + at, end - at);
        for (std::size_t i = at; !all_stay && i < end; ++i) out[i] = map[in[i]];
    }
}

}  // namespace llmc
