// Bindings that module.cpp adds to llmc._native.
#pragma once

#include <nanobind/nanobind.h>

namespace llmc {

void define_grids(nanobind::module_& m);
void define_trellis(nanobind::module_& m);

}  // namespace llmc
