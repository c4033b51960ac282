#define LLMC_ISA baseline
#define LLMC_WIDTH 4
#include "grid_loops.h"

namespace llmc {

extern const GridLoops kBaselineGrid = {"baseline", &baseline::fit, &baseline::round};

}  // namespace llmc
