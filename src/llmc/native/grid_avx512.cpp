// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mpopcnt -msse4.2.
#define LLMC_ISA avx512
#define LLMC_WIDTH 16
#include "grid_loops.h"
#include "grid_slab.h"
#include "grid_decode.h"

namespace llmc {

extern const GridLoops kAvx512Grid = {"avx512", &avx512::fit, &avx512::round, &avx512::round_slab, &avx512::decode};

}  // namespace llmc
