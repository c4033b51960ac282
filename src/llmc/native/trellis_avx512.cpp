// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mpopcnt -msse4.2.
#define LLMC_ISA avx512
#define LLMC_WIDTH 16
#include "trellis_loops.h"

namespace llmc {

extern const TrellisLoops kAvx512Trellis = {"avx512", &avx512::trellis_slab};

}  // namespace llmc
