"""What the GPU decoders of rANS streams share: the lanes of a chunk, which take words and escapes in their order."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def word_at(data, inside):
    """Sixteen bits at any address."""
    low = tl.load(data, mask=inside, other=0).to(tl.uint32)
    return low | (tl.load(data + 1, mask=inside, other=0).to(tl.uint32) << 8)


@triton.jit
def signed_word_at(data, inside):
    """The same as a number of int32."""
    return word_at(data, inside).to(tl.uint16).to(tl.int16, bitcast=True).to(tl.int32)


@triton.jit
def opened(stream, entries, chunk, lane, LANES: tl.constexpr):
    """States of the lanes of a chunk; where its words are, and how many; the same of its escapes."""
    states = stream + tl.load(entries + 3 * chunk)
    many = tl.load(entries + 3 * chunk + 1).to(tl.int32)
    words = states + 4 * LANES
    x = word_at(states + 4 * lane, lane < LANES) | (word_at(states + 4 * lane + 2, lane < LANES) << 16)
    return x, words, many, words + 2 * many, tl.load(entries + 3 * chunk + 2).to(tl.int32)


@triton.jit
def refilled(x, live, escaped, words, many, word, escape, ESCAPES: tl.constexpr):
    """States after lanes in need took the next word; which escape is a lane's; words and escapes taken so far."""
    due = live & (x < 65536)
    flags = due.to(tl.int32)
    if ESCAPES:
        flags += escaped.to(tl.int32) << 16  # one running count of both
    counts = tl.cumsum(flags, 0)
    rank = word + (counts & 0xFFFF) - 1
    x = tl.where(due, (x << 16) | word_at(words + 2 * rank, due & (rank < many)), x)
    total = tl.sum(flags, 0)
    return x, escape + (counts >> 16) - 1, word + (total & 0xFFFF), escape + (total >> 16)


@triton.jit
def left_over(x, word, many, escape, escapes_left):
    """Not 0 where a chunk does not end as it has to."""
    lanes = tl.sum((x != 65536).to(tl.int32), 0)
    return lanes + (word != many).to(tl.int32) + (escape != escapes_left).to(tl.int32)
