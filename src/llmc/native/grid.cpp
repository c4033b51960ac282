// Which loops run: integer grids have the same bits on every one of them.
#include "grid.h"

#include "cpu.h"
#include "stream.h"

namespace llmc {
namespace {

// Simplest first.
std::vector<const GridLoops*> all_loops() {
    std::vector<const GridLoops*> out{&kBaselineGrid};
#ifdef LLMC_X86
    if (cpu().avx2) out.push_back(&kAvx2Grid);
    if (cpu().avx512) out.push_back(&kAvx512Grid);
#endif
    return out;
}

}  // namespace

const GridLoops& grid_loops(const std::string& path) {
    static const std::vector<const GridLoops*> known = all_loops();
    if (path == "auto") return *known.back();
    for (const GridLoops* loops : known)
        if (path == loops->name) return *loops;
    throw CodecError("no path that this processor or build can run is named " + path);
}

std::vector<std::string> grid_paths() {
    std::vector<std::string> names;
    for (const GridLoops* loops : all_loops()) names.emplace_back(loops->name);
    return names;
}

}  // namespace llmc
