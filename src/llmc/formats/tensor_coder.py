"""How a tensor is coded best: what `coded_tensor` decodes, chosen by measured bytes.

`balanced` codes exponents and keeps the rest, `small` takes the top of the mantissa into the symbol and gives rows or
columns of different scale tables of their own, where that pays. Nothing is ever larger than raw bytes and a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from llmc.formats import planes, rans
from llmc.formats.coded_tensor import (
    AXES,
    BYTES,
    COLUMNS,
    CONSTANT,
    GROUPS,
    INTEGERS,
    KINDS,
    NO_AXIS,
    PLANES,
    RAW,
    ROWS,
    SAME,
    SIZES,
    Head,
    pack_head,
)
from llmc.formats.planes import Split
from llmc.formats.rans import Bytes, as_bytes

MODES = ("balanced", "small")
SAMPLE = 1 << 18
"""Elements from the middle of a tensor that decide between ways to cut it."""
CLASSES = (16, 8, 4, 2)
WORTH = 1e-4
"""Share of the tensor's bytes that groups must save: they cost a pass over memory when decoding."""
THOROUGH = 0.02
"""Share of the bits that coding the low bytes too must save: it takes several times as long to decode."""
TABLE_BYTES = 160
"""About what a table and the head of its stream cost."""


@dataclass(frozen=True)
class Coded:
    """A coded tensor and what it is made of.

    Attributes:
        pieces: its bytes, in order.
        head: as parsed back.
        entropies: PLANES: bits per element of each coded plane by itself, order 0.
        limit_bits: bits per element that this way to cut has as its limit: those entropies and the raw bits.
        gained_bytes: what groups of rows or columns saved, by exact entropies.
    """

    pieces: list[Bytes]
    head: Head
    entropies: tuple[float, ...] = ()
    limit_bits: float | None = None
    gained_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return sum(piece.size for piece in self.pieces)

    def row(self) -> dict[str, Any]:
        """For a report."""
        return {
            "kind": KINDS[self.head.kind],
            "held": self.head.held,
            "coded_bits": list(self.head.split.coded) if self.head.split else [],
            "entropies": [round(x, 6) for x in self.entropies],
            "limit_bits": None if self.limit_bits is None else round(self.limit_bits, 6),
            "axis": AXES[self.head.axis],
            "groups": self.head.groups,
            "gained_bytes": self.gained_bytes,
        }


def encode(tensor: torch.Tensor, mode: str = "balanced", *, threads: int = 1) -> Coded:
    """The coded tensor of any tensor, on the CPU and contiguous.

    Args:
        mode: one of MODES.
    """
    data, dtype = as_bytes(tensor), str(tensor.dtype).removeprefix("torch.")
    plain = Head(RAW, dtype, tuple(tensor.shape), dtype)
    raw = _coded(plain, [data])
    if data.size <= SIZES[dtype]:
        return raw
    if _constant(data, SIZES[dtype]):
        return _coded(replace(plain, kind=CONSTANT), [data[: SIZES[dtype]]])
    if dtype in planes.BALANCED:
        return min(_numbers(tensor, plain, mode, threads), raw, key=lambda coded: coded.nbytes)
    return min(_integers(data, plain, threads), raw, key=lambda coded: coded.nbytes)


def repeat(tensor: torch.Tensor, name: str) -> Coded:
    """A coded tensor that says: the same as `name`."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _coded(Head(SAME, dtype, tuple(tensor.shape), dtype), [as_bytes(name.encode())])


def entropy(counts: Any) -> float:
    """Bits per symbol of a histogram."""
    counts = np.asarray(counts, np.float64).reshape(-1)
    counts = counts[counts > 0]
    total = counts.sum()
    return float(-(counts * np.log2(counts / total)).sum() / total) if total else 0.0


def _coded(head: Head, parts: list[Bytes], **facts: Any) -> Coded:
    sums = tuple(0 if stream else rans.crc32c(part) for part, stream in zip(parts, head.streams, strict=True))
    head = replace(head, lengths=tuple(part.size for part in parts), sums=sums)
    first = pack_head(head)
    return Coded([as_bytes(first), *parts], replace(head, size=len(first)), **facts)


def _constant(data: Bytes, size: int) -> bool:
    elements = data.reshape(-1, size)
    return all(bool((elements[a:b] == elements[0]).all()) for a, b in ((0, 4096), (4096, None)))


def _numbers(tensor: torch.Tensor, plain: Head, mode: str, threads: int) -> Coded:
    held = _held(tensor)
    values = tensor if held is None else tensor.to(held)
    name = str(values.dtype).removeprefix("torch.")
    how = _best_split(as_bytes(values), name, mode)
    axis, group_of, gained = _best_groups(values, how, plain, mode)
    parts: list[Bytes] = [] if group_of is None else [rans.encode(group_of)]
    bits = np.zeros(len(how.coded))
    groups = [values] if group_of is None else list(_members(values, plain, axis, group_of))
    for own in groups:
        streams, entropies = _streams(as_bytes(own), how, threads)
        parts += streams
        bits += np.array(entropies) * (own.numel() / values.numel())
    head = replace(plain, kind=PLANES, held=name, split=how, axis=axis, groups=len(groups))
    return _coded(
        head, parts, entropies=tuple(bits.tolist()), limit_bits=float(bits.sum()) + how.raw_bits, gained_bytes=gained
    )


def _members(values: torch.Tensor, head: Head, axis: int, group_of: Bytes) -> Iterator[torch.Tensor]:
    """The rows or columns of each group."""
    table = values.view(INTEGERS[values.dtype.itemsize]).reshape(head.table)
    for group in range(int(group_of.max()) + 1):
        yield table.index_select(axis - 1, torch.from_numpy(np.flatnonzero(group_of == group))).contiguous()


def _streams(data: Bytes, how: Split, threads: int) -> tuple[list[Bytes], tuple[float, ...]]:
    """The parts of one group, and the entropies of its planes."""
    fields, raw = planes.split(data, how, threads=threads)
    parts, bits = [], []
    for number, field in enumerate(fields):
        select = rans.Contexts(fields[0]) if number else None
        parts.append(rans.encode(field, select=select, threads=threads))
        bits.append(_field_entropy(field, fields[0] if number else None))
    return [*parts, raw], tuple(bits)


def _field_entropy(field: Bytes, context: Bytes | None) -> float:
    counts = rans.histogram(field, context)
    if context is None:
        return entropy(counts)
    totals = counts.sum(axis=1)
    return sum(entropy(row) * float(n) for row, n in zip(counts, totals, strict=True) if n) / max(1, field.size)


def _integers(data: Bytes, plain: Head, threads: int) -> Coded:
    """Each byte of an element as a stream, or as it is."""
    parts, flags = [], []
    for plane in data.reshape(-1, SIZES[plain.dtype]).T:
        own = np.ascontiguousarray(plane)
        stream = rans.encode(own, threads=threads) if entropy(rans.histogram(own)) < 8 else own
        flags.append(stream.size < own.size)
        parts.append(stream if flags[-1] else own)
    return _coded(replace(plain, kind=BYTES, coded=tuple(flags)), parts)


def _held(tensor: torch.Tensor) -> torch.dtype | None:
    """The narrower dtype that holds all numbers of a float32 tensor bit for bit."""
    if tensor.dtype != torch.float32:
        return None
    flat = tensor.reshape(-1)
    for dtype in (torch.bfloat16, torch.float16):
        if all(_exact(part, dtype) for part in (flat[:4096], flat)):
            return dtype
    return None


def _exact(values: torch.Tensor, dtype: torch.dtype) -> bool:
    # Some processors change the payload of a NaN on the way to float16 and back; bfloat16 is cut off bits.
    if dtype == torch.bfloat16:
        return not bool((values.view(torch.int32) & 0xFFFF).any())
    narrow = values.to(dtype)
    back = narrow.to(torch.float32).view(torch.int32)
    return bool((back == values.view(torch.int32)).all()) and not bool(narrow.isnan().any())


def _best_split(data: Bytes, held: str, mode: str) -> Split:
    """The mode's split, or one that codes all bytes where a sample says that the raw ones are not noise."""
    usual = (planes.SMALL if mode == "small" else planes.BALANCED)[held]
    size = SIZES[held]
    n = data.size // size
    begin = max(0, n // 2 - SAMPLE // 2) * size
    sample = data[begin : begin + SAMPLE * size]
    candidates = [usual, *_thorough(held)]
    return min(candidates, key=lambda how: _estimate(sample, how) + (THOROUGH * 8 * size if how is not usual else 0.0))


def _thorough(held: str) -> Iterator[Split]:
    size = SIZES[held]
    if size > 1:
        yield Split(size, 8 * size - 1, (8,) * size)


def _estimate(sample: Bytes, how: Split) -> float:
    """Bits per element, tables included: a byte for each frequency."""
    fields, _ = planes.split(sample, how)
    bits = float(how.raw_bits)
    for number, field in enumerate(fields):
        context = fields[0] if number else None
        table = np.count_nonzero(rans.histogram(field, context))
        bits += _field_entropy(field, context) + 8 * table / max(1, field.size)
    return bits


def _best_groups(values: torch.Tensor, how: Split, head: Head, mode: str) -> tuple[int, Bytes | None, int]:
    """The axis, the group of each row or column, and the bytes saved; no groups where nothing is."""
    rows, columns = head.table
    if mode != "small" or min(rows, columns) < 2 or head.n < 1 << 16:
        return NO_AXIS, None, 0
    field = planes.split(values, Split(how.bytes, how.sign_after, how.coded[:1]))[0][0].reshape(rows, columns)
    together = entropy(rans.histogram(field.reshape(-1))) * head.n / 8
    best: tuple[float, int, Bytes | None] = (max(WORTH * head.n * how.bytes, 1), NO_AXIS, None)
    for axis in (ROWS, COLUMNS):
        for group_of in _classes(field, axis):
            context = np.repeat(group_of, columns) if axis == ROWS else np.tile(group_of, rows)
            counts = rans.histogram(field.reshape(-1), context)
            apart = sum(entropy(row) * float(row.sum()) for row in counts if row.any()) / 8
            cost = (int(group_of.max()) + 1) * TABLE_BYTES + group_of.size
            best = max(best, (together - apart - cost, axis, group_of), key=lambda entry: entry[0])
    return best[1], best[2], int(best[0]) if best[2] is not None else 0


def _classes(field: Bytes, axis: int) -> Iterator[Bytes]:
    """Rows or columns in classes of equal size by their mean exponent, fewer and fewer."""
    mean = field.mean(axis=1 if axis == ROWS else 0)
    rank = np.empty(mean.size, np.int64)
    rank[np.argsort(mean, kind="stable")] = np.arange(mean.size)
    for count in CLASSES:
        if count <= min(GROUPS, mean.size):
            yield (rank * count // mean.size).astype(np.uint8)
