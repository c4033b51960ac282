"""Speed of the lossless coders on bf16 weights, beside memcpy, planes without entropy coding, and ZipNN.

    python benchmarks/lossless_cpu.py [--model FOLDER] [--weights 16777216] [--threads 1 2] [--rounds 7] [--zipnn]

All rows run in turn, round by round in one process through Python, and the best round counts, so that a busy machine
harms all alike. GB/s are 10**9 bytes of bf16 per second of wall time. Rows write to memory that was written before;
those "to new memory" allocate their result each time, as ZipNN does, and pay for its pages. Weights are the bf16 ones
of a model, repeated, or Gaussian with log-normal scales of rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from measuring import best_times, machine, markdown

from llmc import read_tensors
from llmc.encodings.coding import bitmaps, planes, rans
from llmc.files.bytes import Bytes, as_bytes

HOW = {"balanced": planes.BALANCED["bfloat16"], "small": planes.SMALL["bfloat16"], "fast": planes.FAST["bfloat16"]}


@dataclass(frozen=True)
class Row:
    """What is timed.

    Attributes:
        peer: ZipNN's row of the same work, "encode" or "decode"; "" where it has none.
    """

    name: str
    threads: int
    run: Callable[[], object]
    peer: str = ""


def weights(n: int, model: Path | None) -> Bytes:
    """bf16 numbers as bytes [2 n]."""
    if model is not None:
        tensors = [own.reshape(-1) for own in read_tensors(model).values() if own.dtype == torch.bfloat16]
        return np.resize(as_bytes(torch.cat(tensors)), 2 * n)
    rng = np.random.default_rng(0)
    scales = np.repeat(np.exp(0.3 * rng.standard_normal(-(-n // 4096))), 4096)[:n]
    values = (rng.standard_normal(n) * 0.02 * scales).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def rows_of(numbers: Bytes, threads: list[int]) -> list[Row]:
    out = torch.empty(numbers.size, dtype=torch.uint8).numpy()  # where loaders put tensors: aligned to cache lines
    exponents, raw = planes.split(numbers, HOW["balanced"])
    rows = [Row("memcpy", 1, lambda: np.copyto(out, numbers)), Row("memcpy to new memory", 1, numbers.copy)]
    for count in threads:
        rows.append(Row("split only", count, partial(planes.split, numbers, HOW["balanced"], threads=count)))
        rows.append(
            Row("merge only", count, partial(planes.merge, exponents, raw, HOW["balanced"], out, threads=count))
        )
    for mode, how in HOW.items():
        rows += _coder(mode, numbers, out, how, threads)
    return rows


def _coder(mode: str, numbers: Bytes, out: Bytes, how: planes.Split, threads: list[int]) -> list[Row]:
    fast = mode == "fast"
    encode = partial(bitmaps.encode_numbers if fast else planes.encode, numbers, how)
    stream, raw = encode()

    def decode(place: Bytes | None = None, **options: object) -> None:
        target = np.empty_like(numbers) if place is None else place
        if fast:
            bitmaps.decode_numbers(stream, raw, target, how, **options)  # type: ignore[arg-type]
        else:
            planes.decode(stream, raw, how, target, **options)  # type: ignore[arg-type]

    decode(out)
    if not np.array_equal(out, numbers):
        raise SystemExit(f"{mode} does not give the weights back")
    rows = [
        Row(f"{mode}: decode {path}", 1, partial(decode, out, path=path))
        for path in (bitmaps if fast else rans).paths()
    ]
    for count in threads:
        rows.append(Row(f"{mode}: decode", count, partial(decode, out, threads=count), "decode"))
        rows.append(Row(f"{mode}: decode to new memory", count, partial(decode, threads=count), "decode"))
        rows.append(Row(f"{mode}: encode", count, partial(encode, threads=count), "encode"))
    return rows


def peer_rows(numbers: Bytes, threads: list[int]) -> list[Row]:
    """ZipNN on the same bytes."""
    rows, data = [], numbers.tobytes()
    for count in threads:
        coder = import_module("zipnn").ZipNN(bytearray_dtype="bfloat16", input_format="byte", threads=count)
        packed = coder.compress(data)
        rows.append(Row("ZipNN: decode", count, partial(coder.decompress, packed), "decode"))
        rows.append(Row("ZipNN: encode", count, partial(coder.compress, data), "encode"))
    return rows


def entropy(values: np.ndarray) -> float:
    counts = np.bincount(values)
    p = counts[counts > 0] / values.size
    return float(-(p * np.log2(p)).sum())


def sizes(numbers: Bytes) -> str:
    """Bits per weight of both modes, everything counted, beside the entropies that they aim at."""
    bits = numbers.view(np.uint16)
    exponents, joint = 8 + entropy(bits >> 7 & 255), entropy(bits)
    n = bits.size
    made = [planes.encode(numbers, HOW[mode]) for mode in ("balanced", "small")]
    made.append(bitmaps.encode_numbers(numbers, HOW["fast"]))
    balanced, small, fast = (8 * (stream.size + raw.size) / n for stream, raw in made)
    symbols = [int((rans.describe(stream, n).tables > 0).sum()) for stream, _ in made[:2]]
    paths = " and ".join(f"{rans.path_of(made[i][0], n)} ({symbols[i]} symbols)" for i in (0, 1))
    return (
        f"balanced {balanced:.4f} bits per weight, {100 * (balanced / exponents - 1):.3f} % above H(exponent) + 8\n"
        f"small {small:.4f} bits per weight, {100 * (small / joint - 1):.3f} % above H(sign, exponent, mantissa)\n"
        f"fast {fast:.4f} bits per weight\n"
        f"what decodes the first two where no path is named: {paths}\n"
    )


def table(rows: list[Row], times: list[float], nbytes: int) -> str:
    peers = {(row.peer, row.threads): s for row, s in zip(rows, times, strict=True) if row.name.startswith("ZipNN")}
    cells = []
    for row, seconds in zip(rows, times, strict=True):
        peer = peers.get((row.peer, row.threads))
        ratio = "" if peer is None else f"{peer / seconds:.2f}"
        cells.append([row.name, str(row.threads), f"{nbytes / 1e9 / seconds:.2f}", f"{times[0] / seconds:.2f}", ratio])
    return markdown(["row", "threads", "GB/s of bf16", "of memcpy", "times ZipNN"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder whose bf16 weights are taken")
    parser.add_argument("--weights", type=int, default=1 << 24)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--zipnn", action="store_true", help="beside zipnn 0.5.4, which must be installed")
    args = parser.parse_args()
    numbers = weights(args.weights, args.model)
    print(machine())
    print(sizes(numbers))
    rows = rows_of(numbers, args.threads) + (peer_rows(numbers, args.threads) if args.zipnn else [])
    print(table(rows, best_times([row.run for row in rows], args.rounds), numbers.size))


if __name__ == "__main__":
    main()
