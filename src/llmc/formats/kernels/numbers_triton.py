"""What the GPU decoders share: numbers of 16 bits from their coded field and their raw bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def raw_bits(raw, raw_bytes, at, inside, RAW: tl.constexpr):
    """The raw bits of numbers `at`, RAW of each, at most 8; they are packed without gaps, low bits first."""
    if RAW == 8:
        return tl.load(raw + at, mask=inside, other=0).to(tl.int32)
    first = at * RAW // 8
    low = tl.load(raw + first, mask=inside & (first < raw_bytes), other=0).to(tl.int32)
    high = tl.load(raw + first + 1, mask=inside & (first + 1 < raw_bytes), other=0).to(tl.int32)
    return ((low | (high << 8)) >> (at * RAW % 8).to(tl.int32)) & ((1 << RAW) - 1)


@triton.jit
def rotated(field, rest, RAW: tl.constexpr):
    """Sixteen bits, the field on top, rotated right by one: the lowest raw bit is the sign."""
    bits = ((field << RAW) | rest) & 0xFFFF
    return ((bits >> 1) | (bits << 15)).to(tl.int16)
