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

from .bitmaps_reference import decode as decode_bitmaps
from .rans_reference import crc32c, decode
from .trellis_reference import decode as decode_trellis

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
RAW, CONSTANT, SAME, PLANES, BYTES, PIECES, CODES, TRELLIS = range(8)


class Reader:
    """Fields and parts of a coded tensor, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def number(self) -> int:
        """Seven bits in each byte, the low ones first; the last byte is below 128."""
        value, shift = 0, 0
        while True:
            byte = self.take("B")[0]
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    def parts(self, streams: list[bool]) -> list[bytes]:
        """The parts, after their lengths, the sums of those that are no streams, and that of the head."""
        lengths = [self.number() for _ in streams]
        sums = [None if stream else self.take("I")[0] for stream in streams]
        if crc32c(self.data[: self.at]) != self.take("I")[0]:
            raise ValueError("the head is damaged")
        out = []
        for length, crc in zip(lengths, sums, strict=True):
            part = self.data[self.at : self.at + length]
            if len(part) != length or (crc is not None and crc32c(part) != crc):
                raise ValueError("a part is damaged")
            self.at += length
            out.append(part)
        return out


def dequantize(data: bytes) -> torch.Tensor:
    """The tensor that a coded tensor holds, bit for bit; one that repeats another is refused."""
    reader = Reader(data)
    magic, kind, dtype, held, dimensions = reader.take("4s4B")
    if magic != b"lLT1":
        raise ValueError("no coded tensor")
    shape = tuple(reader.number() for _ in range(dimensions))
    whole, narrow, n = getattr(torch, DTYPES[dtype]), getattr(torch, DTYPES[held]), math.prod(shape)
    if kind == SAME:
        raise ValueError(f"the same as {same_as(data)}")
    if kind == PIECES:
        pieces = [dequantize(part) for part in reader.parts([True] * reader.number())]
        return torch.cat([piece.view(torch.uint8) for piece in pieces]).view(whole).view(shape)
    if kind == TRELLIS:
        transposed = reader.take("B")[0]
        values = torch.from_numpy(decode_trellis(reader.parts([True])[0])).to(whole)
        return values.t().contiguous() if transposed else values
    if kind == PLANES:
        out = planes(reader, n, shape, narrow.itemsize)
    elif kind == CODES:
        out = packed_codes(reader, n, whole.itemsize)
    elif kind == BYTES:
        flags = reader.take(f"{whole.itemsize}B")
        stored = zip(reader.parts([flag == 1 for flag in flags]), flags, strict=True)
        parts = [decode(part).astype(np.uint8) if flag else np.frombuffer(part, np.uint8) for part, flag in stored]
        out = np.stack(parts, axis=1)
    else:
        part = np.frombuffer(reader.parts([False])[0], np.uint8)
        out = np.tile(part, n) if kind == CONSTANT else part
    flat = torch.from_numpy(out.reshape(-1).copy()) if out.size else torch.empty(0, dtype=torch.uint8)
    return flat.view(narrow).to(whole).view(shape)


def same_as(data: bytes) -> str | None:
    """The name of the tensor that this one repeats, None when it stands alone."""
    reader = Reader(data)
    _, kind, _, _, dimensions = reader.take("4s4B")
    for _ in range(dimensions):
        reader.number()
    return reader.parts([False])[0].decode() if kind == SAME else None


def planes(reader: Reader, n: int, shape: tuple[int, ...], size: int) -> np.ndarray:
    """Numbers of `size` bytes as bytes, from the streams of their fields and their raw bits."""
    coder, *cut, axis, groups = reader.take("5B")
    if axis == 0:
        stream, raw = reader.parts([True, False])
        return numbers(stream, raw, n, size, coder, *cut).view(np.uint8)
    columns = shape[-1] if shape else 1
    table = np.empty((n // columns, columns), f"<u{size}")
    parts = reader.parts([True, *[True, False] * groups])
    group_of = decode(parts[0])
    for group in range(groups):
        members = np.flatnonzero(group_of == group)
        rows, cols = (members.size, columns) if axis == 1 else (table.shape[0], members.size)
        stream, raw = parts[1 + 2 * group : 3 + 2 * group]
        values = numbers(stream, raw, rows * cols, size, coder, *cut).reshape(rows, cols)
        table[(members, slice(None)) if axis == 1 else (slice(None), members)] = values
    return table.reshape(-1).view(np.uint8)


def packed_codes(reader: Reader, n: int, size: int) -> np.ndarray:
    """Integers of `size` bytes as bytes: lines of codes, low bits first, the rest of a line zeros."""
    bits, along, axis, _ = reader.take("4B")
    width, count = reader.number(), reader.number()
    lines = n // width if along == 1 else width
    parts = reader.parts([True] * (1 if axis == 0 else 2))
    contexts = None
    if axis:
        group_of = decode(parts[0]).astype(np.uint8)
        contexts = np.repeat(group_of, count) if axis == 1 else np.tile(group_of, lines)
    codes = decode(parts[-1], contexts).reshape(lines, count, 1)
    line = np.zeros((lines, 8 * size * n // lines), np.uint8)  # [lines, bits of a line]
    line[:, : count * bits] = (codes >> np.arange(bits) & 1).reshape(lines, count * bits)
    table = np.packbits(line, axis=1, bitorder="little").reshape(lines, -1, size)
    return (table if along == 1 else table.transpose(1, 0, 2)).reshape(-1)


def numbers(stream: bytes, raw: bytes, n: int, size: int, coder: int, sign_after: int, width: int) -> np.ndarray:
    """[n] numbers: the field of `width` bits on top, raw bits below; then the sign moves back to the top."""
    raw_bits = 8 * size - width
    packed = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little", count=n * raw_bits)
    places = np.int64(1) << np.arange(raw_bits, dtype=np.int64)
    low = packed.reshape(n, raw_bits).astype(np.int64) @ places if raw_bits else np.zeros(n, np.int64)
    fields = (decode_bitmaps if coder == 1 else decode)(stream)
    out = fields.astype(np.int64) << raw_bits | low
    below = 8 * size - 1 - sign_after  # bits below the place of the sign
    top, sign = out >> (below + 1) << below, out >> below & 1
    return (sign << (8 * size - 1) | top | out & ((1 << below) - 1)).astype(f"<u{size}")


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
