"""Bitmap streams: every path against the reference decoder, sizes against arithmetic, damage against refusals."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.encodings.coding import bitmaps, planes, rans
from llmc.encodings.kernels import bitmaps_reference as reference
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes

PATHS = bitmaps.paths()
EDGES = (0, 1, 63, 64, 65, 4095, 4096, 4097, 8192, 12_321)
CHUNKS = 2 * bitmaps.CHUNK + 4096 + 77


def plane(seed: int, n: int, alphabet: int, low: int = 0) -> Bytes:
    """Symbols of a skewed distribution over `alphabet` values from `low` on."""
    rng = np.random.default_rng(seed)
    weights = rng.pareto(1.0, alphabet) + 1e-4
    return (low + rng.choice(alphabet, n, p=weights / weights.sum())).astype(np.uint8)


@cache
def large() -> tuple[Bytes, Bytes]:
    """Symbols of three chunks, and their stream."""
    symbols = plane(1, CHUNKS, 40)
    return symbols, bitmaps.encode(symbols)


def resealed(stream: Any, at: int, change: bytes, blocks: int = 1, chunks: int = 1) -> bytes:
    """The stream with other bytes in its head, under a sum that agrees."""
    data = bytearray(stream)
    data[at : at + len(change)] = change
    end = 20 + 4 * blocks + 4 * chunks
    data[end : end + 4] = struct.pack("<I", rans.crc32c(bytes(data[:end])))
    return bytes(data)


# Against the reference


@given(st.integers(0, 9000), st.integers(1, 256), st.integers(0, 2**32), st.integers(0, 255))
@settings(max_examples=80, deadline=None)
def test_every_path_is_the_reference(n: int, alphabet: int, seed: int, low: int) -> None:
    symbols = plane(seed, n, min(alphabet, 256 - low), low)
    streams = {bitmaps.encode(symbols, path=path).tobytes() for path in PATHS}
    assert len(streams) == 1
    stream = streams.pop()
    assert np.array_equal(reference.decode(stream), symbols)
    for path in PATHS:
        assert np.array_equal(bitmaps.decode(stream, n, path=path), symbols)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", EDGES)
def test_ends_of_groups_and_blocks(n: int, path: str) -> None:
    for symbols in (plane(n, n, 60), np.arange(n).astype(np.uint8), np.full(n, 200, np.uint8), plane(n, n, 7, 249)):
        stream = bitmaps.encode(symbols, path=path)
        assert np.array_equal(bitmaps.decode(stream, n, path=path), symbols)
        assert np.array_equal(reference.decode(stream.tobytes()), symbols)


@pytest.mark.parametrize("path", PATHS)
def test_no_escapes_and_almost_only_escapes(path: str) -> None:
    seven = np.tile(np.arange(7, dtype=np.uint8), 1000)
    stream = bitmaps.encode(seven, path=path)
    assert bitmaps.describe(stream, seven.size).escapes == 0
    assert stream.size == 40 + 24 * -(-seven.size // 64)  # 20, 8, 4, 4 and zeros up to 40
    flat = np.tile(np.arange(256, dtype=np.uint8), 32)
    stream = bitmaps.encode(flat, path=path)
    assert bitmaps.describe(stream, flat.size).escapes == 249 * 32
    assert np.array_equal(bitmaps.decode(stream, flat.size, path=path), flat)
    # A stream of another encoder may have no code at all.
    words_at = bitmaps.describe(stream, flat.size).words_at
    bare = bytearray(stream[:words_at]) + bytes(24 * flat.size // 64) + flat.tobytes()
    for block in range(2):
        bare[20 + 4 * block : 24 + 4 * block] = struct.pack("<I", 4096 * (block + 1))
    bare[28:32] = struct.pack("<I", rans.crc32c(bytes(bare[words_at:])))
    assert np.array_equal(bitmaps.decode(resealed(bare, 4, bytes(7), 2), flat.size, path=path), flat)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_on_threads(path: str, threads: int) -> None:
    symbols, stream = large()
    assert np.array_equal(bitmaps.encode(symbols, threads=threads, path=path), stream)
    out = np.zeros_like(symbols)
    assert bitmaps.decode(stream, symbols.size, out=out, threads=threads, path=path) is out
    assert np.array_equal(out, symbols)


def test_chunks_in_the_reference() -> None:
    symbols, stream = large()
    assert np.array_equal(reference.decode(stream.tobytes()), symbols)


def test_the_most_frequent_symbols_have_the_codes() -> None:
    symbols = np.repeat(np.arange(9, dtype=np.uint8), [5, 9, 1, 9, 3, 2, 8, 7, 6])
    assert bitmaps.describe(bitmaps.encode(symbols), symbols.size).table == bytes([1, 3, 6, 7, 8, 0, 4])


# Parts and numbers


@given(st.integers(0, CHUNKS), st.integers(0, 9000), st.sampled_from(PATHS), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_ranges(begin: int, size: int, path: str, threads: int) -> None:
    symbols, stream = large()
    end = min(begin + size, CHUNKS)
    assert np.array_equal(
        bitmaps.decode_range(stream, CHUNKS, begin, end, path=path, threads=threads), symbols[begin:end]
    )


def test_ranges_across_chunks_and_outside() -> None:
    symbols, stream = large()
    begin, end = bitmaps.CHUNK - 5, 2 * bitmaps.CHUNK + 5
    assert np.array_equal(bitmaps.decode_range(stream, CHUNKS, begin, end, threads=2), symbols[begin:end])
    for outside in ((-1, 4), (5, 4), (0, CHUNKS + 1)):
        with pytest.raises(InputError, match=f"symbols {outside[0]} to {outside[1]} are not inside"):
            bitmaps.decode_range(stream, CHUNKS, *outside)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"])
def test_numbers(name: str, path: str) -> None:
    how = planes.BALANCED[name]
    numbers = np.random.default_rng(2).integers(0, 256, 9001 * how.bytes, np.uint8)
    numbers[: 4096 * how.bytes] = np.arange(4096 * how.bytes) // 512  # and some that have codes
    stream, raw = bitmaps.encode_numbers(numbers, how, path=path)
    out = np.zeros_like(numbers)
    bitmaps.decode_numbers(stream, raw, out, how, path=path)
    assert np.array_equal(out, numbers)
    fields, rest = planes.split(numbers, how)
    assert np.array_equal(bitmaps.decode(stream, 9001), as_bytes(fields)) and np.array_equal(raw, rest)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_fields_are_counted(name: str) -> None:
    numbers = np.random.default_rng(4).integers(0, 1 << 14, 9001, np.uint16)
    stream, raw, counts = bitmaps.encode_counted(numbers, planes.FAST[name])
    exponents = numbers >> (7 if name == "bfloat16" else 10)
    assert np.array_equal(counts, np.bincount(exponents, minlength=256))
    assert all(map(np.array_equal, (stream, raw), bitmaps.encode_numbers(numbers, planes.FAST[name])))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offset", [0, 2, 33])
def test_numbers_past_the_caches(path: str, offset: int) -> None:
    n = (1 << 22) + 77  # so many are written past the caches, whatever their address
    rng = np.random.default_rng(3)
    numbers = (rng.standard_normal(n).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    stream, raw = bitmaps.encode_numbers(numbers, threads=2)
    assert 11.0 < 8 * (stream.size + raw.size) / n < 11.3
    place = np.zeros(2 * n + 128, np.uint8)
    begin = -place.ctypes.data % 64 + offset
    out = place[begin : begin + 2 * n]
    bitmaps.decode_numbers(stream, raw, out, threads=2, path=path)
    assert np.array_equal(out, numbers)
    assert not place[:begin].any() and not place[begin + 2 * n :].any()


def test_wide_fields_have_no_bitmaps() -> None:
    with pytest.raises(InputError, match="bitmaps: fields of more than 8 bits have no bitmaps"):
        bitmaps.encode_numbers(np.zeros(8, np.uint16), planes.SMALL["bfloat16"])
    stream = bitmaps.encode(np.zeros(8, np.uint8))
    with pytest.raises(InputError, match="bitmaps: fields of more than 8 bits have no bitmaps"):
        bitmaps.decode_numbers(stream, bytes(6), np.zeros(8, np.uint16), planes.SMALL["bfloat16"])


# Damage


def test_every_flipped_bit_is_refused() -> None:
    symbols = plane(4, 500, 30)
    stream = bitmaps.encode(symbols)
    for at in range(8 * stream.size):
        data = stream.copy()
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(InputError, match=r"^bitmaps: "):
            bitmaps.decode(data, symbols.size)
        with pytest.raises((ValueError, struct.error)):
            reference.decode(data.tobytes())


def test_every_truncation_and_extension_is_refused() -> None:
    symbols = plane(5, 300, 30)
    stream = bitmaps.encode(symbols).tobytes()
    for data in (*(stream[:size] for size in range(len(stream))), stream + b"\0"):
        with pytest.raises(InputError):
            bitmaps.decode(data, symbols.size)


HEADS = {
    "this is no bitmap stream": (0, b"lRA1"),
    "the sum of the head differs": None,
    "a byte of the head that must be 0 is not": (11, b"\1"),
    "block 0 has more or fewer escapes than it can have": (20, struct.pack("<I", 4097)),
    "block 1 has more or fewer escapes than it can have": (24, struct.pack("<I", 0)),
    "the stream is not as long as its escapes say": (24, struct.pack("<I", 4000)),
    "chunk 0: the sum of its bytes differs": (28, bytes(4)),
}


@pytest.mark.parametrize("message", HEADS)
def test_claims_of_a_head_whose_sum_agrees(message: str) -> None:
    symbols = plane(6, 8000, 60)
    stream = bitmaps.encode(symbols)
    change = HEADS[message]
    data = resealed(stream, *change, blocks=2) if change else stream[:20].tobytes() + bytes(stream.size - 20)
    with pytest.raises(InputError, match=message):
        bitmaps.decode(data, symbols.size)


def test_escapes_that_moved_to_another_block() -> None:
    symbols = plane(7, 8000, 60)
    stream = bitmaps.encode(symbols)
    (first,) = struct.unpack_from("<I", stream.tobytes(), 20)
    with pytest.raises(InputError, match="block 0 does not have as many escapes as the head says"):
        bitmaps.decode(resealed(stream, 20, struct.pack("<I", first + 1), blocks=2), symbols.size)


def test_bits_after_the_last_symbol() -> None:
    stream = bytearray(bitmaps.encode(np.zeros(70, np.uint8)))
    stream[-1] = 128  # a word without a symbol
    with pytest.raises(InputError, match="there are bits after the last symbol"):
        bitmaps.decode(bytes(stream), 70)


@pytest.mark.parametrize("n", [1 << 40, 1 << 62, (1 << 64) - 1])
def test_sizes_are_refused_before_memory_is_taken(n: int) -> None:
    stream = resealed(bitmaps.encode(plane(8, 100, 9)), 12, struct.pack("<Q", n))
    for refused in (lambda: bitmaps.decode(stream, n), lambda: bitmaps.decode_range(stream, n, 0, n)):
        with pytest.raises(InputError, match="the stream is too short for its symbols"):
            refused()


def test_what_does_not_fit() -> None:
    stream = bitmaps.encode(np.zeros(100, np.uint8))
    with pytest.raises(InputError, match="the stream has 100 symbols instead of 99"):
        bitmaps.decode(stream, 99)
    with pytest.raises(InputError, match="the output has 99 bytes instead of 100"):
        bitmaps.decode(stream, 100, out=np.zeros(99, np.uint8))
    with pytest.raises(InputError, match="the raw bits are not of the size of the numbers"):
        bitmaps.decode_numbers(stream, bytes(99), np.zeros(100, np.uint16))
    with pytest.raises(InputError, match="no path is named sse9"):
        bitmaps.encode(np.zeros(1, np.uint8), path="sse9")
