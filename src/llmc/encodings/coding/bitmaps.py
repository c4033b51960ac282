"""Symbols at a fixed length: three bits each, and the symbols that are not among the seven most frequent as bytes.

Larger than the entropy coder of `rans` by about 0.6 bits per bf16 weight, but decoding needs no state: any symbol can
be read alone, at about 0.7 of the speed of a copy. Byte spec in docs/formats/bitmaps.md, definition in
`kernels/bitmaps_reference.py`, the work in the extension `llmc._native`. Streams do not depend on threads, path or
machine. All errors are `InputError`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc import _native
from llmc.encodings.coding import planes, rans
from llmc.encodings.coding.planes import BALANCED, Fields, Split
from llmc.encodings.coding.rans import refusals
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

BLOCK = 1 << 12
"""Symbols whose escapes can be found from the head of a stream alone."""
CHUNK = 1 << 20
"""Symbols under one sum."""
BF16 = BALANCED["bfloat16"]


@dataclass(frozen=True)
class StreamInfo:
    """What the head of a stream says.

    Attributes:
        table: the symbols of codes 1 to 7.
        escapes: how many symbols have no code.
        blocks_at: offset of the table of blocks: escapes of the chunk up to the end of each, u32.
        words_at: offset of the bitmaps, three u64 for each 64 symbols.
        escapes_at: offset of the escapes; they end the stream.
    """

    n: int
    table: bytes
    escapes: int
    blocks_at: int
    words_at: int
    escapes_at: int


def paths() -> list[str]:
    """The code that this processor can run, simplest first: values of `path`, besides "auto", which is the last."""
    return _native.bitmaps_paths()


def encode(symbols: ArrayLike, *, threads: int = 1, path: str = "auto") -> Bytes:
    """The stream of uint8 symbols, of any shape.

    Raises:
        InputError: there is no such path.
    """
    with refusals("bitmaps"):
        return _native.bitmaps_encode(as_bytes(symbols), threads, path)


def encode_numbers(numbers: Any, how: Split = BF16, *, threads: int = 1, path: str = "auto") -> tuple[Bytes, Bytes]:
    """The stream of the coded fields of numbers, and their raw bits; errors of `encode_counted`."""
    fields, raw = _split(numbers, how, threads)
    return encode(fields, threads=threads, path=path), raw


def encode_counted(
    numbers: Any, how: Split = BF16, *, threads: int = 1, path: str = "auto"
) -> tuple[Bytes, Bytes, NDArray[np.uint64]]:
    """The stream of the coded fields of numbers, their raw bits, and how often each field occurs: [256].

    Raises:
        InputError: the field is wider than 8 bits, or the split does not fit numbers of that size.
    """
    fields, raw = _split(numbers, how, threads)
    return encode(fields, threads=threads, path=path), raw, rans.histogram(as_bytes(fields))


def _split(numbers: Any, how: Split, threads: int) -> tuple[Fields, Bytes]:
    if how.coded > 8:
        raise InputError("fields of more than 8 bits have no bitmaps", where="bitmaps")
    return planes.split(numbers, how, threads=threads)


def decode(stream: Any, n: int, *, out: Bytes | None = None, threads: int = 1, path: str = "auto") -> Bytes:
    """The n symbols of a stream.

    Args:
        n: how many the caller expects; nothing is allocated for a stream that claims otherwise.
        out: where to put them: [n], contiguous.

    Raises:
        InputError: the stream is damaged, or is none; or `out` is not of its size.
    """
    data = as_bytes(stream)
    if out is None:
        describe(data, n)
        out = np.empty(n, np.uint8)
    place = as_bytes(out)
    if place.size != n:
        raise InputError(f"the output has {place.size} bytes instead of {n}", where="bitmaps")
    with refusals("bitmaps"):
        _native.bitmaps_decode(data, n, 0, place, threads, path)
    return out


def decode_range(stream: Any, n: int, begin: int, end: int, *, threads: int = 1, path: str = "auto") -> Bytes:
    """Symbols [begin, end) of a stream of n: chunks that hold them are summed, blocks that hold them decoded.

    Raises:
        InputError: as `decode`; or the range is not inside.
    """
    if not 0 <= begin <= end <= n:
        raise InputError(f"symbols {begin} to {end} are not inside a stream of {n}", where="bitmaps")
    data = as_bytes(stream)
    describe(data, n)
    out = np.empty(end - begin, np.uint8)
    with refusals("bitmaps"):
        _native.bitmaps_decode(data, n, begin, out, threads, path)
    return out


def decode_numbers(stream: Any, raw: Any, out: Any, how: Split = BF16, *, threads: int = 1, path: str = "auto") -> None:
    """Numbers from the stream of their coded fields and their raw bits, in one pass, into the memory of `out`.

    Raises:
        InputError: the stream is damaged, or sizes do not fit.
    """
    with refusals("bitmaps"):
        _native.bitmaps_decode_numbers(
            how.bytes, how.sign_after, how.coded, as_bytes(stream), as_bytes(raw), as_bytes(out), threads, path
        )


def check(stream: Any, n: int, *, threads: int = 1) -> None:
    """Checks head and sums of a stream of n symbols, without decoding any.

    Raises:
        InputError: the stream is damaged.
    """
    with refusals("bitmaps"):
        _native.bitmaps_check(as_bytes(stream), n, threads)


def describe(stream: Any, n: int) -> StreamInfo:
    """What the head of a stream of n symbols says, after checking it.

    Raises:
        InputError: the head is damaged.
    """
    with refusals("bitmaps"):
        return StreamInfo(**_native.bitmaps_describe(as_bytes(stream), n))
