// Which loops search trellises: the levels are the same on every one of them.
#include "trellis.h"

#include <vector>

#include "cpu.h"
#include "stream.h"

namespace llmc {

const TrellisLoops& trellis_loops(const std::string& path) {
    static const std::vector<const TrellisLoops*> known = [] {
        std::vector<const TrellisLoops*> out{&kBaselineTrellis};
#ifdef LLMC_X86
        if (cpu().avx2) out.push_back(&kAvx2Trellis);
        if (cpu().avx512) out.push_back(&kAvx512Trellis);
#endif
        return out;
    }();
    if (path == "auto") return *known.back();
    for (const TrellisLoops* loops : known)
        if (path == loops->name) return *loops;
    throw CodecError("no path that this processor or build can run is named " + path);
}

}  // namespace llmc
