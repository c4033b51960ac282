// Compiled with -mavx2 -mpopcnt.
#define LLMC_ISA avx2
#define LLMC_WIDTH 8
#include "grid_loops.h"
#include "grid_slab.h"
#include "grid_decode.h"

namespace llmc {

extern const GridLoops kAvx2Grid = {"avx2", &avx2::fit, &avx2::round, &avx2::round_slab, &avx2::decode};

}  // namespace llmc
