"""Speed of the GPU decoders on bf16 weights: both layouts, several chunk sizes and lanes, beside a copy on the device.

    python benchmarks/lossless_gpu.py [--weights 134217728] [--rounds 9]

Streams and raw bits are on the device before the clock starts; a call ends when the numbers are there and blocks or
chunks are known to be whole. All rows run in turn, round by round, and the best round counts. GB/s are 10**9 bytes of
bf16 that come out, per second of wall time. What is decoded is compared with the weights first. Without a GPU one line
says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import torch
from lossless_cpu import weights
from measuring import best_times, markdown

from llmc.encodings.coding import bitmaps, gpu, planes
from llmc.errors import UnsupportedError
from llmc.files.bytes import Bytes

BF16 = planes.BALANCED["bfloat16"]
CHUNKS, LANES = (1 << 12, 1 << 14, 1 << 16), (32, 64, 128)
Row = tuple[str, str, str, float]
"""Layout, chunk size and lanes in words, and bits per weight."""


def rows_of(numbers: Bytes, device: torch.device, settle: Callable[[], object]) -> dict[Row, Callable[[], object]]:
    """What is timed. `settle` waits for the device.

    Raises:
        RuntimeError: a decoder gives other numbers.
    """
    n = numbers.size // 2
    expected = torch.from_numpy(numbers).view(torch.int16).to(device)
    place = torch.empty_like(expected)
    rows: dict[Row, Callable[[], object]] = {}

    def add(layout: str, chunk: str, lanes: str, coded: tuple[Bytes, Bytes]) -> None:
        pieces, raw = gpu.prepare(coded[0], n, device), torch.tensor(coded[1], device=device)
        row = (layout, chunk, lanes, 8 * (coded[0].size + coded[1].size) / n)
        if not torch.equal(gpu.run(pieces, raw), expected):
            raise RuntimeError(f"{row}: other numbers come out")
        rows[row] = lambda: (gpu.run(pieces, raw), settle())

    rows["copy on the device", "", "", 16.0] = lambda: (place.copy_(expected), settle())
    add("bitmaps", "", "", bitmaps.encode_numbers(numbers))
    for chunk, lanes in product(CHUNKS, LANES):
        add("rANS, balanced", f"{chunk:,}", str(lanes), planes.encode(numbers, BF16, lanes=lanes, chunk_symbols=chunk))
    return rows


def table(rows: dict[Row, Callable[[], object]], size: int, rounds: int) -> str:
    """The figures, as markdown. `size`: bytes of bf16."""
    seconds = best_times(list(rows.values()), rounds)
    cells = [
        [layout, chunk, lanes, f"{bits:.3f}", f"{size / 1e9 / s:.1f}", f"{seconds[0] / s:.2f}"]
        for (layout, chunk, lanes, bits), s in zip(rows, seconds, strict=True)
    ]
    return markdown(["layout", "chunk", "lanes", "bits per weight", "GB/s of bf16", "of the copy"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=1 << 27)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    try:
        device = gpu.require("cuda")
    except UnsupportedError as error:
        print(f"nothing was measured: {error}")
        return
    numbers = weights(args.weights, None)
    print({"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "weights": args.weights}, "\n")
    print(table(rows_of(numbers, device, torch.cuda.synchronize), numbers.size, args.rounds))


if __name__ == "__main__":
    main()
