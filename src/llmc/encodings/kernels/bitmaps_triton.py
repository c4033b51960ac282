"""The bitmap stream (docs/formats/bitmaps.md) decoded on a GPU: one program for each block of 4096 symbols."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .numbers_triton import raw_bits, rotated

BLOCK = 1 << 12


@triton.jit
def _block(
    words, escapes, starts, table, raw, out, damaged, n, first,
    BLOCK: tl.constexpr, RAW: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    block = first + tl.program_id(0).to(tl.int64)
    begin = block * BLOCK
    size = tl.minimum(n - begin, BLOCK).to(tl.int32)
    row, bit = tl.arange(0, BLOCK // 32), tl.arange(0, 32)  # of half a group each: a word of 64 bits is two of 32
    i = row[:, None] * 32 + bit[None, :]
    inside = True if FULL else i < size  # a mask would keep loads and stores apart
    rest = raw_bits(raw, n, begin, i, inside, RAW) if RAW else i  # asked for early: it is far away
    word, there = words + block * (BLOCK // 64 * 6) + row // 2 * 6 + row % 2, True if FULL else row * 32 < size
    low = tl.load(word, mask=there, other=0)[:, None] >> bit[None, :]
    middle = tl.load(word + 2, mask=there, other=0)[:, None] >> bit[None, :]
    high = tl.load(word + 4, mask=there, other=0)[:, None] >> bit[None, :]
    code = (low & 1) | (middle & 1) << 1 | (high & 1) << 2
    escaped = inside & (code == 0)
    flags = escaped.to(tl.int32)
    in_row = tl.sum(flags, 1)
    rows = tl.cumsum(in_row, 0) - in_row
    rank = rows[:, None] + tl.cumsum(flags, 1) - 1
    start = tl.load(starts + block)
    count = (tl.load(starts + block + 1) - start).to(tl.int32)
    escape = tl.load(escapes + start + rank, mask=escaped & (rank < count), other=0).to(tl.int32)
    half = tl.where((high & 1) == 1, tl.load(table + 1), tl.load(table))  # of the table: four symbols
    known = (half >> (code & 3) * 8) & 255
    symbol = tl.where(escaped, escape, known)
    value = rotated(symbol, rest, RAW) if RAW else symbol.to(tl.uint8)
    tl.store(out + begin + i, value, mask=inside)
    tl.store(damaged + block, (tl.sum(in_row, 0) != count).to(tl.int32))


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
        table: [2] int32, the symbol of code k in byte k.

    Returns:
        [blocks] int32, not 0 where a block has other escapes than `starts` says. Bounds hold in any case.
    """
    blocks = -(-n // BLOCK)
    damaged = torch.zeros(blocks, dtype=torch.int32, device=out.device)
    bits = out if raw is None else raw
    width = 0 if raw is None else 8
    for first, count, full in ((0, n // BLOCK, True), (n // BLOCK, blocks - n // BLOCK, False)):
        if count:
            _block[(count,)](
                words, escapes, starts, table, bits, out, damaged, n, first,
                BLOCK=BLOCK, RAW=width, FULL=full, num_warps=warps,  # pyright: ignore[reportCallIssue]
            )  # fmt: skip
    return damaged
