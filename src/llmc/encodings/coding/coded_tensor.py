"""One tensor of any dtype as bytes, decoded: bit for bit, or to the values of a quantized matrix.

A *coded tensor* says its dtype and shape and how its bits were cut (docs/formats/lossless.md is the byte spec,
`kernels/coded_tensor.py` the definition in NumPy). `tensor_coder` writes them. All errors are `InputError`s, and
nothing is allocated for a claim that was not checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmc.encodings.coding import bitmaps, packed_codes, planes, rans, trellis_stream
from llmc.encodings.coding.coded_head import (
    BITMAPS,
    BYTES,
    CONSTANT,
    INTEGERS,
    KINDS,
    NO_AXIS,
    PIECES,
    RAW,
    ROWS,
    SAME,
    SIZES,
    TRELLIS,
    Head,
    parse_head,
)
from llmc.encodings.coding.planes import Split
from llmc.encodings.encoded import Encoded
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes
from llmc.files.pages import empty
from llmc.late import np, torch


def decode(data: Any, head: Head | None = None, *, threads: int = 1, path: str = "auto") -> torch.Tensor:
    """The tensor, bit for bit; `head` where it has been parsed.

    Raises:
        InputError: the bytes are damaged, or are none of a coded tensor that stands alone (kind SAME).
        MemoryError: there is no memory for it.
    """
    buffer = as_bytes(data)
    head = head or parse_head(buffer)
    out = _empty(head)
    decode_into(buffer, head, as_bytes(out), threads=threads, path=path)
    return out


def decode_into(buffer: Bytes, head: Head, out: Bytes, *, threads: int = 1, path: str = "auto") -> None:
    """Write the tensor's bytes to `out`, `head.nbytes` of them. Raises as `decode`."""
    if out.size != head.nbytes:
        raise InputError(f"a coded tensor of {head.nbytes} bytes for a place of {out.size}")
    parts = list(_parts(buffer, head))
    if head.kind == SAME:
        raise InputError("a coded tensor that repeats another one cannot be decoded alone")
    if head.kind == RAW:
        out[:] = parts[0]
    elif head.kind == CONSTANT:
        out.reshape(-1, SIZES[head.dtype])[:] = parts[0]
    elif head.kind == BYTES:
        _decode_bytes(parts, head, out, threads, path)
    elif head.kind == PIECES:
        _decode_pieces(parts, head, out, threads, path)
    elif head.kind == TRELLIS:
        _decode_trellis(parts[0], head, out, threads, path)
    elif head.cut is not None:
        packed_codes.decode(parts, head.cut, head.axis, head.groups, SIZES[head.dtype], out, threads)
    elif head.held != head.dtype:
        narrow = np.empty(head.n * SIZES[head.held], np.uint8)
        _decode_planes(parts, head, narrow, threads, path)
        widen(narrow, head.held, out)
    else:
        _decode_planes(parts, head, out, threads, path)


def trellis_of(data: Any) -> Encoded:
    """The matrix `[out_features, in_features]` of a coded tensor of kind TRELLIS. Raises InputError when damaged."""
    buffer = as_bytes(data)
    head = parse_head(buffer)
    if head.kind != TRELLIS:
        raise InputError(f"a coded tensor of kind {KINDS[head.kind]} is no matrix of a trellis")
    rows, columns = reversed(head.shape) if head.transposed else head.shape
    return trellis_stream.unpack(next(_parts(buffer, head)), (rows, columns), getattr(torch, head.dtype))


def same_as(data: Any) -> str:
    """The name of the tensor that a coded tensor of kind SAME repeats. Raises InputError when it is damaged."""
    buffer = as_bytes(data)
    try:
        return next(_parts(buffer, parse_head(buffer))).tobytes().decode()
    except UnicodeDecodeError:
        raise InputError("the name in a coded tensor that repeats another one is not UTF-8") from None


def widen(narrow: Bytes, held: str, out: Bytes) -> None:
    """float32 numbers into `out` from bfloat16 or float16 ones."""
    values = torch.from_numpy(narrow).view(getattr(torch, held))
    torch.from_numpy(out).view(torch.float32).copy_(values)


def _empty(head: Head) -> torch.Tensor:
    try:
        return empty(head.shape, getattr(torch, head.dtype))
    except MemoryError as error:
        raise MemoryError(f"no memory for a tensor of {head.nbytes} bytes") from error


def _parts(buffer: Bytes, head: Head) -> Iterator[Bytes]:
    """The parts in order; those that are no streams with their sums checked."""
    at = head.size
    for number, (size, crc, stream) in enumerate(zip(head.lengths, head.sums, head.streams, strict=True)):
        part = buffer[at : at + size]
        if not stream and rans.crc32c(part) != crc:
            raise InputError(f"part {number} of a coded tensor is damaged: its sum differs")
        at += size
        yield part


def _decode_pieces(parts: list[Bytes], head: Head, out: Bytes, threads: int, path: str) -> None:
    heads = [parse_head(part) for part in parts]
    if any(h.kind in (SAME, PIECES) or h.dtype != head.dtype for h in heads) or sum(h.n for h in heads) != head.n:
        raise InputError("the pieces of a coded tensor do not make the whole")
    at = 0
    for part, own in zip(parts, heads, strict=True):
        decode_into(part, own, out[at : at + own.nbytes], threads=threads, path=path)
        at += own.nbytes


def _decode_trellis(stream: Bytes, head: Head, out: Bytes, threads: int, path: str) -> None:
    dtype = getattr(torch, head.dtype)
    rows, columns = reversed(head.shape) if head.transposed else head.shape
    if not head.transposed:
        trellis_stream.decode_into(stream, (rows, columns), dtype, out, threads=threads, path=path)
        return
    values = torch.empty(rows, columns, dtype=dtype)
    trellis_stream.decode_into(stream, (rows, columns), dtype, as_bytes(values), threads=threads, path=path)
    torch.from_numpy(out).view(dtype).view(columns, rows).copy_(values.t())


def _decode_bytes(parts: list[Bytes], head: Head, out: Bytes, threads: int, path: str) -> None:
    elements = out.reshape(head.n, SIZES[head.dtype])
    for index, (part, coded) in enumerate(zip(parts, head.coded, strict=True)):
        elements[:, index] = rans.decode(part, head.n, threads=threads, path=path) if coded else part


def _decode_planes(parts: list[Bytes], head: Head, out: Bytes, threads: int, path: str) -> None:
    how = head.split or planes.BALANCED[head.held]
    if head.axis == NO_AXIS:
        _decode_numbers(parts[0], parts[1], how, head.coder, out, threads, path)
        return
    rows, columns = head.table
    group_of = rans.decode(parts[0], rows if head.axis == ROWS else columns, path=path)
    if group_of.max(initial=0) >= head.groups:
        raise InputError("a coded tensor with a member of no group")
    whole = torch.from_numpy(out).view(INTEGERS[how.bytes]).view(rows, columns)
    for group in range(head.groups):
        members = torch.from_numpy(np.flatnonzero(group_of == group))
        shape = (len(members), columns) if head.axis == ROWS else (rows, len(members))
        values = torch.empty(shape, dtype=whole.dtype)
        stream, raw = parts[1 + 2 * group : 3 + 2 * group]
        _decode_numbers(stream, raw, how, head.coder, as_bytes(values), threads, path)
        whole.index_copy_(head.axis - 1, members, values)


def _decode_numbers(stream: Bytes, raw: Bytes, how: Split, coder: int, out: Bytes, threads: int, path: str) -> None:
    if coder == BITMAPS:
        bitmaps.decode_numbers(stream, raw, out, how, threads=threads, path=path)
    else:
        planes.decode(stream, raw, how, out, threads=threads, path=path)
