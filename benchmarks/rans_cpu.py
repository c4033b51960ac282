"""Speed of the entropy coder on bf16 weights: every path, beside memcpy and merging planes without entropy coding.

    python benchmarks/rans_cpu.py [--weights 16777216] [--threads 1 2] [--rounds 7] [--zipnn]

All rows run in turn, round by round in one process through Python, and the best round counts, so that a busy machine
harms all alike. GB/s are 10**9 bytes of bf16 per second of wall time. Weights are Gaussian with log-normal scales of
rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module

import numpy as np
from measuring import machine, markdown

from llmc.formats import planes, rans

BF16 = planes.BALANCED["bfloat16"]
Rows = dict[str, Callable[[], object]]


def weights(n: int) -> rans.Bytes:
    """bf16 numbers as bytes [2 n]."""
    rng = np.random.default_rng(0)
    scales = np.repeat(np.exp(0.3 * rng.standard_normal(-(-n // 4096))), 4096)[:n]
    values = (rng.standard_normal(n) * 0.02 * scales).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def encoded(numbers: rans.Bytes, threads: int, path: str = "auto") -> tuple[rans.Bytes, rans.Bytes]:
    """Stream and raw bytes."""
    (exponents,), raw = planes.split(numbers, BF16, threads=threads)
    return rans.encode(exponents, threads=threads, path=path), raw


def small(numbers: rans.Bytes) -> tuple[list[rans.Bytes], rans.Bytes]:
    (exponents, mantissas), raw = planes.split(numbers, planes.SMALL["bfloat16"])
    classes = rans.Contexts(exponents, _frequent(exponents))
    return [rans.encode(exponents), rans.encode(mantissas, select=classes)], raw


def _frequent(exponents: rans.Bytes) -> rans.Bytes:
    """A table for each of the 15 most frequent exponents, and one for the others."""
    table_of = np.zeros(256, np.uint8)
    table_of[np.argsort(rans.histogram(exponents), kind="stable")[::-1][:15]] = np.arange(1, 16)
    return table_of


def rows_of(numbers: rans.Bytes, threads: list[int]) -> Rows:
    """What is timed, by name."""
    out, (exponents,) = np.empty_like(numbers), planes.split(numbers, BF16)[0]
    stream, raw = encoded(numbers, 1)
    rows: Rows = {"memcpy": lambda: np.copyto(out, numbers)}
    rows["split only"] = lambda: planes.split(numbers, BF16)
    rows["merge only"] = lambda: planes.merge([exponents], raw, BF16, out)
    decoded = partial(planes.decode, [stream], raw, BF16, out)
    for path in rans.paths():
        rows[f"decode {path}"] = partial(decoded, path=path)
    for path in ("scalar", "auto"):
        rows[f"encode {path}"] = partial(encoded, numbers, 1, path)
    for count in threads:
        rows[f"decode auto, {count} threads"] = partial(decoded, threads=count)
        rows[f"encode auto, {count} threads"] = partial(encoded, numbers, count)
    streams, rest = small(numbers)
    rows["decode small"] = lambda: planes.decode(streams, rest, planes.SMALL["bfloat16"], out)
    rows["encode small"] = lambda: small(numbers)
    return rows


def peer_rows(numbers: rans.Bytes) -> Rows:
    """ZipNN on the same bytes, one thread."""
    coder = import_module("zipnn").ZipNN(bytearray_dtype="bfloat16", input_format="byte", threads=1)
    data = numbers.tobytes()
    packed = coder.compress(data)
    return {"ZipNN decode": lambda: coder.decompress(packed), "ZipNN encode": lambda: coder.compress(data)}


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
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--zipnn", action="store_true", help="beside zipnn 0.5.4, which must be installed")
    args = parser.parse_args()
    numbers = weights(args.weights)
    stream, raw = encoded(numbers, 1)
    streams, rest = small(numbers)
    print(machine())
    print(f"balanced {8 * (stream.size + raw.size) / args.weights:.3f} bits per weight, ", end="")
    print(f"small {8 * (sum(s.size for s in streams) + rest.size) / args.weights:.3f}\n")
    rows = rows_of(numbers, args.threads)
    if args.zipnn:
        rows |= peer_rows(numbers)
    times = best_times(rows, args.rounds)
    cells = [[name, f"{numbers.size / 1e9 / seconds:.2f}"] for name, seconds in times.items()]
    print(markdown(["row", "GB/s of bf16"], cells))


if __name__ == "__main__":
    main()
