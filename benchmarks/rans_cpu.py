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

BF16, SMALL = planes.BALANCED["bfloat16"], planes.SMALL["bfloat16"]
Rows = dict[str, Callable[[], object]]


def weights(n: int) -> rans.Bytes:
    """bf16 numbers as bytes [2 n]."""
    rng = np.random.default_rng(0)
    scales = np.repeat(np.exp(0.3 * rng.standard_normal(-(-n // 4096))), 4096)[:n]
    values = (rng.standard_normal(n) * 0.02 * scales).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def rows_of(numbers: rans.Bytes, threads: list[int]) -> Rows:
    """What is timed, by name."""
    out, (exponents, raw) = np.empty_like(numbers), planes.split(numbers, BF16)
    rows: Rows = {"memcpy": lambda: np.copyto(out, numbers)}
    rows["split only"] = lambda: planes.split(numbers, BF16)
    rows["merge only"] = lambda: planes.merge(exponents, raw, BF16, out)
    for mode, how in (("balanced", BF16), ("small", SMALL)):
        encode = partial(planes.encode, numbers, how)
        decode = partial(planes.decode, *encode(), how, out)
        for path in rans.paths():
            rows[f"{mode}: decode {path}"] = partial(decode, path=path)
        for count in threads:
            rows[f"{mode}: decode, {count} threads"] = partial(decode, threads=count)
        rows[f"{mode}: encode scalar"] = partial(encode, path="scalar")
        for count in threads:
            rows[f"{mode}: encode, {count} threads"] = partial(encode, threads=count)
    return rows


def peer_rows(numbers: rans.Bytes) -> Rows:
    """ZipNN on the same bytes, one thread."""
    coder = import_module("zipnn").ZipNN(bytearray_dtype="bfloat16", input_format="byte", threads=1)
    data = numbers.tobytes()
    packed = coder.compress(data)
    return {"ZipNN decode": lambda: coder.decompress(packed), "ZipNN encode": lambda: coder.compress(data)}


def entropy(values: np.ndarray) -> float:
    counts = np.bincount(values)
    p = counts[counts > 0] / values.size
    return float(-(p * np.log2(p)).sum())


def sizes(numbers: rans.Bytes) -> str:
    """Bits per weight of both modes, everything counted, beside the entropies that they aim at."""
    bits = numbers.view(np.uint16)
    exponents, joint = 8 + entropy(bits >> 7 & 255), entropy(bits)
    n = bits.size
    made = [planes.encode(numbers, how) for how in (BF16, SMALL)]
    balanced, small = (8 * (stream.size + raw.size) / n for stream, raw in made)
    symbols = [int((rans.describe(stream, n).tables > 0).sum()) for stream, _ in made]
    paths = " and ".join(f"{rans.path_of(made[i][0], n)} ({symbols[i]} symbols)" for i in (0, 1))
    return (
        f"balanced {balanced:.4f} bits per weight, {100 * (balanced / exponents - 1):.3f} % above H(exponent) + 8\n"
        f"small {small:.4f} bits per weight, {100 * (small / joint - 1):.3f} % above H(sign, exponent, mantissa)\n"
        f"what decodes them where no path is named: {paths}\n"
    )


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
    print(machine())
    print(sizes(numbers))
    rows = rows_of(numbers, args.threads)
    if args.zipnn:
        rows |= peer_rows(numbers)
    times = best_times(rows, args.rounds)
    cells = [[name, f"{numbers.size / 1e9 / seconds:.2f}"] for name, seconds in times.items()]
    print(markdown(["row", "GB/s of bf16"], cells))


if __name__ == "__main__":
    main()
