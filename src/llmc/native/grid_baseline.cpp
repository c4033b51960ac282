#define LLMC_ISA baseline
#define LLMC_WIDTH 4
#include "grid_loops.h"
#include "grid_slab.h"
#include "grid_decode.h"

namespace llmc {

extern const GridLoops kBaselineGrid = {"baseline", &baseline::fit, &baseline::round, &baseline::round_slab, &baseline::decode};

}  // namespace llmc
