// Compiled with -mavx2 -mpopcnt.
#define LLMC_ISA avx2
#define LLMC_WIDTH 8
#include "trellis_loops.h"

namespace llmc {

extern const TrellisLoops kAvx2Trellis = {"avx2", &avx2::trellis_slab};

}  // namespace llmc
