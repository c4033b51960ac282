"""Numbers as planes: which of their bits are coded and which are stored as they are.

Exponents of trained weights take few of their values, signs and low mantissa bits are noise. A `Split` says where
the cut is; the first coded plane can be the context of the others. Byte spec: docs/formats/rans.md, "Planes".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc import _native
from llmc.formats.rans import Bytes, as_bytes, refusals


@dataclass(frozen=True)
class Split:
    """Fields of a number of `bytes` bytes.

    Attributes:
        bytes: 1, 2 or 4.
        sign_after: the top bit moves down, below so many others.
        coded: widths of one to four coded fields, 1 to 8 bits, from the top; what remains is raw.
    """

    bytes: int
    sign_after: int
    coded: tuple[int, ...]

    @property
    def raw_bits(self) -> int:
        return 8 * self.bytes - sum(self.coded)

    def raw_bytes(self, n: int) -> int:
        """Size of the raw bits of n numbers."""
        return (n * self.raw_bits + 7) // 8


BALANCED = {
    "bfloat16": Split(2, 15, (8,)),
    "float16": Split(2, 15, (8,)),
    "float32": Split(4, 31, (8,)),
    "float8_e4m3fn": Split(1, 7, (4,)),
    "float8_e5m2": Split(1, 7, (5,)),
}
"""Exponent coded (fp16: and three bits of mantissa), the rest raw."""

SMALL = {
    "bfloat16": Split(2, 15, (8, 3)),
    "float16": Split(2, 15, (5, 4)),
    "float32": Split(4, 31, (8, 8)),
    "float8_e4m3fn": Split(1, 7, (7,)),
    "float8_e5m2": Split(1, 7, (7,)),
}
"""Also the top of the mantissa, with the exponent as its context."""


def split(numbers: Any, how: Split, *, threads: int = 1) -> tuple[list[Bytes], Bytes]:
    """Coded planes [n] and packed raw bits of an array or tensor of n numbers.

    Raises:
        InputError: the split does not fit numbers of that size.
    """
    data = as_bytes(numbers)
    n = data.size // how.bytes if how.bytes else 0
    planes = [np.empty(n, np.uint8) for _ in how.coded]
    raw = np.empty(max(how.raw_bytes(n), 0), np.uint8)
    with refusals("planes"):
        _native.split(how.bytes, how.sign_after, how.coded, data, planes, raw, threads)
    return planes, raw


def merge(planes: Sequence[Bytes], raw: Any, how: Split, out: Any, *, threads: int = 1) -> None:
    """The inverse of `split`, into the memory of `out`.

    Raises:
        InputError: sizes do not fit.
    """
    with refusals("planes"):
        _native.merge(how.bytes, how.sign_after, how.coded, list(planes), as_bytes(raw), as_bytes(out), threads)


def decode(
    streams: Sequence[Any],
    raw: Any,
    how: Split,
    out: Any,
    *,
    contexts: Bytes | None = None,
    threads: int = 1,
    path: str = "auto",
) -> None:
    """Numbers from the streams of their coded planes and their raw bits, in one pass, into the memory of `out`.

    Args:
        streams: one for each coded plane, all with the same chunks. One after the first that was made with `Contexts`
            has the first plane as its contexts.
        contexts: [n] those of the first plane, if it has some.

    Raises:
        InputError: a stream is damaged, or sizes do not fit.
    """
    data = [as_bytes(stream) for stream in streams]
    with refusals("planes"):
        _native.decode_numbers(
            how.bytes, how.sign_after, how.coded, data, as_bytes(raw), as_bytes(out), contexts, threads, path
        )
