// Compiled with -mavx2 -mpopcnt.
#define LLMC_ISA avx2
#define LLMC_WIDTH 8
#include "trellis_steps.h"

namespace llmc {

TileSteps avx2_tile_steps(Form form, std::size_t live) { return avx2::tile_steps_for(form, live); }

}  // namespace llmc
