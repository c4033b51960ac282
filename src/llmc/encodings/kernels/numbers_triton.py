"""What the GPU decoders share: numbers of 16 bits from their coded field and their raw bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def raw_bits(raw, raw_bytes, begin, i, inside, RAW: tl.constexpr):
    """The raw bits of numbers begin + i, RAW of each, at most 8; they are packed without gaps, low bits first."""
    first = begin * RAW // 8
    if RAW == 8:
        return tl.load(raw + first + i, mask=inside, other=0).to(tl.int32)
    bit = (begin * RAW % 8).to(tl.int32) + i * RAW
    left = raw_bytes - first
    low = tl.load(raw + first + bit // 8, mask=inside, other=0).to(tl.int32)
    high = tl.load(raw + first + bit // 8 + 1, mask=inside & (bit // 8 + 1 < left), other=0).to(tl.int32)
    return ((low | (high << 8)) >> (bit % 8)) & ((1 << RAW) - 1)  # pyright: ignore[reportOperatorIssue]


@triton.jit
def rotated(field, rest, RAW: tl.constexpr):
    """Sixteen bits, the field on top, rotated right by one: the lowest raw bit is the sign."""
    bits = ((field << RAW) | rest) & 0xFFFF
    return ((bits >> 1) | (bits << 15)).to(tl.int16)
