"""The stream of a trellis (docs/formats/trellis.md) decoded on a GPU: one program for a tile, columns side by side.

A tile is decoded row by row by one warp, so that speed comes from many tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rans_triton import tables
from .streams_triton import left_over, opened, refilled, signed_word_at

FIRST_ESCAPE, BITS = 254, 12


@triton.jit
def _odd(bits):
    """Whether the number of ones among the low eight bits is odd."""
    bits ^= bits >> 4
    bits ^= bits >> 2
    return (bits ^ (bits >> 1)) & 1


@triton.jit
def _level(symbol, base, escapes, escaped):
    """Levels, those that are escapes read, and where these break a rule."""
    level = tl.where(escaped, signed_word_at(escapes, escaped), base + symbol)
    beyond = (level < -16384) | (level > 16383) | (((level ^ symbol) & 1) != 0)
    return level, escaped & beyond


@triton.jit
def _store(to, code, step, shifts, live, CODES: tl.constexpr, BRAIN: tl.constexpr):
    """Codes, or what they stand for."""
    size = tl.abs(code)
    moved = (size.to(tl.float32) * 0.5 - tl.load(shifts + tl.minimum(size, 31))) * step
    value = tl.where(code < 0, -moved, moved)
    if CODES:
        tl.store(to, code.to(tl.int16), mask=live)
    elif BRAIN:  # ties to even: not every backend's cast rounds
        bits = value.to(tl.int32, bitcast=True)
        tl.store(to, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16), mask=live)
    else:
        tl.store(to, value.to(to.dtype.element_ty), mask=live)


@triton.jit
def _tile(
    stream, entries, slots, order, row_table, column_table, steps, shifts, out, damaged,
    rows, columns, height, width, segment, base, parity_mask, flip_mask,
    LANES: tl.constexpr, STATES: tl.constexpr, BITS: tl.constexpr, ESCAPE: tl.constexpr, CODES: tl.constexpr,
    BRAIN: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    across = (columns + width - 1) // width
    top = (chunk // across * height).to(tl.int32)
    left = (chunk % across * width).to(tl.int32)
    high = tl.minimum(rows - top, height)
    right = tl.minimum(columns, left + width)
    lane = tl.arange(0, LANES)
    x, words, many, escapes, escapes_left = opened(stream, entries, chunk, lane, LANES)  # pyright: ignore[reportGeneralTypeIssues]
    wrong = tl.sum((x < 65536).to(tl.int32), 0)
    word, escape = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    for first in range(left, right, LANES):
        column = first + lane
        live = column < right
        own_table = tl.load(column_table + column, mask=live, other=0)
        step = tl.load(steps + column, mask=live, other=0.0)
        state = tl.zeros((LANES,), tl.int32)
        for r in range(0, high):
            row = tl.load(order + top + r).to(tl.int64)
            state = tl.where(r % segment == 0, tl.zeros((LANES,), tl.int32), state)
            parity = _odd(state & parity_mask)
            at = own_table + tl.load(row_table + row) + (parity << BITS) + (x & ((1 << BITS) - 1)).to(tl.int32)
            entry = tl.load(slots + at, mask=live, other=0).to(tl.uint32, bitcast=True)
            symbol = (entry >> 24).to(tl.int32)
            x = tl.where(live, (((entry >> 12) & 0xFFF) + 1) * (x >> BITS) + (entry & 0xFFF), x)
            escaped = live & (symbol >= ESCAPE)
            x, nth, word, escape = refilled(x, live, escaped, words, many, word, escape, True)
            level, beyond = _level(symbol, base, escapes + 2 * nth, escaped & (nth < escapes_left))
            wrong += tl.sum(beyond.to(tl.int32), 0)
            state = ((state << 1) | ((symbol & 1) ^ _odd(state & flip_mask))) & (STATES - 1)
            _store(out + row * columns + column, 2 * level + parity, step, shifts, live, CODES, BRAIN)
    wrong += left_over(x, word, many, escape, escapes_left)
    tl.store(damaged + chunk, wrong)


def decode(
    stream: torch.Tensor,
    entries: torch.Tensor,
    frequencies: list[list[int]],
    order: torch.Tensor,
    row_class: torch.Tensor,
    column_class: torch.Tensor,
    steps: torch.Tensor,
    shifts: torch.Tensor,
    out: torch.Tensor,
    *,
    machine: tuple[int, int, int],
    lanes: int,
    segment: int,
    height: int,
    width: int,
    base: int,
) -> torch.Tensor:
    """Decodes to `out`: [rows, columns] values in float32, bfloat16 or float16, or int16 codes. All on one device.

    Args:
        stream: uint8, the whole stream.
        entries: [chunks, 3] int64: offset of a chunk in the stream, its words, its escapes. They must lie inside.
        frequencies: [tables][256], each table's sum is 4096.
        order: int32 [rows], rows as the trellis visits them.
        row_class, column_class: int32, their sum names a pair of tables.
        steps: float32 [columns]; shifts: float32 [32], in steps.
        machine: bits of the state, masks of its parity and its flip.
        height, width: of a tile.

    Returns:
        [chunks] int32, not 0 where a chunk is damaged. Bounds hold in any case.
    """
    bits, parity, flip = machine
    rows, columns = out.shape
    slots = torch.cat([tables(own, BITS)[0] for own in frequencies])
    damaged = torch.zeros(entries.shape[0], dtype=torch.int32, device=out.device)
    pair = (1 << BITS) * (1 if bits == 0 else 2)
    brain = out.dtype == torch.bfloat16
    _tile[(entries.shape[0],)](
        stream, entries, slots.to(out.device), order, row_class * pair, column_class * pair,
        steps, shifts, out.view(torch.int16) if brain else out, damaged,
        rows, columns, height, width, segment, base, parity, flip,
        LANES=lanes, STATES=1 << bits, BITS=BITS, ESCAPE=FIRST_ESCAPE, CODES=out.dtype == torch.int16, BRAIN=brain,
        num_warps=1,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return damaged
