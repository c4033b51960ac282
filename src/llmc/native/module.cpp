// llmc._native: what Python calls. Sizes are checked here, streams in stream.cpp; formats/rans.py gives errors their type.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "crc32c.h"
#include "encode.h"
#include "module_bitmaps.h"
#include "module_grids.h"
#include "planes.h"

namespace nb = nanobind;

namespace llmc {
namespace {

using In = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counted = nb::ndarray<std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

void want(bool holds, const char* message) {
    if (!holds) throw CodecError(message);
}

template <typename T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> to_numpy(std::vector<T>&& values) {
    auto* kept = new std::vector<T>(std::move(values));
    const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return {kept->data(), {kept->size()}, owner};
}


Automaton automaton_of(const In& next, const In& class_of, const In& table_of, unsigned tables) {
    Automaton automaton;
    automaton.states = static_cast<unsigned>(table_of.size());
    want(automaton.states >= 1 && automaton.states <= 256 && class_of.size() == 256, "an automaton has 1 to 256 states");
    automaton.classes = static_cast<unsigned>(next.size() / automaton.states);
    want(automaton.classes >= 1 && automaton.classes <= 256 && next.size() == automaton.states * automaton.classes,
         "an automaton has a next state for each state and class");
    std::copy_n(class_of.data(), 256, automaton.class_of.begin());
    automaton.next.assign(next.data(), next.data() + next.size());
    automaton.table_of.assign(table_of.data(), table_of.data() + automaton.states);
    const auto inside = [](const auto& map, unsigned limit) {
        return std::all_of(map.begin(), map.end(), [limit](std::uint8_t value) { return value < limit; });
    };
    want(inside(automaton.class_of, automaton.classes) && inside(automaton.next, automaton.states) &&
             inside(automaton.table_of, tables),
         "the automaton points outside its classes, states or tables");
    return automaton;
}


Bytes encode_stream(const In& symbols, const std::optional<In>& contexts, const std::optional<In>& table_of,
                    const std::optional<In>& next, const std::optional<In>& class_of, const std::optional<In>& values,
                    unsigned value_bytes, int base, unsigned escape_first, unsigned bits, unsigned lanes_log2,
                    unsigned chunk, unsigned tables, unsigned threads, const std::string& path) {
    Job job;
    Model& model = job.model;
    want(tables >= 1 && tables <= 256, "there are not 1 to 256 tables");
    model.bits = bits;
    model.lanes_log2 = lanes_log2;
    model.chunk = chunk;
    model.n = symbols.size();
    model.escape_first = escape_first;
    model.value_bytes = value_bytes;
    model.base = base;
    job.symbols = symbols.data();
    job.tables = tables;
    job.threads = threads;
    job.path = path_named(path);
    if (contexts) {
        want(contexts->size() == symbols.size(), "there are not as many contexts as symbols");
        want(table_of && table_of->size() == 256, "a context map has 256 entries");
        std::copy_n(table_of->data(), 256, model.table_of.begin());
        want(*std::max_element(model.table_of.begin(), model.table_of.end()) < tables, "a context has no table");
        model.selector = Selector::kContext;
        job.contexts = contexts->data();
    } else if (next) {
        want(class_of && table_of, "an automaton needs classes and tables");
        model.automaton = automaton_of(*next, *class_of, *table_of, tables);
        model.selector = Selector::kAutomaton;
    } else {
        want(tables == 1, "one table needs no selection");
    }
    if (values) {
        want(values->size() == symbols.size() * value_bytes, "there are not as many values as symbols");
        job.values = values->data();
    }
    std::vector<std::uint8_t> out;
    {
        const nb::gil_scoped_release unlocked;
        out = encode(std::move(job));
    }
    return to_numpy(std::move(out));
}

const std::uint8_t* contexts_of(const std::optional<In>& contexts, const Model& model) {
    if (model.selector != Selector::kContext) return nullptr;
    want(contexts.has_value(), "this stream needs the plane of its contexts");
    want(contexts->size() == model.n, "there are not as many contexts as symbols");
    return contexts->data();
}

void decode_stream(const In& stream, std::uint64_t n, const Out& out, const std::optional<In>& contexts,
                   unsigned threads, const std::string& path) {
    const Path chosen = path_named(path);
    const Stream parsed = parse(stream.data(), stream.size(), n);
    want(out.size() == n * parsed.model.value_bytes, "the output is not as long as the decoded symbols");
    const std::uint8_t* seen = contexts_of(contexts, parsed.model);
    const nb::gil_scoped_release unlocked;
    (parsed.model.value_bytes == 1 ? decode_bytes : decode_values)(parsed, out.data(), seen, threads, chosen);
}

void decode_part(const In& stream, std::uint64_t n, std::uint64_t begin, const Out& out,
                 const std::optional<In>& contexts, const std::string& path) {
    const Path chosen = path_named(path);
    const Stream parsed = parse(stream.data(), stream.size(), n);
    want(parsed.model.value_bytes == 1, "ranges are of streams of bytes");
    want(begin <= n && out.size() <= n - begin, "the range is not inside the stream");
    const std::uint8_t* seen = contexts_of(contexts, parsed.model);
    const nb::gil_scoped_release unlocked;
    decode_range(parsed, begin, begin + out.size(), out.data(), seen, chosen);
}

nb::dict describe(const In& stream, std::uint64_t n) {
    const Stream parsed = parse(stream.data(), stream.size(), n);
    const Model& model = parsed.model;
    nb::dict found;
    found["n"] = model.n;
    found["probability_bits"] = model.bits;
    found["lanes"] = model.lanes();
    found["chunk_symbols"] = model.chunk;
    found["selector"] = static_cast<int>(model.selector);
    found["escape_first"] = model.escape_first;
    found["value_bytes"] = model.value_bytes;
    found["base"] = model.base;
    found["head_bytes"] = parsed.head_bytes;
    found["chunks"] = parsed.chunks.size();
    nb::list tables;
    for (const Frequencies& table : model.tables) tables.append(nb::cast(table));
    found["tables"] = tables;
    return found;
}

std::string path_of(const In& stream, std::uint64_t n) {
    const Model model = parse(stream.data(), stream.size(), n).model;
    return path_name(path_for(Path::kAuto, decode_tables(model), model.lanes()));
}

Split split_of(unsigned bytes, unsigned sign_after, unsigned coded) {
    const Split split{bytes, sign_after, coded};
    check(split);
    return split;
}

// How many numbers there are; their raw bits must be as many.
std::uint64_t numbers_in(const Split& split, std::size_t bytes, std::size_t raw) {
    const std::uint64_t n = bytes / split.bytes;
    want(bytes % split.bytes == 0 && raw == split.raw_bytes(n), "the raw bits are not of the size of the numbers");
    return n;
}

void split_numbers(unsigned bytes, unsigned sign_after, unsigned coded, const In& numbers, const Out& fields,
                   const Out& raw, unsigned threads) {
    const Split split = split_of(bytes, sign_after, coded);
    const std::uint64_t n = numbers_in(split, numbers.size(), raw.size());
    want(fields.size() == n * split.value_bytes(), "the plane is not of the size of the numbers");
    const nb::gil_scoped_release unlocked;
    split_planes(split, numbers.data(), n, fields.data(), raw.data(), threads);
}

nb::tuple encode_numbers(unsigned bytes, unsigned sign_after, unsigned coded, const In& numbers, const Out& raw,
                         unsigned bits, unsigned lanes_log2, unsigned chunk, unsigned threads, const std::string& path) {
    const Split split = split_of(bytes, sign_after, coded);
    const Path chosen = path_named(path);
    Model model;
    model.n = numbers_in(split, numbers.size(), raw.size());
    model.bits = bits;
    model.lanes_log2 = lanes_log2;
    model.chunk = chunk;
    std::vector<std::uint8_t> out;
    std::vector<std::uint64_t> counts;
    {
        const nb::gil_scoped_release unlocked;
        out = encode_planes(split, numbers.data(), model, raw.data(), counts, threads, chosen);
    }
    return nb::make_tuple(to_numpy(std::move(out)), to_numpy(std::move(counts)));
}

void merge_numbers(unsigned bytes, unsigned sign_after, unsigned coded, const In& fields, const In& raw,
                   const Out& numbers, unsigned threads) {
    const Split split = split_of(bytes, sign_after, coded);
    const std::uint64_t n = numbers_in(split, numbers.size(), raw.size());
    want(fields.size() == n * split.value_bytes(), "the plane is not of the size of the numbers");
    const nb::gil_scoped_release unlocked;
    merge_planes(split, fields.data(), raw.data(), n, numbers.data(), threads);
}

void decode_numbers(unsigned bytes, unsigned sign_after, unsigned coded, const In& stream, const In& raw,
                    const Out& numbers, const std::optional<In>& contexts, unsigned threads, const std::string& path) {
    const Path chosen = path_named(path);
    const Split split = split_of(bytes, sign_after, coded);
    want(numbers.size() % bytes == 0, "the numbers end inside one");
    const Stream parsed = parse(stream.data(), stream.size(), numbers.size() / bytes);
    const std::uint8_t* seen = contexts_of(contexts, parsed.model);
    const nb::gil_scoped_release unlocked;
    decode_planes(split, parsed, raw.data(), raw.size(), seen, numbers.data(), threads, chosen);
}

void count(const In& symbols, const std::optional<In>& contexts, const Counted& counts) {
    const bool joint = contexts.has_value();
    want(counts.size() == (joint ? 65536 : 256), "counts are 256, or 256 for each context");
    want(!joint || contexts->size() == symbols.size(), "there are not as many contexts as symbols");
    const nb::gil_scoped_release unlocked;
    count_symbols(symbols.data(), joint ? contexts->data() : nullptr, symbols.size(), counts.data(), joint ? 256 : 1);
}

Frequencies normalise_counts(const std::array<std::uint64_t, 256>& counts, unsigned bits) {
    want(bits >= kMinBits && bits <= kMaxBits, "probability bits are not 12, 13 or 14");
    return normalise(counts, bits);
}

}  // namespace

NB_MODULE(_native, m) {
    nb::exception<CodecError>(m, "CodecError", PyExc_ValueError);
    m.def("encode", &encode_stream, nb::arg("symbols"), nb::arg("contexts").none(), nb::arg("table_of").none(),
          nb::arg("next_state").none(), nb::arg("class_of").none(), nb::arg("values").none(), nb::arg("value_bytes"),
          nb::arg("base"), nb::arg("escape_first"), nb::arg("bits"), nb::arg("lanes_log2"), nb::arg("chunk"),
          nb::arg("tables"), nb::arg("threads"), nb::arg("path"));
    m.def("decode", &decode_stream, nb::arg("stream"), nb::arg("n"), nb::arg("out"), nb::arg("contexts").none(),
          nb::arg("threads"), nb::arg("path"));
    m.def("decode_range", &decode_part, nb::arg("stream"), nb::arg("n"), nb::arg("begin"), nb::arg("out"),
          nb::arg("contexts").none(), nb::arg("path"));
    m.def("describe", &describe, nb::arg("stream"), nb::arg("n"));
    m.def("split", &split_numbers, nb::arg("bytes"), nb::arg("sign_after"), nb::arg("coded"), nb::arg("numbers"),
          nb::arg("fields"), nb::arg("raw"), nb::arg("threads"));
    m.def("merge", &merge_numbers, nb::arg("bytes"), nb::arg("sign_after"), nb::arg("coded"), nb::arg("fields"),
          nb::arg("raw"), nb::arg("numbers"), nb::arg("threads"));
    m.def("encode_numbers", &encode_numbers, nb::arg("bytes"), nb::arg("sign_after"), nb::arg("coded"),
          nb::arg("numbers"), nb::arg("raw"), nb::arg("bits"), nb::arg("lanes_log2"), nb::arg("chunk"),
          nb::arg("threads"), nb::arg("path"));
    m.def("decode_numbers", &decode_numbers, nb::arg("bytes"), nb::arg("sign_after"), nb::arg("coded"),
          nb::arg("stream"), nb::arg("raw"), nb::arg("numbers"), nb::arg("contexts").none(), nb::arg("threads"),
          nb::arg("path"));
    m.def("count", &count, nb::arg("symbols"), nb::arg("contexts").none(), nb::arg("counts"));
    m.def("normalise", &normalise_counts, nb::arg("counts"), nb::arg("bits"));
    m.def("crc32c", [](const In& data, std::uint32_t before) { return crc32c(before, data.data(), data.size()); },
          nb::arg("data"), nb::arg("before"));
    m.def("paths", &path_names);
    define_bitmaps(m);
    define_grids(m);
    define_trellis(m);
    m.def("path_of", &path_of, nb::arg("stream"), nb::arg("n"));
}

}  // namespace llmc
