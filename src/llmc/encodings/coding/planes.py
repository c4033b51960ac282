"""Numbers as planes: which of their bits are coded and which are stored as they are.

Exponents of trained weights take few of their values, signs and low mantissa bits are noise. A `Split` says where
the cut is. Byte spec: docs/formats/rans.md, "Planes".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from llmc import _native
from llmc.encodings.coding import rans
from llmc.encodings.coding.rans import refusals
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Fields: TypeAlias = "NDArray[np.uint8] | NDArray[np.int16]"


@dataclass(frozen=True)
class Split:
    """Fields of a number of `bytes` bytes.

    Attributes:
        bytes: 1, 2 or 4.
        sign_after: the top bit moves down, below so many others.
        coded: width of the coded field at the top, 1 to 15 bits; what remains is raw.
    """

    bytes: int
    sign_after: int
    coded: int

    @property
    def raw_bits(self) -> int:
        return 8 * self.bytes - self.coded

    @property
    def field(self) -> np.dtype[Any]:
        """Of the coded plane: fields of more than 8 bits are wide symbols of their stream."""
        return np.dtype(np.uint8 if self.coded <= 8 else np.int16)

    def raw_bytes(self, n: int) -> int:
        """Size of the raw bits of n numbers."""
        return (n * self.raw_bits + 7) // 8


BALANCED = {
    "bfloat16": Split(2, 15, 8),
    "float16": Split(2, 15, 8),
    "float32": Split(4, 31, 8),
    "float8_e4m3fn": Split(1, 7, 4),
    "float8_e5m2": Split(1, 7, 5),
}
"""Exponent coded (fp16: and three bits of mantissa), the rest raw."""

FAST = {**BALANCED, "float16": Split(2, 15, 5)}
"""The exponent alone: seven values of it have a code."""

SMALL = {
    "bfloat16": Split(2, 15, 10),
    "float16": Split(2, 15, 8),
    "float32": Split(4, 31, 10),
    "float8_e4m3fn": Split(1, 7, 7),
    "float8_e5m2": Split(1, 7, 7),
}
"""The exponent and the top of the mantissa as one symbol: further bits of it are noise (measured on Gaussian weights:
below 0.06 % of the size, and fp16 has them in `BALANCED` already). All of fp8."""


def split(numbers: Any, how: Split, *, threads: int = 1) -> tuple[Fields, Bytes]:
    """Coded plane [n] and packed raw bits of an array or tensor of n numbers.

    Raises:
        InputError: the split does not fit numbers of that size.
    """
    data = as_bytes(numbers)
    n = data.size // how.bytes if how.bytes else 0
    fields = np.empty(n, how.field)
    raw = np.empty(max(how.raw_bytes(n), 0), np.uint8)
    with refusals("planes"):
        _native.split(how.bytes, how.sign_after, how.coded, data, as_bytes(fields), raw, threads)
    return fields, raw


def merge(fields: Fields, raw: Any, how: Split, out: Any, *, threads: int = 1) -> None:
    """The inverse of `split`, into the memory of `out`.

    Raises:
        InputError: sizes do not fit.
    """
    with refusals("planes"):
        _native.merge(how.bytes, how.sign_after, how.coded, as_bytes(fields), as_bytes(raw), as_bytes(out), threads)


def encode(numbers: Any, how: Split, **options: Any) -> tuple[Bytes, Bytes]:
    """The stream of the coded fields of numbers, and their raw bits; options and errors of `encode_counted`."""
    return encode_counted(numbers, how, **options)[:2]


def encode_counted(
    numbers: Any,
    how: Split,
    *,
    probability_bits: int | None = None,
    lanes: int | None = None,
    chunk_symbols: int = rans.CHUNK_SYMBOLS,
    threads: int = 1,
    path: str = "auto",
) -> tuple[Bytes, Bytes, NDArray[np.uint64]]:
    """The stream of the coded fields of numbers, their raw bits, and how often each field occurs, in two passes.

    Rare fields share an escape where that is smaller, or where it makes the table fit the registers of a decoder and
    costs next to nothing.

    Args:
        probability_bits: None: 12, and 14 for fields of more than 8 bits, which have more values.

    Raises:
        InputError: an option is out of range, or the split does not fit numbers of that size.
    """
    data = as_bytes(numbers)
    n = data.size // max(1, how.bytes)
    bits = (12 if how.coded <= 8 else 14) if probability_bits is None else probability_bits
    options = rans.stream_options(n, bits, lanes, chunk_symbols)
    raw = np.empty(max(how.raw_bytes(n), 0), np.uint8)
    with refusals("planes"):
        stream, counts = _native.encode_numbers(
            how.bytes, how.sign_after, how.coded, data, raw, **options, threads=threads, path=path
        )
    return stream, raw, counts


def decode(
    stream: Any,
    raw: Any,
    how: Split,
    out: Any,
    *,
    contexts: Bytes | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """Numbers from the stream of their coded fields and their raw bits, in one pass, into the memory of `out`.

    Args:
        contexts: [n] those of the stream, if it was made with `Contexts`.

    Raises:
        InputError: the stream is damaged, or sizes do not fit.
    """
    with refusals("planes"):
        _native.decode_numbers(
            how.bytes,
            how.sign_after,
            how.coded,
            as_bytes(stream),
            as_bytes(raw),
            as_bytes(out),
            contexts,
            threads,
            path,
        )
