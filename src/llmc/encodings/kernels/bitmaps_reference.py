"""The bitmap stream, decoded as plainly as NumPy allows: this file defines it, docs/formats/bitmaps.md explains it.

It can be read or copied without llmc. Errors are ValueErrors.
"""

from __future__ import annotations

import struct

import numpy as np

from .rans_reference import crc32c

BLOCK, CHUNK = 1 << 12, 1 << 20


def decode(stream: bytes) -> np.ndarray:
    """The symbols of a stream [n] uint8."""
    magic, table, _, n = struct.unpack_from("<4s7sBQ", stream)
    blocks, chunks, groups = -(-n // BLOCK), -(-n // CHUNK), -(-n // 64)
    summed = 20 + 4 * blocks + 4 * chunks
    words_at = -(-(summed + 4) // 8) * 8
    escapes_at = words_at + 24 * groups
    if magic != b"lBM1" or crc32c(stream[:summed]) != struct.unpack_from("<I", stream, summed)[0]:
        raise ValueError("the head of the stream is damaged")
    until = np.frombuffer(stream, "<u4", blocks, 20).astype(np.int64)
    sums = np.frombuffer(stream, "<u4", chunks, 20 + 4 * blocks)
    words = np.frombuffer(stream, np.uint8, 24 * groups, words_at).reshape(groups, 3, 8)
    bits = np.unpackbits(words, axis=2, bitorder="little")  # [groups, 3, 64]
    codes = (bits[:, 0] | bits[:, 1] << 1 | bits[:, 2] << 2).reshape(-1)
    if codes[n:].any():
        raise ValueError("there are bits after the last symbol")
    symbols = np.frombuffer(b"\0" + table, np.uint8)[codes[:n]]
    escaped = codes[:n] == 0
    symbols[escaped] = np.frombuffer(stream, np.uint8, -1, escapes_at)
    first = escapes_at
    for c in range(chunks):
        per_block = [int(escaped[b * BLOCK : (b + 1) * BLOCK].sum()) for b in range(blocks)[c * 256 : (c + 1) * 256]]
        last = first + sum(per_block)
        own = words[c * CHUNK // 64 : (c + 1) * CHUNK // 64].tobytes() + stream[first:last]
        if list(np.cumsum(per_block)) != list(until[c * 256 : (c + 1) * 256]) or crc32c(own) != sums[c]:
            raise ValueError(f"chunk {c} is damaged")
        first = last
    return symbols
