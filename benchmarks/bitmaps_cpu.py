"""Speed of the bitmap stream on bf16 weights, one thread: every path, beside memcpy and planes that are not coded.

    python benchmarks/bitmaps_cpu.py [--weights 16777216] [--rounds 9]

All rows run in turn, round by round in one process through Python, and the best round counts, so that a busy machine
harms all alike. GB/s are 10**9 bytes of bf16 per second of wall time, also where a row reads or writes exponents only.
Weights are Gaussian with log-normal scales of rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from measuring import machine, markdown

from llmc.formats import bitmaps, planes, rans

BF16 = planes.BALANCED["bfloat16"]
Rows = dict[str, Callable[[], object]]


def weights(n: int, columns: int = 4096) -> rans.Bytes:
    """bf16 numbers as bytes [2 n]."""
    rng = np.random.default_rng(0)
    out = np.empty(n, np.uint16)
    for at in range(0, n, columns):
        row = rng.standard_normal(min(columns, n - at), np.float32) * np.float32(0.02 * np.exp(0.3 * rng.normal()))
        out[at : at + columns] = row.view(np.uint32) >> 16
    return out.view(np.uint8)


def rows_of(numbers: rans.Bytes) -> Rows:
    """What is timed, by name."""
    n, out = numbers.size // 2, np.empty_like(numbers)
    exponents, raw = planes.split(numbers, BF16)
    symbols, stream = np.empty(n, np.uint8), bitmaps.encode(exponents)
    rows: Rows = {
        "memcpy": lambda: np.copyto(out, numbers),
        "split only": lambda: planes.split(numbers, BF16),
        "merge only": lambda: planes.merge(exponents, raw, BF16, out),
        "check only": lambda: bitmaps.check(stream, n),
    }
    for path in bitmaps.paths():
        rows[f"decode {path}"] = partial(bitmaps.decode_numbers, stream, raw, out, path=path)
    for path in bitmaps.paths():
        rows[f"decode exponents {path}"] = partial(bitmaps.decode, stream, n, out=symbols, path=path)
    for path in bitmaps.paths():
        rows[f"encode {path}"] = partial(bitmaps.encode_numbers, numbers, path=path)
    return rows


def best_times(rows: Rows, rounds: int) -> dict[str, float]:
    """Seconds of the best round of each row."""
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(rounds):
        for name, run in rows.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=1 << 24)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    numbers = weights(args.weights)
    stream, raw = bitmaps.encode_numbers(numbers)
    print(machine())
    print(f"{8 * (stream.size + raw.size) / args.weights:.4f} bits per weight\n")
    times = best_times(rows_of(numbers), args.rounds)
    copy = times["memcpy"]
    cells = [[name, f"{numbers.size / 1e9 / s:.2f}", f"{copy / s:.2f}"] for name, s in times.items()]
    print(markdown(["row", "GB/s of bf16", "of memcpy"], cells))


if __name__ == "__main__":
    main()
