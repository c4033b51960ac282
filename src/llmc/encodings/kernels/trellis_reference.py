"""The stream of a trellis, decoded as plainly as NumPy allows: the definition, explained in docs/formats/trellis.md.

With `rans_reference` it can be read or copied without llmc. Errors are ValueErrors.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from .rans_reference import all_tables, crc32c

HEAD = struct.Struct("<4s4B4Ifh6BI")
BITS, FIRST_ESCAPE, SHIFTS = 12, 254, 31
LEAST, MOST = -(1 << 14), (1 << 14) - 1
ROOTS = np.array([2.0 ** (i / 4) for i in range(4)], np.float32)


@dataclass(frozen=True)
class Head:
    """What a stream says before its chunks.

    Attributes:
        machine: bits of the state, mask of its parity, mask of its flip.
        height: rows of a tile; the machine restarts every `segment` of them.
        shift: float32 [32] by magnitude of codes, in steps.
        steps: float32 [columns].
        Q: [classes, parities, 256] frequencies.
        sums: [chunks, 3] words, escapes, CRC-32C.
        payload: where the first chunk begins.
    """

    machine: tuple[int, int, int]
    lanes: int
    rows: int
    columns: int
    segment: int
    height: int
    tile: int
    base: int
    shift: np.ndarray
    steps: np.ndarray
    row_class: np.ndarray
    column_class: np.ndarray
    Q: np.ndarray
    sums: np.ndarray
    payload: int


def read_plane(data: memoryview, at: int, size: int) -> tuple[np.ndarray, int]:
    """Integers [size] of few bits: the least of them, their width above it, then all of them; and where they end."""
    least, width, at = data[at], data[at + 1], at + 2
    end = at + (size * width + 7) // 8
    bits = np.unpackbits(np.frombuffer(data[at:end], np.uint8), bitorder="little")[: size * width]
    values = bits.reshape(size, width) @ (1 << np.arange(width)) if width else np.zeros(size, np.int64)
    return least + values, end


def read_head(stream: bytes) -> Head:
    """Everything before the chunks."""
    data = memoryview(stream)
    fields = HEAD.unpack_from(data)
    magic, bits, parity, flip, lanes_log2, rows, columns, segment, tile, step, base = fields[:11]
    row_classes, column_classes, shifts, segments_log2, _, _, model_bytes = fields[11:]
    height, at = segment << segments_log2, HEAD.size
    chunks = -(-rows // height) * -(-columns // tile)
    payload = HEAD.size + model_bytes + 12 * chunks + 4
    (summed,) = struct.unpack_from("<I", data, payload - 4)
    if magic != b"lTQ1" or crc32c(stream[: payload - 4]) != summed:
        raise ValueError("the head of the stream is damaged")
    shift = np.zeros(SHIFTS + 1, np.float32)
    shift[:shifts] = np.frombuffer(data, np.int8, shifts, at) / np.float32(256)
    code, at = read_plane(data, at + shifts, columns)
    steps = np.ldexp((np.float32(step) * ROOTS)[code % 4], code // 4).astype(np.float32)
    row_class, column_class = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    if row_classes > 1:
        row_class, at = read_plane(data, at, rows)
    if column_classes > 1:
        column_class, at = read_plane(data, at, columns)
    classes, parities = row_classes + column_classes - 1, 1 if bits == 0 else 2
    Q, at = all_tables(data, at, classes * parities, 1 << BITS)
    sums = np.frombuffer(data, "<u4", 3 * chunks, at).reshape(-1, 3).astype(np.int64)
    machine, lanes, Q = (bits, parity, flip), 1 << lanes_log2, Q.reshape(classes, parities, 256)
    return Head(
        machine, lanes, rows, columns, segment, height, tile, base,
        shift, steps, row_class, column_class, Q, sums, payload,
    )  # fmt: skip


def ones(values: np.ndarray, mask: int) -> np.ndarray:
    """Sums mod 2 of the bits of a mask."""
    return sum(values >> b & 1 for b in range(6) if mask >> b & 1) % 2 + 0 * values


def decode_codes(stream: bytes) -> np.ndarray:
    """Codes int16 [rows, columns]: 2 * level + parity."""
    head = read_head(stream)
    out = np.zeros((head.rows, head.columns), np.int16)
    order = np.argsort(head.row_class, kind="stable")
    at = head.payload
    for chunk, (count, escapes, _) in enumerate(head.sums.tolist()):
        down, across = divmod(chunk, -(-head.columns // head.tile))
        rows = order[down * head.height : (down + 1) * head.height]
        columns = np.arange(head.columns)[across * head.tile : (across + 1) * head.tile]
        end = at + 4 * head.lanes + 2 * count + 2 * escapes
        out[np.ix_(rows, columns)] = decode_chunk(stream[at:end], head, chunk, rows, columns)
        at = end
    if at != len(stream):
        raise ValueError("the stream has another length")
    return out


def decode_chunk(data: bytes, head: Head, chunk: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The codes of some rows and columns."""
    bits, parity_mask, flip_mask = head.machine
    count, escapes, crc = head.sums[chunk].tolist()
    L, start = head.lanes, np.cumsum(head.Q, axis=-1) - head.Q
    x = np.frombuffer(data, "<u4", L).astype(np.int64)
    words = np.frombuffer(data, "<u2", count, 4 * L).astype(np.int64)
    raw = np.frombuffer(data, "<i2", escapes, 4 * L + 2 * count).astype(np.int64)
    codes, symbols = np.zeros((len(rows), len(columns)), np.int64), []
    word = escape = 0
    for first in range(0, len(columns), L):  # as many columns as there are lanes, row by row
        live = min(L, len(columns) - first)
        state = np.zeros(live, np.int64)
        for r, row in enumerate(rows):
            if r % head.segment == 0:
                state[:] = 0
            parity, flip = ones(state, parity_mask), ones(state, flip_mask)
            kind = head.row_class[row] + head.column_class[columns[first : first + live]]
            slot = x[:live] & ((1 << BITS) - 1)
            s = (start[kind, parity] <= slot[:, None]).sum(-1) - 1  # absent symbols start where the next one does
            x[:live] = head.Q[kind, parity, s] * (x[:live] >> BITS) + slot - start[kind, parity, s]
            due = np.flatnonzero(x[:live] < 1 << 16)  # in order of the lanes each takes the next word
            x[due] = x[due] << 16 | words[word : word + len(due)]
            word += len(due)
            level = head.base + s
            raised = np.flatnonzero(s >= FIRST_ESCAPE)
            level[raised] = raw[escape : escape + len(raised)]
            escape += len(raised)
            if ((level ^ s) & 1).any() or (level < LEAST).any() or (level > MOST).any():
                raise ValueError(f"chunk {chunk} is damaged")
            codes[r, first : first + live] = 2 * level + parity
            state = (2 * state + ((s & 1) ^ flip)) & ((1 << bits) - 1)
            symbols.append(s.astype(np.uint8).tobytes())
    if word != count or escape != escapes or (x != 1 << 16).any():
        raise ValueError(f"chunk {chunk} is damaged")
    if crc32c(b"".join(symbols) + raw.astype("<i2").tobytes()) != crc:
        raise ValueError(f"chunk {chunk} is damaged")
    return codes


def decode(stream: bytes) -> np.ndarray:
    """The values of a stream, float32 [rows, columns]."""
    head, codes = read_head(stream), decode_codes(stream).astype(np.int32)
    size = np.abs(codes)
    moved = size.astype(np.float32) / np.float32(2) - head.shift[np.minimum(size, SHIFTS)]
    return np.where(codes < 0, -moved, moved) * head.steps
