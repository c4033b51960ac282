#define LLMC_ISA baseline
#define LLMC_WIDTH 4
#include "trellis_loops.h"

namespace llmc {

extern const TrellisLoops kBaselineTrellis = {"baseline", &baseline::trellis_slab};

}  // namespace llmc
