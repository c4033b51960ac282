"""How a tensor is coded best: what `coded_tensor` decodes, chosen by measured bytes.

`balanced` codes exponents and keeps the rest, `small` takes the top of the mantissa into the symbol and gives rows or
columns of different scale tables of their own, where that pays, `fast` codes exponents at a fixed length. Integers
that hold packed codes are cut into these, but in `fast`. Nothing is ever larger than raw bytes and a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from llmc.encodings.coding import bitmaps, code_choice, packed_codes, planes, rans, trellis_stream
from llmc.encodings.coding.coded_head import (
    BITMAPS,
    BYTES,
    CODERS,
    CODES,
    COLUMNS,
    CONSTANT,
    INTEGERS,
    KINDS,
    MOST_PIECES,
    NO_AXIS,
    PIECES,
    PLANES,
    RAW,
    ROWS,
    SAME,
    SIZES,
    TRELLIS,
    Head,
    pack_head,
)
from llmc.encodings.coding.planes import Split
from llmc.encodings.encoded import Encoded
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import LateTable, np, torch

MODES = ("balanced", "small", "fast")
BITS = (12, 14)
"""Of probabilities, for narrow fields and for those of more than 8 bits."""
CLASSES = 16
"""Most groups of rows or columns: a power of two; half as many, and so on, are tried too."""
WORTH = 1e-4
"""Share of the tensor's bytes that groups must save: they cost a pass over memory when decoding."""
INTEGER_CODES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
"""Dtypes that codes are packed into."""
SAMPLE = 1 << 16
NOISE = 7.5
"""Entropy of a byte below which it is coded in any mode; that of the sign and a mantissa of 7 bits is 7.9."""
BLOCK = 1 << 12
"""Elements that are looked at together for being constant, or narrower numbers."""
RUN = 8
"""Fewest such blocks, of one kind and in a row, that are coded by themselves."""
LOOKS = 16
"""Elements of a block that are looked at first."""
BFLOATS, HALVES, CONSTANTS = 1, 2, 1 << 40
NARROW = LateTable(lambda: {BFLOATS: torch.bfloat16, HALVES: torch.float16})
FEW = 1 << 18
TABLE_BYTES = 160
"""About what a table and the head of its stream cost."""


@dataclass(frozen=True)
class Coded:
    """A coded tensor and what it is made of.

    Attributes:
        pieces: its bytes, in order.
        head: as parsed back.
        entropy: PLANES: bits per element of the coded fields, order 0 in each group.
        limit_bits: bits per element that this way to cut has as its limit: that entropy and the raw bits.
        gained_bytes: what groups of rows or columns saved, by exact entropies.
    """

    pieces: list[Bytes]
    head: Head
    entropy: float | None = None
    limit_bits: float | None = None
    gained_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return sum(piece.size for piece in self.pieces)

    def joined(self) -> Bytes:
        """Its bytes in one array."""
        return np.concatenate(self.pieces)

    def row(self) -> dict[str, Any]:
        """For a report."""
        return {
            "kind": KINDS[self.head.kind],
            "held": self.head.held,
            "coder": CODERS[self.head.coder] if self.head.kind == PLANES else None,
            "coded_bits": self.head.split.coded if self.head.split else self.head.cut.bits if self.head.cut else 0,
            "entropy": None if self.entropy is None else round(self.entropy, 6),
            "limit_bits": None if self.limit_bits is None else round(self.limit_bits, 6),
            "axis": self.head.members,
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
    pieces, held = _pieces(tensor)
    if len(pieces) > 1:
        return _in_pieces(tensor.reshape(-1), pieces, plain, mode, threads)
    tried = [raw]
    if dtype in planes.BALANCED:
        tried.append(_numbers(tensor if held is None else tensor.to(held), plain, mode, threads))
    if dtype not in planes.BALANCED or _low_bytes_say_something(data, SIZES[dtype]):
        tried.append(_integers(data, plain, threads))
    if dtype in INTEGER_CODES and mode != "fast":
        tried += _codes(data, plain, threads)
    return min(tried, key=lambda coded: coded.nbytes)


def _in_pieces(flat: torch.Tensor, pieces: list[tuple[int, int]], plain: Head, mode: str, threads: int) -> Coded:
    coded = [encode(flat[a:b], mode, threads=threads) for a, b in pieces]
    limits = [(own.limit_bits or 8 * own.nbytes / own.head.n) * own.head.n for own in coded]
    parts = [np.concatenate(own.pieces) for own in coded]
    head = replace(plain, kind=PIECES, pieces=len(parts))
    return _coded(head, parts, limit_bits=sum(limits) / plain.n)


def _pieces(tensor: torch.Tensor) -> tuple[list[tuple[int, int]], torch.dtype | None]:
    """Where a tensor begins and ends to be constant, or to hold narrower numbers: rows that were never trained.

    With it, for a tensor that is one piece, the narrower dtype that holds all its numbers.
    """
    n, size = tensor.numel() // BLOCK, BLOCK
    whole = [(0, tensor.numel())]
    if n < 2 * RUN or tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return whole, _held(tensor)
    bits = tensor.reshape(-1)[: n * size].view(INTEGERS[tensor.dtype.itemsize]).view(n, size)
    seen = bits[:, :: size // LOOKS]  # trained numbers show here already that they are neither
    kind = torch.where((seen == seen[:, :1]).all(1), CONSTANTS, 0)
    if tensor.dtype == torch.float32:
        kind = torch.where((kind == 0) & ((seen & 0xFFFF) == 0).all(1), BFLOATS, kind)
        kind = torch.where((kind == 0) & _halves(seen), HALVES, kind)
    for start, stop in _likely(kind):
        blocks, own = bits[start:stop], kind[start:stop]
        constant = (blocks == blocks[:, :1]).all(1)
        if tensor.dtype == torch.float32:
            own[(own == CONSTANTS) & ~constant] = BFLOATS
            own[(own == BFLOATS) & ((blocks & 0xFFFF) != 0).any(1)] = HALVES
            own[(own == HALVES) & ~_halves(blocks)] = 0
        else:
            own[~constant] = 0
        own[constant] = blocks[constant, 0].long() + CONSTANTS  # one number for each
    runs = _runs(kind, tensor.numel())
    if len(runs) > 2:
        return runs, None
    held = NARROW.get(int(kind[0])) if bool((kind == kind[0]).all()) else None
    if held is None or not _exact(tensor.reshape(-1)[n * size :], held):
        held = _held(tensor)
    return (runs if held is None else whole), held  # two runs are one where only the last block is not full


def _likely(kind: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Runs of blocks that are worth a closer look: long enough, if they are what they seem."""
    edges = [0, *(torch.nonzero((kind[1:] != 0) != (kind[:-1] != 0)).view(-1) + 1).tolist(), len(kind)]
    for start, stop in pairwise(edges):
        if kind[start] and stop - start >= RUN:
            yield start, stop
        else:
            kind[start:stop] = 0


def _halves(bits: torch.Tensor) -> torch.Tensor:
    """Which rows of float32 numbers are float16 ones, bit for bit, and no NaN."""
    # Some processors change the payload of a NaN on the way to float16 and back; bfloat16 is cut off bits.
    half = bits.view(torch.float32).half()
    return (half.float().view(torch.int32) == bits).all(1) & ~half.isnan().any(1)


def _runs(kind: torch.Tensor, n: int) -> list[tuple[int, int]]:
    """Ranges of elements: long runs of blocks of one kind, and what lies between them."""
    edges = [0, *(torch.nonzero(kind[1:] != kind[:-1]).view(-1) + 1).tolist(), len(kind)]
    starts = []
    for a, b in pairwise(edges):
        if b - a >= RUN and kind[a] != 0:
            starts += [a, b]
    inner = sorted({start * BLOCK for start in starts} - {0, n})
    if len(inner) >= MOST_PIECES:
        return [(0, n)]
    return list(pairwise([0, *inner, n]))


def repeat(tensor: torch.Tensor, name: str) -> Coded:
    """A coded tensor that says: the same as `name`."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _coded(Head(SAME, dtype, tuple(tensor.shape), dtype), [as_bytes(name.encode())])


def quantized(matrix: Encoded, *, transposed: bool = False, threads: int = 1) -> Coded:
    """The coded tensor of a matrix `[out_features, in_features]` on the grid of a trellis.

    Args:
        transposed: the tensor is `[in_features, out_features]`.
    """
    dtype = str(matrix.dtype).removeprefix("torch.")
    shape = matrix.shape[::-1] if transposed else matrix.shape
    head = Head(TRELLIS, dtype, shape, dtype, transposed=transposed)
    return _coded(head, [trellis_stream.pack(matrix, threads=threads)])


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


def _numbers(values: torch.Tensor, plain: Head, mode: str, threads: int) -> Coded:
    name = str(values.dtype).removeprefix("torch.")
    plain = replace(plain, kind=PLANES, held=name)
    if mode == "fast":
        return _bitmaps(values, replace(plain, split=planes.FAST[name], coder=BITMAPS), threads)
    tried = []
    if mode == "balanced" or plain.n < FEW:  # larger tables do not always pay
        tried.append(_planes(values, replace(plain, split=planes.BALANCED[name]), threads))
    if mode == "small":
        tried.append(_planes(values, replace(plain, split=planes.SMALL[name]), threads, grouped=True))
    return min(tried, key=lambda coded: coded.nbytes)


def _planes(values: torch.Tensor, head: Head, threads: int, *, grouped: bool = False) -> Coded:
    """Numbers cut by `head.split`."""
    how = head.split or planes.BALANCED[head.held]
    axis, group_of, gained = _best_groups(values, how, head) if grouped else (NO_AXIS, None, 0)
    parts: list[Bytes] = [] if group_of is None else [rans.encode(group_of)]
    groups = [values] if group_of is None else list(_members(values, head, axis, group_of))
    bits = 0.0
    for own in groups:
        stream, raw, counts = planes.encode_counted(own, how, probability_bits=BITS[how.coded > 8], threads=threads)
        parts += [stream, raw]
        bits += entropy(counts) * own.numel()
    head = replace(head, axis=axis, groups=len(groups))
    field = bits / values.numel()
    return _coded(head, parts, entropy=field, limit_bits=field + how.raw_bits, gained_bytes=gained)


def _bitmaps(values: torch.Tensor, head: Head, threads: int) -> Coded:
    """Numbers cut by `head.split`, coded at a fixed length."""
    how = head.split or planes.FAST[head.held]
    stream, raw, counts = bitmaps.encode_counted(values, how, threads=threads)
    field = entropy(counts)
    return _coded(head, [stream, raw], entropy=field, limit_bits=field + how.raw_bits)


def _members(values: torch.Tensor, head: Head, axis: int, group_of: Bytes) -> Iterator[torch.Tensor]:
    """The rows or columns of each group."""
    table = values.view(INTEGERS[values.dtype.itemsize]).reshape(head.table)
    for group in range(int(group_of.max()) + 1):
        yield table.index_select(axis - 1, torch.from_numpy(np.flatnonzero(group_of == group))).contiguous()


def _integers(data: Bytes, plain: Head, threads: int) -> Coded:
    """Each byte of an element as a stream, or as it is."""
    parts, flags = [], []
    for plane in data.reshape(-1, SIZES[plain.dtype]).T:
        own = np.ascontiguousarray(plane)
        stream = rans.encode(own, threads=threads) if entropy(rans.histogram(own)) < 8 else own
        flags.append(stream.size < own.size)
        parts.append(stream if flags[-1] else own)
    return _coded(replace(plain, kind=BYTES, coded=tuple(flags)), parts)


def _codes(data: Bytes, plain: Head, threads: int) -> list[Coded]:
    """Packed codes as one plane; nothing where no way to cut them is worth it."""
    size, width = SIZES[plain.dtype], max(1, plain.table[1])
    choice = code_choice.choose(data, size, width)
    if choice is None:
        return []
    cut = packed_codes.cut_of(data, size, width, choice.cut.bits, choice.cut.along)
    codes = packed_codes.unpack(data, size, cut)
    if codes is None:
        return []
    head = replace(plain, kind=CODES, cut=cut, axis=choice.axis, groups=1 << choice.log2_groups)
    return [_coded(head, code_choice.parts(codes, choice, threads))]


def _low_bytes_say_something(data: Bytes, size: int) -> bool:
    """Whether a sample of numbers has low bytes that are no noise: then all bytes are worth trying."""
    n = data.size // size
    begin = max(0, n // 2 - SAMPLE // 2)
    low = np.ascontiguousarray(data.reshape(n, size)[begin : begin + SAMPLE, : size - 1].T)
    return any(entropy(rans.histogram(plane)) + 256 / plane.size < NOISE for plane in low)


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
    """Whether `dtype` holds float32 numbers, [n], bit for bit."""
    bits = values.view(torch.int32)
    return bool(_halves(bits[None]).all()) if dtype == torch.float16 else not bool((bits & 0xFFFF).any())


def _best_groups(values: torch.Tensor, how: Split, head: Head) -> tuple[int, Bytes | None, int]:
    """The axis, the group of each row or column, and the bytes saved; no groups where nothing is."""
    rows, columns = head.table
    if min(rows, columns) < 2 or head.n < 1 << 16:
        return NO_AXIS, None, 0
    exponents, _ = planes.split(values, replace(how, coded=min(8, how.coded)))
    field = as_bytes(exponents).reshape(rows, columns)
    together = entropy(rans.histogram(field.reshape(-1))) * head.n / 8
    best: tuple[float, int, Bytes | None] = (max(WORTH * head.n * how.bytes, 1), NO_AXIS, None)
    for axis in (ROWS, COLUMNS):
        finest = _classes(field, axis)
        context = np.repeat(finest, columns) if axis == ROWS else np.tile(finest, rows)
        counts = rans.histogram(field.reshape(-1), context)[:CLASSES]
        for shift in range(4):  # two classes become one, and so on
            apart = sum(entropy(row) * float(row.sum()) for row in counts) / 8
            cost = len(counts) * TABLE_BYTES + finest.size / 4
            best = max(
                best, (together - apart - cost, axis, (finest >> shift).astype(np.uint8)), key=lambda entry: entry[0]
            )
            counts = counts[::2] + counts[1::2]
    return best[1], best[2], int(best[0]) if best[2] is not None else 0


def _classes(field: Bytes, axis: int) -> Bytes:
    """Rows or columns in classes of equal size by their mean exponent."""
    mean = field.mean(axis=1 if axis == ROWS else 0, dtype=np.float32)
    rank = np.empty(mean.size, np.int64)
    rank[np.argsort(mean, kind="stable")] = np.arange(mean.size)
    return (rank * CLASSES // mean.size).astype(np.uint8)
