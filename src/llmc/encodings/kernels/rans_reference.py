"""The rANS stream, decoded as plainly as NumPy allows: this file defines the format, docs/formats/rans.md explains it.

It imports nothing but NumPy and can be read or copied without llmc. Errors are ValueErrors.
"""

from __future__ import annotations

import struct

import numpy as np

ESCAPED = {1: "<u1", 2: "<i2", 4: "<i4"}


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of the bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    rows, crc = table.tolist(), 0xFFFFFFFF
    for byte in data:
        crc = rows[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def read_map(data: memoryview, at: int, size: int) -> tuple[np.ndarray, int]:
    """A map of `size` entries, and where it ends: a period and its values, or 0 and pairs (count - 1, value)."""
    out: list[int] = []
    period, at = data[at], at + 1
    if period:
        return np.resize(np.array(data[at : at + period]), size), at + min(period, size)
    while len(out) < size:
        out += [data[at + 1]] * (data[at] + 1)
        at += 2
    return np.array(out), at


def frequencies(data: memoryview, at: int, total: int) -> tuple[np.ndarray, int]:
    """A probability table [256]: first symbol, then frequencies until they sum to `total`, and where it ends."""
    table, symbol, at = np.zeros(256, np.int64), data[at], at + 1
    while table.sum() < total:
        q, at = data[at], at + 1
        if q == 0:  # a run of absent symbols
            symbol, at = symbol + data[at] + 1, at + 1
            continue
        if q >= 128:
            q, at = (q & 127) + (data[at] << 7), at + 1
        table[symbol], symbol = q, symbol + 1
    if table.sum() != total:
        raise ValueError("a probability table does not sum to its total")
    return table, at


def all_tables(data: memoryview, at: int, count: int, total: int) -> tuple[np.ndarray, int]:
    """Frequencies [count, 256], and where they end."""
    Q = np.zeros((count, 256), np.int64)
    for t in range(count):
        Q[t], at = frequencies(data, at, total)
    return Q, at


def decode(stream: bytes, contexts: np.ndarray | None = None) -> np.ndarray:
    """The values of a stream [n], uint8, int16 or int32. `contexts` [n] uint8 where tables are selected by them."""
    data = memoryview(stream)
    head = struct.unpack_from("<4s4BQIHBBiI", data)
    magic, bits, lanes_log2, selector, tables, n, chunk, escape, width, _, base, model_bytes = head
    total, L, at = 1 << bits, 1 << lanes_log2, 32
    classes, moves, table_of = np.zeros(256, np.int64), np.zeros((1, 1), np.int64), np.zeros(256, np.int64)
    if selector == 1:  # by context
        table_of, at = read_map(data, at, 256)
    if selector == 2:  # by the state of an automaton, one for each lane
        states, kinds = data[at] + 1, data[at + 1] + 1
        classes, at = read_map(data, at + 2, 256)
        moves, at = read_map(data, at, states * kinds)
        moves = moves.reshape(states, kinds)
        table_of, at = read_map(data, at, states)
    Q, at = all_tables(data, at, tables + 1, total)
    start = np.cumsum(Q, axis=1) - Q
    symbol_of = np.stack([np.repeat(np.arange(256), q) for q in Q])  # [tables, slots]
    constant = selector == 0 and tables == 0 and Q.max() == total and Q[0].argmax() < escape
    chunks = 0 if constant else -(-n // chunk)
    payload = 32 + model_bytes + 12 * chunks + 4
    (summed,) = struct.unpack_from("<I", data, payload - 4)
    if magic != b"lRA1" or at != 32 + model_bytes or crc32c(stream[: payload - 4]) != summed:
        raise ValueError("the head of the stream is damaged")
    out = np.full(n, base + Q[0].argmax() if constant else 0, ESCAPED[width])
    for c in range(chunks):
        count, escapes, crc = struct.unpack_from("<3I", data, 32 + model_bytes + 12 * c)
        size, first = min(chunk, n - c * chunk), c * chunk
        x = np.frombuffer(data, "<u4", L, payload).astype(np.int64)
        words = np.frombuffer(data, "<u2", count, payload + 4 * L).astype(np.int64)
        raw = np.frombuffer(data, ESCAPED[width], escapes, payload + 4 * L + 2 * count)
        payload += 4 * L + 2 * count + width * escapes
        state, word, symbols = np.zeros(L, np.int64), 0, np.zeros(size, np.uint8)
        for t in range(0, size, L):  # one step: symbol t + i belongs to lane i
            live = min(L, size - t)
            table = table_of[contexts[first + t : first + t + live] if contexts is not None else state[:live]]
            slot = x[:live] & (total - 1)
            s = symbol_of[table, slot]
            symbols[t : t + live] = s
            x[:live] = Q[table, s] * (x[:live] >> bits) + slot - start[table, s]
            state[:live] = moves[state[:live], classes[s]]
            due = np.flatnonzero(x[:live] < 1 << 16)  # in order of the lanes each takes the next word
            x[due] = x[due] << 16 | words[word : word + len(due)]
            word += len(due)
        if word != count or (x != 1 << 16).any() or crc32c(symbols.tobytes() + raw.tobytes()) != crc:
            raise ValueError(f"chunk {c} is damaged")
        values = base + symbols.astype(np.int64)
        values[symbols >= escape] = raw
        out[first : first + size] = values
    return out
