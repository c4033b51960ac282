"""The rANS stream with one table (docs/formats/rans.md) decoded on a GPU: one program for a chunk, lanes side by side.

A chunk is decoded step by step by one warp, so that speed comes from many chunks: an encoder for GPUs takes small ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .numbers_triton import raw_bits, rotated
from .streams_triton import left_over, opened, refilled, signed_word_at


@triton.jit
def _look_up(slots, pairs, slot, PACKED: tl.constexpr):
    """Symbol, frequency and place in its interval of a slot."""
    entry = tl.load(slots + slot.to(tl.int32)).to(tl.uint32, bitcast=True)
    if PACKED:  # symbol, frequency - 1 and place in 8, 12 and 12 bits
        return entry >> 24, ((entry >> 12) & 0xFFF) + 1, entry & 0xFFF
    pair = tl.load(pairs + entry.to(tl.int32)).to(tl.uint32, bitcast=True)
    return entry, pair & 0xFFFF, slot - (pair >> 16)


@triton.jit
def _value(symbol, escapes, rank, escaped, base, WIDTH: tl.constexpr):
    """What a symbol stands for; an escape is read, signed where it has two bytes."""
    known = base + symbol.to(tl.int32)
    if WIDTH == 1:
        read = tl.load(escapes + rank, mask=escaped, other=0).to(tl.int32)
    else:
        read = signed_word_at(escapes + 2 * rank, escaped)
    return tl.where(escaped, read, known)


@triton.jit
def _chunk(
    stream, entries, slots, pairs, raw, out, damaged, n, raw_bytes, chunk_symbols, first_escape, base,
    LANES: tl.constexpr, BITS: tl.constexpr, PACKED: tl.constexpr, WIDTH: tl.constexpr, ESCAPES: tl.constexpr,
    RAW: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    x, words, many, escapes, escapes_left = opened(stream, entries, chunk, lane, LANES)  # pyright: ignore[reportGeneralTypeIssues]
    begin = chunk * chunk_symbols
    size = tl.minimum(n - begin, chunk_symbols).to(tl.int32)
    wrong = tl.sum((x < 65536).to(tl.int32), 0)
    word = tl.zeros((), tl.int32)
    escape = tl.zeros((), tl.int32)
    for t in range(0, size, LANES):
        i = t + lane
        live = i < size
        rest = raw_bits(raw, raw_bytes, begin, i, live, RAW) if RAW else lane  # asked for early: it is far away
        symbol, q, place = _look_up(slots, pairs, x & ((1 << BITS) - 1), PACKED)
        x = tl.where(live, q * (x >> BITS) + place, x)
        escaped = live & (symbol >= first_escape) if ESCAPES else live & (lane < 0)
        x, nth, word, escape = refilled(x, live, escaped, words, many, word, escape, ESCAPES)
        value = _value(symbol, escapes, nth, escaped & (nth < escapes_left), base, WIDTH)
        if RAW:
            tl.store(out + begin + i, rotated(value, rest, RAW), mask=live)
        else:
            tl.store(out + begin + i, value.to(out.dtype.element_ty), mask=live)
    wrong += left_over(x, word, many, escape, escapes_left)
    tl.store(damaged + chunk, wrong)


def tables(frequencies: list[int], bits: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """What `decode` looks symbols up in: slots [2**bits] and pairs [256], int32, and whether slots say all.

    Args:
        frequencies: [256], their sum is 2**bits.
    """
    q = torch.tensor(frequencies, dtype=torch.int64)
    start = q.cumsum(0) - q
    symbol = torch.repeat_interleave(torch.arange(256), q)
    packed = int(q.max()) <= 1 << 12
    slots = symbol
    if packed:
        slots = (symbol << 24) | ((q - 1)[symbol] << 12) | (torch.arange(1 << bits) - start[symbol])
    return slots.to(torch.int32), (q | (start << 16)).to(torch.int32), packed


def decode(
    stream: torch.Tensor,
    entries: torch.Tensor,
    frequencies: list[int],
    n: int,
    out: torch.Tensor,
    raw: torch.Tensor | None = None,
    *,
    bits: int,
    lanes: int,
    chunk_symbols: int,
    first_escape: int = 256,
    base: int = 0,
    value_bytes: int = 1,
    raw_width: int = 8,
) -> torch.Tensor:
    """Decodes to `out`: [n] uint8 or int16 values, or with raw bits the int16 bits of bf16 numbers. All on one device.

    Args:
        stream: uint8, the whole stream.
        entries: [chunks, 3] int64: offset of a chunk in the stream, its words, its escapes. They must lie inside.
        frequencies: [256], their sum is 2**bits.
        base, value_bytes: of values, which are 1 or 2 bytes wide.
        raw: uint8: `raw_width` bits of each number without gaps; the field of a number is the rest of 16 bits.

    Returns:
        [chunks] int32, not 0 where a chunk is damaged. Bounds hold in any case.
    """
    damaged = torch.zeros(entries.shape[0], dtype=torch.int32, device=out.device)
    slots, pairs, packed = tables(frequencies, bits)
    width = 0 if raw is None else raw_width
    if entries.shape[0]:
        _chunk[(entries.shape[0],)](
            stream, entries, slots.to(out.device), pairs.to(out.device), out if raw is None else raw, out, damaged,
            n, 0 if raw is None else raw.numel(), chunk_symbols, first_escape, base,
            LANES=lanes, BITS=bits, PACKED=packed, WIDTH=value_bytes, ESCAPES=first_escape < 256, RAW=width,
            num_warps=1,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
    return damaged
