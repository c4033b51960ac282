"""Both layouts through the GPU decoders against the CPU: on a GPU, or on the CPU in Triton's interpreter.

    TRITON_INTERPRET=1 python tests/gpu_cases.py cpu
    python tests/gpu_cases.py cuda

Prints a line for each case; raises on the first difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from trellis_cases import Layout, Shape, matrix, stream_of

from llmc.encodings.coding import bitmaps, gpu, planes, rans, trellis_stream
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes

BF16, SMALL = planes.BALANCED["bfloat16"], planes.SMALL["bfloat16"]


def numbers(n: int) -> np.ndarray:
    """bf16 as uint16: Gaussian, and all kinds of exponents."""
    rng = np.random.default_rng(n)
    values = (rng.standard_normal(n).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    values[::97] = rng.integers(0, 1 << 16, values[::97].size)
    return values


def skewed(n: int, alphabet: int) -> Bytes:
    rng = np.random.default_rng(alphabet)
    weights = rng.pareto(1.0, alphabet) + 1e-4
    return rng.choice(alphabet, n, p=weights / weights.sum()).astype(np.uint8)


def streams() -> Iterator[tuple[str, np.ndarray, Any]]:
    """Name, symbols and stream."""
    for n in (0, 1, 64, 4097, 9000):
        yield f"bitmaps of {n}", skewed(n, 40), bitmaps.encode(skewed(n, 40))
    yield "bitmaps, few codes", skewed(5000, 256), bitmaps.encode(skewed(5000, 256))
    for bits, lanes, chunk in ((12, 4, 64), (12, 32, 256), (13, 64, 512), (14, 16, 256), (12, 256, 512)):
        symbols = skewed(20 * lanes + 3, 40)
        stream = rans.encode(symbols, probability_bits=bits, lanes=lanes, chunk_symbols=chunk)
        yield f"rans of {bits} bits, {lanes} lanes, chunks of {chunk}", symbols, stream
    rare = np.full(20_000, 7, np.uint8)
    rare[[3, 500, 501, 777]] = 0, 9, 200, 201
    yield "rans with escapes", rare, rans.encode(rare, lanes=256, chunk_symbols=1 << 14)
    dominant = np.concatenate([np.full(150, 5, np.uint8), skewed(3, 9)])
    yield "rans, 14 bits, one symbol dominates", dominant, rans.encode(dominant, probability_bits=14, lanes=4)
    constant = np.full(1500, 42, np.uint8)
    yield "rans, one symbol", constant, rans.encode(constant, chunk_symbols=512, lanes=64)
    yield "rans of nothing", constant[:0], rans.encode(constant[:0])
    wide = np.round(np.random.default_rng(5).standard_normal(700) * 60).astype(np.int16)
    yield "rans, wide", wide, rans.encode_wide(wide, lanes=32, chunk_symbols=512)


def damaged(stream: Any, at: int) -> np.ndarray:
    data = np.array(stream)
    data[at] ^= 0x5A
    return data


def check(name: str, ours: torch.Tensor, expected: np.ndarray) -> None:
    if not np.array_equal(ours.cpu().numpy(), expected.view(ours.cpu().numpy().dtype)):
        raise SystemExit(f"{name}: differs")
    print("equal", name)


def refused(name: str, decode: Callable[[], object]) -> None:
    try:
        decode()
    except InputError as error:
        print("refused", name, error)
        return
    raise SystemExit(f"{name}: accepted")


def trellises(device: str) -> None:
    """Tiles down and across, columns that are left over, classes, escapes."""
    cases = (
        (Shape(rows=21, columns=9, segment=8, row_classes=2, column_classes=2), Layout(tile=8, segments=2)),
        (Shape(rows=9, columns=5, states=1), Layout(lanes=8)),
        (Shape(rows=8, columns=6, states=64, spread=300.0), Layout()),
    )
    for shape, layout in cases:
        made = matrix(shape)
        stream = stream_of(made, layout)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.int16):
            if dtype == torch.int16:
                expected = made.codes.numpy()
            else:
                values = torch.empty(made.shape, dtype=dtype)
                trellis_stream.decode_into(stream, made.shape, dtype, as_bytes(values), threads=1, path="auto")
                expected = values.view(torch.int16 if dtype.itemsize == 2 else torch.int32).numpy()
            found = gpu.run_trellis(stream, made.shape, dtype, device)
            check(
                f"trellis of {shape.states} states in {dtype}", found.view(torch.from_numpy(expected).dtype), expected
            )
    made = matrix(Shape())
    stream = stream_of(made)
    first_word = trellis_stream.describe(stream, made.shape)[0]["chunks"][0][0] + 4 * Layout().lanes
    refused("trellis", lambda: gpu.run_trellis(damaged(stream, first_word), made.shape, torch.int16, device))


def main(device: str) -> None:
    for name, symbols, stream in streams():
        check(name, gpu.run(gpu.prepare(stream, symbols.size, device)), symbols)
    values = numbers(4300)
    n = values.size
    stream, raw = bitmaps.encode_numbers(values)
    check("bf16 from bitmaps", gpu.run(gpu.prepare(stream, n, device), raw), values)
    values = numbers(1300)
    n = values.size
    for lanes in (32, 64):
        stream, raw = planes.encode(values, BF16, lanes=lanes, chunk_symbols=512)
        check(f"bf16 from rans, {lanes} lanes", gpu.run(gpu.prepare(stream, n, device), raw), values)
        stream, raw = planes.encode(values, SMALL, lanes=lanes, chunk_symbols=512, probability_bits=14)
        check(f"bf16 from rans, small, {lanes} lanes", gpu.run(gpu.prepare(stream, n, device), raw, SMALL), values)
    trellises(device)
    symbols = skewed(700, 40)
    stream = rans.encode(symbols, lanes=32, chunk_symbols=512)
    first_word = rans.describe(stream, 700).head_bytes + 4 * 32
    refused("rans", lambda: gpu.run(gpu.prepare(damaged(stream, first_word), 700, device)))
    refused("bitmaps", lambda: gpu.run(gpu.prepare(damaged(bitmaps.encode(symbols), -1), 700, device)))


if __name__ == "__main__":
    main(sys.argv[1])
