#pragma once

#include <nanobind/nanobind.h>

namespace llmc {

void define_bitmaps(nanobind::module_& m);

}  // namespace llmc
