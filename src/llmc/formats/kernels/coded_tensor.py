"""A coded tensor, decoded as plainly as NumPy and torch allow: the definition of docs/formats/lossless.md.

It imports nothing of llmc. Errors are ValueErrors. `kernel.coded_tensor.read(file)` gives the tensors of a
`.llmc.safetensors` file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .rans_reference import crc32c, decode

DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float4_e2m1fn_x2",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
]
RAW, CONSTANT, SAME, PLANES, BYTES = range(5)


class Reader:
    """Fields and parts of a coded tensor, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def parts(self, count: int) -> Iterator[bytes]:
        """The parts, after their lengths, their sums (0 for a stream, which has its own) and that of the head."""
        lengths, sums = self.take(f"{count}Q"), self.take(f"{count}I")
        if crc32c(self.data[: self.at]) != self.take("I")[0]:
            raise ValueError("the head is damaged")
        for length, crc in zip(lengths, sums, strict=True):
            part = self.data[self.at : self.at + length]
            if len(part) != length or (crc and crc32c(part) != crc):
                raise ValueError("a part is damaged")
            self.at += length
            yield part


def dequantize(data: bytes) -> torch.Tensor:
    """The tensor that a coded tensor holds, bit for bit; one that repeats another is refused."""
    reader = Reader(data)
    magic, kind, dtype, held, dimensions = reader.take("4s4B")
    if magic != b"lLT1":
        raise ValueError("no coded tensor")
    shape = reader.take(f"{dimensions}Q")
    whole, narrow, n = getattr(torch, DTYPES[dtype]), getattr(torch, DTYPES[held]), math.prod(shape)
    if kind == SAME:
        raise ValueError(f"the same as {same_as(data)}")
    if kind == PLANES:
        out = planes(reader, n, shape, narrow.itemsize)
    elif kind == BYTES:
        flags = reader.take(f"{whole.itemsize}B")
        parts = [decode(p).astype(np.uint8) if f else np.frombuffer(p, np.uint8)
                 for p, f in zip(reader.parts(len(flags)), flags, strict=True)]  # fmt: skip
        out = np.stack(parts, axis=1)
    else:
        part = np.frombuffer(next(reader.parts(1)), np.uint8)
        out = np.tile(part, n) if kind == CONSTANT else part
    flat = torch.from_numpy(out.reshape(-1).copy()) if out.size else torch.empty(0, dtype=torch.uint8)
    return flat.view(narrow).to(whole).view(shape)


def same_as(data: bytes) -> str | None:
    """The name of the tensor that this one repeats, None when it stands alone."""
    reader = Reader(data)
    _, kind, _, _, dimensions = reader.take("4s4B")
    reader.take(f"{dimensions}Q")
    return next(reader.parts(1)).decode() if kind == SAME else None


def planes(reader: Reader, n: int, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Numbers of `size` bytes as bytes, from the streams of their fields and their raw bits."""
    sign_after, count = reader.take("2B")
    widths = reader.take(f"{count}B")
    axis, groups = reader.take("2B")
    if axis == 0:
        parts = list(reader.parts(count + 1))
        return numbers(parts, n, size, sign_after, widths).view(np.uint8)
    columns = shape[-1] if shape else 1
    table = np.empty((n // columns, columns), f"<u{size}")
    parts = list(reader.parts(1 + groups * (count + 1)))
    group_of = decode(parts[0])
    for group in range(groups):
        members = np.flatnonzero(group_of == group)
        own = parts[1 + group * (count + 1) :][: count + 1]
        rows, cols = (members.size, columns) if axis == 1 else (table.shape[0], members.size)
        values = numbers(own, rows * cols, size, sign_after, widths).reshape(rows, cols)
        table[(members, slice(None)) if axis == 1 else (slice(None), members)] = values
    return table.reshape(-1).view(np.uint8)


def numbers(parts: list[bytes], n: int, size: int, sign_after: int, widths: tuple[int, ...]) -> np.ndarray:
    """[n] numbers: fields from the top, then raw bits; the sign moves back to the top."""
    raw_bits = 8 * size - sum(widths)
    packed = np.unpackbits(np.frombuffer(parts[-1], np.uint8), bitorder="little", count=n * raw_bits)
    weights = np.int64(1) << np.arange(raw_bits, dtype=np.int64)
    out = packed.reshape(n, raw_bits).astype(np.int64) @ weights if raw_bits else np.zeros(n, np.int64)
    first = None
    at = 8 * size
    for part, width in zip(parts[:-1], widths, strict=True):
        field = decode(part, first) if part[6] == 1 else decode(part)
        first = field if first is None else first
        at -= width
        out |= field.astype(np.int64) << at
    low = 8 * size - 1 - sign_after  # bits below the place of the sign
    top = out >> (low + 1) << low
    sign = out >> low & 1
    return (sign << (8 * size - 1) | top | out & ((1 << low) - 1)).astype(f"<u{size}")


def read(file: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a `.llmc.safetensors` file; one that repeats a tensor of another file is left out."""
    data = Path(file).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    coded = {name: data[8 + length + a : 8 + length + b] for name, (a, b) in _places(header)}
    twins = {name: other for name, blob in coded.items() if (other := same_as(blob)) is not None}
    out = {name: dequantize(blob) for name, blob in coded.items() if name not in twins}
    return out | {name: out[other].clone() for name, other in twins.items() if other in out}


def _places(header: dict[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, entry in header.items():
        yield name, tuple(entry["data_offsets"])
