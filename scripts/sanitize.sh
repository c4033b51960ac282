#!/usr/bin/env bash
# Builds the coder with AddressSanitizer and UndefinedBehaviorSanitizer and feeds mutated streams to its decoders,
# INPUTS to each.
#   scripts/sanitize.sh [INPUTS [SEED]]
set -euo pipefail
cd "$(dirname "$0")/.."

cmake -S . -B build/sanitize -DLLMC_FUZZ=ON -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build build/sanitize --target fuzz_rans fuzz_bitmaps
UBSAN_OPTIONS=print_stacktrace=1 build/sanitize/fuzz_rans "${1:-10000000}" "${2:-1}"
UBSAN_OPTIONS=print_stacktrace=1 build/sanitize/fuzz_bitmaps "${1:-10000000}" "${2:-1}"
