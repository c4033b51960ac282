"""What comes before the parts of a coded tensor, and what it may say; docs/formats/lossless.md is the byte spec."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Any

from llmc.encodings.coding import rans
from llmc.encodings.coding.packed_codes import Cut
from llmc.encodings.coding.planes import Split
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import LateTable, torch

MAGIC = b"lLT1"
RAW, CONSTANT, SAME, PLANES, BYTES, PIECES, CODES, TRELLIS = range(8)
KINDS = ("raw", "constant", "same", "planes", "bytes", "pieces", "codes", "trellis")
RANS, BITMAPS = range(2)  # how the streams of PLANES are coded
CODERS = ("rans", "bitmaps")
NO_AXIS, ROWS, COLUMNS = range(3)
AXES = ("", "rows", "columns")
CODE_AXES = ("", "lines", "places")
LIMIT = 1 << 40
"""Most bytes that a tensor may claim."""
DIMENSIONS = 64
GROUPS = 64
NAME_LIMIT = 1 << 16
MOST_PIECES = 1 << 12

# The position of a dtype is its number in the head: append only.
DTYPES: tuple[tuple[str, int], ...] = (
    ("bool", 1), ("uint8", 1), ("int8", 1), ("uint16", 2), ("int16", 2), ("uint32", 4), ("int32", 4), ("uint64", 8),
    ("int64", 8), ("float4_e2m1fn_x2", 1), ("float8_e4m3fn", 1), ("float8_e4m3fnuz", 1), ("float8_e5m2", 1),
    ("float8_e5m2fnuz", 1), ("float8_e8m0fnu", 1), ("float16", 2), ("bfloat16", 2), ("float32", 4), ("float64", 8),
    ("complex64", 8),
)  # fmt: skip
NUMBERS: dict[str, int] = {name: number for number, (name, _) in enumerate(DTYPES)}
SIZES: dict[str, int] = dict(DTYPES)
INTEGERS = LateTable(lambda: {1: torch.uint8, 2: torch.int16, 4: torch.int32})
"""Numbers of so many bytes, as something that can be moved about."""
QUANTIZED = ("float32", "bfloat16", "float16")
"""Dtypes that quantized matrices decode to."""
NARROW = {"float32": ("bfloat16", "float16")}
"""Dtypes that may hold the values of another one."""


@dataclass(frozen=True)
class Head:
    """What comes before the parts of a coded tensor.

    Attributes:
        kind: one of KINDS, by its number.
        dtype, shape: of the tensor, dtype by torch's name.
        held: dtype that its values were coded in: `dtype`, or a narrower one that holds them all.
        split: PLANES: how numbers were cut.
        coder: PLANES: of the streams: RANS or BITMAPS.
        axis: PLANES: what was put into groups that have tables of their own: NO_AXIS, ROWS or COLUMNS; CODES: see
            `packed_codes`.
        groups: PLANES and CODES: how many, 1 with NO_AXIS.
        coded: BYTES: for each byte of an element, whether it is a stream.
        transposed: TRELLIS: the matrix of the stream is the other way round.
        pieces: PIECES: how many coded tensors of one dimension stand one after the other.
        cut: CODES: how codes lie in the integers.
        lengths, sums: bytes of the parts, and the CRC-32C of those that have no sums of their own (0 for the others).
        size: bytes of the head.
    """

    kind: int
    dtype: str
    shape: tuple[int, ...]
    held: str
    split: Split | None = None
    coder: int = RANS
    axis: int = NO_AXIS
    groups: int = 1
    coded: tuple[bool, ...] = ()
    pieces: int = 0
    transposed: bool = False
    cut: Cut | None = None
    lengths: tuple[int, ...] = ()
    sums: tuple[int, ...] = ()
    size: int = 0

    @property
    def n(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the tensor, decoded."""
        return self.n * SIZES[self.dtype]

    @property
    def table(self) -> tuple[int, int]:
        """The tensor as rows and columns: its last dimension are the columns."""
        columns = self.shape[-1] if self.shape else 1
        return (self.n // columns if columns else 0), columns

    @property
    def described(self) -> str:
        """In words: `bfloat16 in planes 8 + 8`."""
        what = f"{self.dtype}{'' if self.held == self.dtype else f' as {self.held}'}, {KINDS[self.kind]}"
        fields = f" {self.split.coded} of {8 * self.split.bytes} bits" if self.split else ""
        fields = f" of {self.cut.bits} bits" if self.cut else fields
        return what + fields + (f", {self.groups} groups of {self.members}" if self.axis else "")

    @property
    def members(self) -> str:
        """What the groups are of."""
        return (CODE_AXES if self.kind == CODES else AXES)[self.axis]

    @property
    def streams(self) -> tuple[bool, ...]:
        """For each part, whether it is a stream or a coded tensor, which have sums of their own."""
        if self.kind == BYTES:
            return self.coded
        if self.kind == PIECES:
            return (True,) * self.pieces
        if self.kind == TRELLIS:
            return (True,)
        if self.kind == CODES:
            return (True,) * (1 if self.axis == NO_AXIS else 2)
        if self.kind != PLANES or self.split is None:
            return (False,)
        return ((True,) if self.axis else ()) + (True, False) * self.groups


def pack_head(head: Head) -> bytes:
    """The bytes of a head; its `size` does not matter."""
    data = MAGIC + bytes((head.kind, NUMBERS[head.dtype], NUMBERS[head.held], len(head.shape)))
    data += b"".join(map(_varint, head.shape))
    if head.kind == PLANES and head.split is not None:
        data += bytes((head.coder, head.split.sign_after, head.split.coded, head.axis, head.groups))
    if head.kind == BYTES:
        data += bytes(head.coded)
    if head.kind == PIECES:
        data += _varint(head.pieces)
    if head.kind == TRELLIS:
        data += bytes((head.transposed,))
    if head.kind == CODES and head.cut is not None:
        data += bytes((head.cut.bits, head.cut.along, head.axis, head.groups))
        data += _varint(head.cut.width) + _varint(head.cut.count)
    data += b"".join(map(_varint, head.lengths))
    data += b"".join(struct.pack("<I", crc) for crc, stream in zip(head.sums, head.streams, strict=True) if not stream)
    return data + struct.pack("<I", rans.crc32c(data))


def parse_head(data: Any, total: int | None = None) -> Head:
    """The head at the beginning of `data`, checked.

    Args:
        data: the coded tensor, or enough of it.
        total: its bytes; None: those of `data`.

    Raises:
        InputError: it is damaged, or no coded tensor.
    """
    buffer = as_bytes(data)
    try:
        head, end = _parse(_Cursor(buffer))
    except (struct.error, IndexError):
        raise InputError("the head of a coded tensor ends early") from None
    if rans.crc32c(buffer[: end - 4]) != int.from_bytes(buffer[end - 4 : end].tobytes(), "little"):
        raise InputError("the head of a coded tensor is damaged: its sum differs")
    total = buffer.size if total is None else total
    if head.size + sum(head.lengths) != total:
        raise InputError(f"a coded tensor claims {head.size + sum(head.lengths)} bytes and has {total}")
    return head


class _Cursor:
    def __init__(self, buffer: Bytes) -> None:
        self.buffer, self.at = buffer.data, 0

    def number(self) -> int:
        """An unsigned integer, seven bits in each byte, the low ones first; the last byte is below 128."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.buffer[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise InputError("a number in the head of a coded tensor is too long")

    def take(self, form: str) -> tuple[Any, ...]:
        out = struct.unpack_from("<" + form, self.buffer, self.at)
        self.at += struct.calcsize("<" + form)
        return out


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes((value,))


def _parse(cursor: _Cursor) -> tuple[Head, int]:
    """The head, and where it ends, its sum included."""
    magic, kind, dtype, held, dimensions = cursor.take("4s4B")
    if magic != MAGIC:
        raise InputError(
            f"no coded tensor: it begins with {magic!r}", fix=f"a newer llmc may know it; {MAGIC!r} is known"
        )
    if kind >= len(KINDS) or max(dtype, held) >= len(DTYPES) or dimensions > DIMENSIONS:
        raise InputError(f"a coded tensor of unknown kind {kind}, dtypes {dtype} and {held}, {dimensions} dimensions")
    shape = tuple(cursor.number() for _ in range(dimensions))
    head = Head(kind, DTYPES[dtype][0], shape, DTYPES[held][0])
    if head.held != head.dtype and (kind != PLANES or head.held not in NARROW.get(head.dtype, ())):
        raise InputError(f"a coded {head.dtype} tensor whose values are {head.held}")
    if math.prod(max(1, size) for size in head.shape) * SIZES[head.dtype] > LIMIT:
        raise InputError(f"a coded tensor claims the shape {list(head.shape)}, more than {LIMIT} bytes")
    described: dict[str, Any] = {}
    if kind == PLANES:
        described = _parse_planes(cursor, head)
    elif kind == BYTES:
        flags = cursor.take(f"{SIZES[head.dtype]}B")
        if max(flags) > 1:
            raise InputError("a coded tensor with a flag that is neither 0 nor 1")
        described = {"coded": tuple(map(bool, flags))}
    elif kind == PIECES:
        described = {"pieces": cursor.number()}
        if not 1 <= described["pieces"] <= MOST_PIECES:
            raise InputError(f"a coded tensor of {described['pieces']} pieces")
    elif kind == TRELLIS:
        described = _parse_trellis(cursor, head)
    elif kind == CODES:
        described = _parse_codes(cursor, head)
    head = replace(head, **described)
    lengths = tuple(cursor.number() for _ in head.streams)
    sums = tuple(0 if stream else cursor.take("I")[0] for stream in head.streams)
    cursor.take("I")
    made = replace(head, lengths=lengths, sums=sums, size=cursor.at)
    _check_lengths(made)
    return made, cursor.at


def _parse_planes(cursor: _Cursor, head: Head) -> dict[str, Any]:
    coder, sign_after, coded, axis, groups = cursor.take("5B")
    size = SIZES[head.held]
    if coder not in (RANS, BITMAPS):
        raise InputError(f"a coded tensor with the unknown coder {coder}")
    if size > 4 or not 1 <= coded <= min(8 if coder == BITMAPS else 15, 8 * size) or sign_after >= 8 * size:
        raise InputError(f"a coded tensor that codes {coded} of {8 * size} bits, the sign below {sign_after}")
    _check_groups(axis, groups)
    return {"split": Split(size, sign_after, coded), "coder": coder, "axis": axis, "groups": groups}


def _parse_codes(cursor: _Cursor, head: Head) -> dict[str, Any]:
    bits, along, axis, groups = cursor.take("4B")
    _check_groups(axis, groups)
    cut = Cut(bits, along, cursor.number(), cursor.number())
    cut.check(head.n, SIZES[head.dtype])
    return {"cut": cut, "axis": axis, "groups": groups}


def _check_groups(axis: int, groups: int) -> None:
    if axis >= len(AXES) or not 1 <= groups <= GROUPS or (axis == NO_AXIS and groups != 1):
        raise InputError(f"a coded tensor of {groups} groups along axis {axis}")


def _parse_trellis(cursor: _Cursor, head: Head) -> dict[str, Any]:
    (transposed,) = cursor.take("B")
    if transposed > 1 or len(head.shape) != 2 or head.dtype not in QUANTIZED:
        raise InputError(f"a coded tensor of {head.dtype} {list(head.shape)} with a trellis")
    return {"transposed": bool(transposed)}


def _check_lengths(head: Head) -> None:
    """Parts whose sizes follow from the shape must have them."""
    wanted: dict[int, int] = {}
    if head.kind == RAW:
        wanted[0] = head.nbytes
    if head.kind == CONSTANT:
        wanted[0] = SIZES[head.dtype]
    if head.kind == BYTES:
        wanted = {i: head.n for i, coded in enumerate(head.coded) if not coded}
    for part, size in wanted.items():
        if head.lengths[part] != size:
            raise InputError(f"part {part} of a coded tensor has {head.lengths[part]} bytes where {size} belong")
    if head.kind == SAME and head.lengths[0] > NAME_LIMIT:
        raise InputError("a coded tensor repeats one with a name that is too long")
