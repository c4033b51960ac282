"""The bitmap stream (docs/formats/bitmaps.md) decoded on a GPU: one program for each block of 4096 symbols."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .numbers_triton import raw_bits, rotated

BLOCK = 1 << 12


@triton.jit
def _block(words, escapes, starts, table, raw, out, damaged, n, BLOCK: tl.constexpr, RAW: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    at = block * BLOCK + i
    inside = at < n
    rest = raw_bits(raw, n, at, inside, RAW) if RAW else i  # asked for early: it is far away
    half = words + block * (BLOCK // 64 * 6) + i // 64 * 6 + i // 32 % 2  # a word of 64 bits is two of 32
    bit = i % 32
    low = (tl.load(half, mask=inside, other=0) >> bit) & 1
    middle = (tl.load(half + 2, mask=inside, other=0) >> bit) & 1
    high = (tl.load(half + 4, mask=inside, other=0) >> bit) & 1
    code = low | (middle << 1) | (high << 2)
    escaped = inside & (code == 0)
    start = tl.load(starts + block)
    count = (tl.load(starts + block + 1) - start).to(tl.int32)
    flags = escaped.to(tl.int32)
    rank = tl.cumsum(flags, 0) - 1
    escape = tl.load(escapes + start + rank, mask=escaped & (rank < count), other=0).to(tl.int32)
    known = (tl.load(table) >> (code * 8).to(tl.int64)).to(tl.int32) & 255
    symbol = tl.where(escaped, escape, known)
    value = rotated(symbol, rest, RAW) if RAW else symbol.to(tl.uint8)
    tl.store(out + at, value, mask=inside)
    tl.store(damaged + block, (tl.sum(flags, 0) != count).to(tl.int32))


def decode(
    words: torch.Tensor,
    escapes: torch.Tensor,
    starts: torch.Tensor,
    table: torch.Tensor,
    n: int,
    out: torch.Tensor,
    raw: torch.Tensor | None = None,
    *,
    warps: int = 8,
) -> torch.Tensor:
    """Decodes to `out`: [n] uint8, or with raw bytes [n] the int16 bits of bf16 numbers. All on one device.

    Args:
        words: [6 * groups] int32, the bitmaps.
        escapes: uint8, at least one.
        starts: [blocks + 1] int64: escapes before each block, and all of them.
        table: [1] int64, the symbol of code k in its byte k.

    Returns:
        [blocks] int32, not 0 where a block has other escapes than `starts` says. Bounds hold in any case.
    """
    blocks = -(-n // BLOCK)
    damaged = torch.zeros(blocks, dtype=torch.int32, device=out.device)
    if blocks:
        width = 0 if raw is None else 8
        _block[(blocks,)](
            words, escapes, starts, table, out if raw is None else raw, out, damaged, n,
            BLOCK=BLOCK, RAW=width, num_warps=warps,
        )  # fmt: skip
    return damaged
