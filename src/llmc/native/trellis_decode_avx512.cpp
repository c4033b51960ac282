// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mpopcnt -msse4.2.
#define LLMC_ISA avx512
#define LLMC_WIDTH 16
#include "trellis_steps.h"

namespace llmc {

TileSteps avx512_tile_steps(Form form, std::size_t live) { return avx512::tile_steps_for(form, live); }

}  // namespace llmc
