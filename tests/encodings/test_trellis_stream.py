"""Streams of trellises: every path against the definition, every refusal, damage."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trellis_cases import PATHS, Layout, Shape, follow, matrix, stream_of

from llmc import _native
from llmc.encodings.coding import rans, trellis_stream
from llmc.encodings.encoded import Encoded
from llmc.encodings.kernels import trellis_reference as reference
from llmc.encodings.trellis import MACHINES, encoded
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes

DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def values_of(
    stream: Bytes, shape: tuple[int, int], dtype: torch.dtype, path: str = "auto", threads: int = 1
) -> torch.Tensor:
    out = torch.full(shape, -1, dtype=dtype)
    place = out.view(-1).view(torch.uint8).numpy()
    trellis_stream.decode_into(stream, shape, dtype, place, threads=threads, path=path)
    return out


def codes_of(stream: Bytes, shape: tuple[int, int], path: str = "auto", threads: int = 1) -> np.ndarray:
    codes = np.zeros(shape, np.int16)
    with rans.refusals("trellis"):
        _native.trellis_codes(as_bytes(stream), codes, threads, path)
    return codes


def check_all_paths(stream: Bytes, shape: tuple[int, int], codes: np.ndarray, values: np.ndarray) -> None:
    for path, threads in itertools.product(PATHS, (1, 2)):
        assert np.array_equal(codes_of(stream, shape, path, threads), codes)
        for dtype, bits in DTYPES.items():
            stored = values_of(stream, shape, dtype, path, threads)
            assert torch.equal(stored.view(bits), torch.from_numpy(values).to(dtype).view(bits))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_path_decodes_what_the_reference_decodes(data: st.DataObject) -> None:
    draw = data.draw
    shape = Shape(
        rows=draw(st.integers(1, 90)),
        columns=draw(st.integers(1, 150)),
        states=draw(st.sampled_from(sorted(MACHINES))),
        segment=draw(st.sampled_from([1, 7, 32, 256])),
        row_classes=draw(st.integers(1, 8)),
        column_classes=draw(st.integers(1, 8)),
        spread=draw(st.sampled_from([0.0, 0.3, 3.0, 60.0, 4000.0])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    layout = Layout(
        lanes=draw(st.sampled_from([4, 8, 16, 32, 64])),
        segments=draw(st.sampled_from([1, 2, 8])),
        tile=draw(st.sampled_from([3, 64, 100, 4096])),
        base=draw(st.sampled_from([-126, 0, -16384, 16130])),
    )
    made = matrix(shape)
    streams = {stream_of(made, layout, threads=threads).tobytes() for threads in (1, 3)}
    assert len(streams) == 1
    stream = streams.pop()
    codes = reference.decode_codes(stream)
    assert np.array_equal(codes, made.codes.numpy())
    values = made.grid.value(made.codes, {}).numpy()
    assert np.array_equal(reference.decode(stream), values)
    check_all_paths(as_bytes(stream), (shape.rows, shape.columns), codes, values)


@pytest.mark.parametrize("lanes", [16, 32, 64])
@pytest.mark.parametrize("columns", [64, 75])
def test_long_columns_run_through_vectors(lanes: int, columns: int) -> None:
    """Enough words that nearly all steps are those of vector code, escapes among them."""
    made = matrix(Shape(600, columns, segment=256, row_classes=3, column_classes=2, spread=25.0))
    stream = stream_of(made, Layout(lanes, segments=2))
    assert reference.read_head(stream.tobytes()).sums[:, 1].min() > 0, "no escapes"
    check_all_paths(stream, (600, columns), made.codes.numpy(), made.grid.value(made.codes, {}).numpy())


@pytest.mark.parametrize("step", [2.0**-140, 2.0**-20, 1.0, 1e30])
def test_small_and_large_values_are_rounded_alike(step: float) -> None:
    """Subnormal numbers and infinities too."""
    made = matrix(Shape(70, 64, spread=3000.0))
    grid = replace(trellis_stream.fitted(made), step=float(np.float32(step)))
    made = encoded(grid, made.codes, made.params["row_class"].view(-1), made.dtype)
    stream = stream_of(made, Layout(32))
    values = grid.value(made.codes, {}).numpy()
    assert np.array_equal(reference.decode(stream.tobytes()), values)
    check_all_paths(stream, (70, 64), made.codes.numpy(), values)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (700, 3), (3, 5000)])
def test_what_is_packed_comes_back(shape: tuple[int, int]) -> None:
    made = matrix(Shape(*shape, segment=256, row_classes=2 if shape[0] else 1, spread=9.0))
    stream = trellis_stream.pack(made, threads=2)
    back = trellis_stream.unpack(stream, shape, torch.bfloat16)
    assert torch.equal(back.codes, made.codes)
    assert torch.equal(back.params["row_class"], made.params["row_class"])
    grid, was = trellis_stream.fitted(back), trellis_stream.fitted(made)
    assert (grid.states, grid.segment, grid.step) == (was.states, was.segment, was.step)
    for name in ("step_code", "column_class", "shift"):
        assert torch.equal(getattr(grid, name), getattr(was, name)), name
    assert torch.equal(values_of(stream, shape, torch.float32), made.grid.value(made.codes, {}))


def test_chunks_are_of_about_a_million_weights() -> None:
    assert trellis_stream.layout_for(4096, 4096, 256) == (1, 64)
    assert trellis_stream.layout_for(32000, 288, 256) == (8, 64)
    assert trellis_stream.layout_for(288, 768, 256) == (2, 16)
    assert trellis_stream.layout_for(10, 10, 256) == (1, 4)


def test_size_is_that_of_the_entropy() -> None:
    made = matrix(Shape(512, 96, segment=256, spread=1.0))
    stream = stream_of(made, Layout(8, segments=2))
    head = reference.read_head(stream.tobytes())
    codes = made.codes.numpy().astype(np.int64)
    bits = 0.0
    for parity in (0, 1):
        counts = np.unique((codes >> 1)[codes % 2 == parity], return_counts=True)[1]
        bits += (counts * np.log2(counts.sum() / counts)).sum()
    assert bits / 8 < stream.size - head.payload < 1.01 * bits / 8 + 4 * 8


@cache
def sample() -> tuple[Bytes, Encoded]:
    made = matrix(Shape(segment=16, row_classes=2, column_classes=2, spread=80.0))
    return stream_of(made), made


def decode(stream: Bytes, path: str = "auto") -> torch.Tensor:
    return values_of(stream, sample()[1].shape, torch.bfloat16, path)


@pytest.mark.parametrize("path", PATHS)
def test_no_damage_goes_unseen(path: str) -> None:
    stream = sample()[0]
    for at in range(stream.size):
        damaged = stream.copy()
        damaged[at] ^= 1 << at % 8
        with pytest.raises(InputError):
            decode(damaged, path)
        with pytest.raises(InputError):
            decode(stream[:at], path)
    with pytest.raises(InputError):
        decode(np.append(stream, np.uint8(0)), path)


def resummed(stream: Bytes, at: int, value: int, size: int = 1) -> Bytes:
    """A head that says something else, and whose own sum agrees."""
    payload = reference.read_head(stream.tobytes()).payload
    changed = stream.copy()
    changed[at : at + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)
    changed[payload - 4 : payload] = np.frombuffer(
        rans.crc32c(changed[: payload - 4].copy()).to_bytes(4, "little"), np.uint8
    )
    return changed


NAN, HUGE = 0x7FC00000, 0x7F000000


@pytest.mark.parametrize(
    ("at", "value", "size", "line"),
    [
        (0, 0, 1, "not a stream of a trellis, or of a version unknown here"),
        (4, 7, 1, "the machine of the trellis is none of 1 to 64 states"),
        (5, 8, 1, "the machine of the trellis is none of 1 to 64 states"),
        (6, 9, 1, "the machine of the trellis is none of 1 to 64 states"),
        (7, 1, 1, "lanes are not a power of two from 4 to 64"),
        (7, 7, 1, "lanes are not a power of two from 4 to 64"),
        (8, 41, 4, "the stream holds 41 x 9 weights, not 40 x 9"),
        (12, 2**32 - 1, 4, "the stream holds 40 x 4294967295 weights, not 40 x 9"),
        (16, 0, 4, "a tile of the trellis is empty, or larger than 2^26"),
        (16, 2**15, 4, "a tile of the trellis is empty, or larger than 2^26"),
        (20, 0, 4, "a tile of the trellis is empty, or larger than 2^26"),
        (24, 0, 4, "the step is no positive number"),
        (24, NAN, 4, "the step is no positive number"),
        (24, HUGE, 4, "a step of the stream is not finite"),
        (28, 1, 2, "the first level is odd, or too far out"),
        (28, 16132, 2, "the first level is odd, or too far out"),
        (28, 2**16 - 16386, 2, "the first level is odd, or too far out"),
        (30, 0, 1, "classes of rows or columns are not 1 to 8"),
        (31, 9, 1, "classes of rows or columns are not 1 to 8"),
        (31, 1, 1, "a probability table does not sum to its total"),
        (32, 32, 1, "there are more than 31 shifts"),
        (33, 27, 1, "a tile has more than 2^26 segments"),
        (33, 13, 1, "a tile of the trellis is empty, or larger than 2^26"),
        (34, 1, 1, "a reserved byte of the stream is not zero"),
        (36, 2**31, 4, "the model of the stream is longer than the stream"),
        (16, 1 | 1 << 32, 8, "the chunk table is longer than the stream"),
        (72, 9, 1, "a plane of the stream has more than 8 bits"),
        (71, 255, 1, "a plane of the stream points outside"),
    ],
)
def test_refusals_of_a_head(at: int, value: int, size: int, line: str) -> None:
    with pytest.raises(InputError) as refused:
        decode(resummed(sample()[0], at, value, size))
    assert str(refused.value) == f"trellis: {line}"


@cache
def tiny() -> tuple[Bytes, Encoded]:
    """One chunk with one escape, whose level is 1000."""
    plain = matrix(Shape(rows=30, columns=4, segment=64, spread=3.0))
    levels = plain.codes.numpy() >> 1
    levels[7, 2] = 1000
    codes = torch.from_numpy(follow(levels, np.arange(30), 8, 64))
    made = encoded(trellis_stream.fitted(plain), codes, plain.params["row_class"].view(-1), plain.dtype)
    return stream_of(made, Layout(base=-60)), made


def edited(name: str) -> Bytes:
    """`tiny()` with something wrong in its only chunk, and the right sum of the head."""
    stream = tiny()[0]
    payload = reference.read_head(stream.tobytes()).payload
    words, escapes, _ = reference.read_head(stream.tobytes()).sums[0].tolist()
    table, last_word, level = payload - 16, payload + 16 + 2 * (words - 1), payload + 16 + 2 * words
    if name == "too many words":
        return resummed(stream, table, 121, 4)
    if name == "longer than it is":
        return resummed(stream, table + 4, escapes + 1, 4)
    if name == "state":
        return resummed(np.concatenate([stream[: payload + 2], np.zeros(2, np.uint8), stream[payload + 4 :]]), 0, 0x6C)
    if name == "one word less":
        return resummed(np.delete(stream, [last_word, last_word + 1]), table, words - 1, 4)
    if name == "no escape":
        return resummed(resummed(stream, table, words + 1, 4), table + 4, 0, 4)
    if name == "one escape more":
        return resummed(np.append(stream, np.zeros(2, np.uint8)), table + 4, escapes + 1, 4)
    changed = stream.copy()
    if name == "odd level":
        changed[level] ^= 1
    if name == "large level":
        changed[level : level + 2] = np.frombuffer(np.int16(-16386).tobytes(), np.uint8)
    if name == "last word":
        changed[last_word + 1] ^= 1
    if name == "another level":
        changed[level] ^= 2
    return changed


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("too many words", "chunk 0 claims more words or escapes than it has symbols"),
        ("longer than it is", "the stream claims {} bytes and has {}"),
        ("state", "chunk 0: a lane state is out of range"),
        ("one word less", "chunk 0: its words end early"),
        ("no escape", "chunk 0: its escapes end early"),
        ("one escape more", "chunk 0: words or escapes are left over"),
        ("odd level", "chunk 0: an escape announces another level"),
        ("large level", "chunk 0: an escape announces another level"),
        ("last word", "chunk 0: a lane does not end where it began"),
        ("another level", "chunk 0: the sum of its symbols differs"),
    ],
)
def test_refusals_of_a_chunk(name: str, line: str, path: str) -> None:
    stream, made = tiny()
    with pytest.raises(InputError) as refused:
        codes_of(edited(name), made.shape, path)
    assert str(refused.value) == "trellis: " + line.format(stream.size + 2, stream.size)
    with pytest.raises(ValueError):  # the definition may use other words
        reference.decode(edited(name).tobytes())


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        (Layout(lanes=2), "lanes are not a power of two from 4 to 64"),
        (Layout(base=1), "the first level is odd, or too far out"),
        (Layout(tile=0), "a tile of the trellis is empty, or larger than 2^26"),
        (Layout(fields={"segment": 0}), "a tile of the trellis is empty, or larger than 2^26"),
        (Layout(fields={"segment": 5}), "the codes do not follow the trellis"),
        (Layout(fields={"parity": 8}), "a trellis has 1 to 64 states"),
        (Layout(fields={"step": -1.0}), "the step is no positive number"),
        (Layout(fields={"step_code": np.zeros(3, np.uint8)}), "there is not one step for each column"),
        (Layout(fields={"row_class": np.zeros(3, np.uint8)}), "the codes are not [rows, columns]"),
        (Layout(fields={"row_class": np.full(40, 8, np.uint8)}), "classes of rows or columns are not 1 to 8"),
        (Layout(fields={"shifts": np.zeros(32, np.int8)}), "there are more than 31 shifts"),
    ],
)
def test_refusals_of_what_cannot_be_packed(layout: Layout, line: str) -> None:
    with pytest.raises(InputError) as refused:
        stream_of(sample()[1], layout)
    assert str(refused.value) == f"trellis: {line}"


@pytest.mark.parametrize(
    ("path", "size", "line"),
    [
        ("quantum", 720, "no path is named quantum"),
        ("auto", 719, "the place is not of the size of the values"),
    ],
)
def test_refusals_of_arguments(path: str, size: int, line: str) -> None:
    with pytest.raises(InputError) as refused:
        trellis_stream.decode_into(sample()[0], (40, 9), torch.bfloat16, np.zeros(size, np.uint8), threads=1, path=path)
    assert str(refused.value) == f"trellis: {line}"


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), path=st.sampled_from(PATHS))
def test_mutations_decode_alike_or_are_refused(seed: int, path: str) -> None:
    """With the sum of the head made right, so that what it says is believed."""
    rng = np.random.default_rng(seed)
    stream = sample()[0].copy()
    payload = reference.read_head(stream.tobytes()).payload
    for _ in range(rng.integers(1, 4)):
        stream[rng.integers(stream.size)] = rng.integers(256)
    stream[payload - 4 : payload] = np.frombuffer(
        rans.crc32c(stream[: payload - 4].copy()).to_bytes(4, "little"), np.uint8
    )
    found: list[Any] = []
    for each in ("scalar", path):
        try:
            found.append(decode(stream, each).view(torch.int16).tolist())
        except InputError as refused:
            found.append(str(refused))
    assert found[0] == found[1]
