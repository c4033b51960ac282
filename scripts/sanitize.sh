#!/usr/bin/env bash
# Builds the coders with AddressSanitizer and UndefinedBehaviorSanitizer and feeds mutated streams to their decoders,
# INPUTS to each, or to one of them.
#   scripts/sanitize.sh [INPUTS [SEED [rans|bitmaps|trellis]]]
set -euo pipefail
cd "$(dirname "$0")/.."

cmake -S . -B build/sanitize -DLLMC_FUZZ=ON -DCMAKE_BUILD_TYPE=Release >/dev/null
for coder in ${3:-rans bitmaps trellis}; do
  cmake --build build/sanitize --target "fuzz_$coder"
  UBSAN_OPTIONS=print_stacktrace=1 "build/sanitize/fuzz_$coder" "${1:-10000000}" "${2:-1}"
done
