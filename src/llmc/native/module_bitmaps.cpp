// The part of llmc._native that formats/bitmaps.py calls. Sizes are checked here, streams in bitmaps.cpp.
#include "module_bitmaps.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bitmaps.h"

namespace nb = nanobind;

namespace llmc {
namespace {

using In = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

Bytes encode_symbols(const In& symbols, unsigned threads, const std::string& path) {
    const BitmapLoops& loops = bitmap_loops(path);
    auto* kept = new std::vector<std::uint8_t>;
    const nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<std::uint8_t>*>(p); });
    {
        const nb::gil_scoped_release unlocked;
        *kept = encode_bitmaps(symbols.data(), symbols.size(), threads, loops);
    }
    return Bytes(kept->data(), {kept->size()}, owner);
}

void decode_symbols(const In& stream, std::uint64_t n, std::uint64_t begin, const Out& out, unsigned threads,
            const std::string& path) {
    const BitmapLoops& loops = bitmap_loops(path);
    const Bitmaps parsed = parse_bitmaps(stream.data(), stream.size(), n);
    if (begin > n || out.size() > n - begin) throw CodecError("the output is not inside the stream");
    const nb::gil_scoped_release unlocked;
    decode_bitmaps(parsed, begin, begin + out.size(), out.data(), threads, loops);
}

void decode_numbers(unsigned bytes, unsigned sign_after, unsigned coded, const In& stream, const In& raw,
                    const Out& numbers, unsigned threads, const std::string& path) {
    const BitmapLoops& loops = bitmap_loops(path);
    const Split split{bytes, sign_after, coded};
    check(split);
    const std::uint64_t n = numbers.size() / split.bytes;
    if (numbers.size() % split.bytes != 0 || raw.size() != split.raw_bytes(n))
        throw CodecError("the raw bits are not of the size of the numbers");
    const Bitmaps parsed = parse_bitmaps(stream.data(), stream.size(), n);
    const nb::gil_scoped_release unlocked;
    decode_bitmap_numbers(split, parsed, raw.data(), numbers.data(), threads, loops);
}

void check_sums(const In& stream, std::uint64_t n, unsigned threads) {
    const Bitmaps parsed = parse_bitmaps(stream.data(), stream.size(), n);
    const nb::gil_scoped_release unlocked;
    check_bitmaps(parsed, threads);
}

nb::dict describe_stream(const In& stream, std::uint64_t n) {
    const Bitmaps parsed = parse_bitmaps(stream.data(), stream.size(), n);
    nb::dict found;
    found["n"] = parsed.n;
    found["table"] = nb::bytes(reinterpret_cast<const char*>(parsed.table.data() + 1), 7);
    found["escapes"] = parsed.escapes_before.back();
    found["blocks_at"] = static_cast<std::uint64_t>(parsed.blocks - stream.data());
    found["words_at"] = static_cast<std::uint64_t>(parsed.words - stream.data());
    found["escapes_at"] = static_cast<std::uint64_t>(parsed.escapes - stream.data());
    return found;
}

}  // namespace

void define_bitmaps(nb::module_& m) {
    m.def("bitmaps_encode", &encode_symbols, nb::arg("symbols"), nb::arg("threads"), nb::arg("path"));
    m.def("bitmaps_decode", &decode_symbols, nb::arg("stream"), nb::arg("n"), nb::arg("begin"), nb::arg("out"),
          nb::arg("threads"), nb::arg("path"));
    m.def("bitmaps_decode_numbers", &decode_numbers, nb::arg("bytes"), nb::arg("sign_after"), nb::arg("coded"),
          nb::arg("stream"), nb::arg("raw"), nb::arg("numbers"), nb::arg("threads"), nb::arg("path"));
    m.def("bitmaps_check", &check_sums, nb::arg("stream"), nb::arg("n"), nb::arg("threads"));
    m.def("bitmaps_describe", &describe_stream, nb::arg("stream"), nb::arg("n"));
    m.def("bitmaps_paths", &bitmap_path_names);
}

}  // namespace llmc
