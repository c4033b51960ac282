#define LLMC_ISA baseline
#include "planes_loops.h"

namespace llmc {

extern const PlaneLoops kBaselineLoops = {&baseline::take_any, &baseline::put_any, &baseline::put_symbols, &baseline::code};

}  // namespace llmc
