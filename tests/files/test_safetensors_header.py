"""The header of a safetensors file: every bad one with its exact line, hostile ones, and those we write."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.errors import CheckpointError, LlmcError, UnsupportedError
from llmc.files import header as safetensors_header
from llmc.files.header import DTYPES
from llmc.files.safetensors import load, read_file, write_header

DAMAGED = "; the file is damaged: download it again"
KNOWN = "; known are " + ", ".join(DTYPES)


def framed(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(**fields: Any) -> bytes:
    """A file with the tensor `a` of 4 bytes, described by `fields`."""
    return framed({"a": entry(**fields)}, bytes(4))


def pair(first: Any, second: Any, size: int) -> bytes:
    return framed(
        {"a": entry("U8", [first[1] - first[0]], first), "b": entry("U8", [second[1] - second[0]], second)}, bytes(size)
    )


def sparse(path: Path, length: int, size: int) -> None:
    with open(path, "wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(size)


NATURALS = "integers from 0 to 2^63 - 1" + DAMAGED
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "01 empty": (b"", "empty file" + DAMAGED),
    "02 short": (b"12345", "only 5 bytes long, too short for a safetensors file" + DAMAGED),
    "03 length 2^63": (
        (1 << 63).to_bytes(8, "little") + b"{}",
        "claims a header of 9223372036854775808 bytes and is 10 bytes long" + DAMAGED,
    ),
    "04 length beyond file": (
        (3).to_bytes(8, "little") + b"{}",
        "claims a header of 3 bytes and is 10 bytes long" + DAMAGED,
    ),
    "06 not JSON": (framed(b"{nonsense}"), "header is not JSON at byte 1" + DAMAGED),
    "06 array": (framed(b"[]"), "header does not start with '{'" + DAMAGED),
    "06 no header": (framed(b""), "header does not start with '{'" + DAMAGED),
    "06 blank first": (framed(b" {}"), "header does not start with '{'" + DAMAGED),
    "06 two objects": (framed(b"{} {}"), "header goes on after its end, at byte 2" + DAMAGED),
    "06 unclosed": (framed(b'{"a'), "header is not JSON at byte 1" + DAMAGED),
    "06 no value": (framed(b'{"a":}'), "tensor a: header is not JSON at byte 5" + DAMAGED),
    "06 comma last": (framed(b'{"__metadata__":{},}'), "header is not JSON at byte 19" + DAMAGED),
    "06 half a surrogate pair": (framed(rb'{"\ud800":{}}'), "header is not JSON with a string at byte 1" + DAMAGED),
    "06 LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "a Git LFS pointer, not the weights; fetch them with: git lfs pull",
    ),
    "07 UTF-8": (framed(b'{"\xff":{}}'), "header is not UTF-8" + DAMAGED),
    "07 UTF-8 cut": (framed(b'{"a":{}}\xc3'), "header is not UTF-8" + DAMAGED),
    "08 deep objects": (
        framed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "header is nested more than 32 deep" + DAMAGED,
    ),
    "08 deep arrays": (
        framed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "header is nested more than 32 deep" + DAMAGED,
    ),
    "08 deep shape": (
        framed(b'{"a":{"shape":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
        "tensor a: header is not JSON at byte 5" + DAMAGED,
    ),
    "09 truncated": (
        framed({"a": entry()}, bytes(3)),
        "tensor a: ends at byte 72 of a file of 71: the file is truncated" + DAMAGED,
    ),
    "10 trailing": (
        framed({"a": entry()}, bytes(9)),
        "the 5 bytes after the last tensor a belong to no tensor" + DAMAGED,
    ),
    "10 trailing, no tensor": (framed(b"{}", b"\0"), "the 1 bytes after the header belong to no tensor" + DAMAGED),
    "11 overlap": (pair((0, 4), (3, 7), 7), "tensor b: overlaps tensor a" + DAMAGED),
    "11 same bytes": (pair((0, 4), (0, 4), 4), "tensor b: overlaps tensor a" + DAMAGED),
    "12 hole": (pair((0, 4), (6, 8), 8), "tensor b: the 2 bytes before it belong to no tensor" + DAMAGED),
    "12 hole first": (pair((2, 4), (4, 8), 8), "tensor a: the 2 bytes before it belong to no tensor" + DAMAGED),
    "13 negative": (one(offsets=[-4, 0]), "tensor a: data_offsets [-4, 0] are not two rising " + NATURALS),
    "14 reversed": (one(offsets=[4, 0]), "tensor a: data_offsets [4, 0] are not two rising " + NATURALS),
    "14 three": (one(offsets=[0, 4, 4]), "tensor a: data_offsets [0, 4, 4] are not two rising " + NATURALS),
    "14 boolean": (
        one(shape=[1], offsets=[False, 1]),
        "tensor a: data_offsets [false, 1] are not two rising " + NATURALS,
    ),
    "15 span": (
        one(shape=[3]),
        "tensor a: U8 of shape [3] takes 3 bytes, its data_offsets span 4" + DAMAGED,
    ),
    "15 span of zero-size": (
        one(shape=[0, 1 << 62]),
        "tensor a: U8 of shape [0, 4611686018427387904] takes 0 bytes, its data_offsets span 4" + DAMAGED,
    ),
    "16 product": (
        one(shape=[1 << 32, 1 << 32]),
        "tensor a: shape [4294967296, 4294967296] overflows: 2^63 elements or more" + DAMAGED,
    ),
    "16 product that wraps to 4": (
        one(shape=[(1 << 62) + 1, 4]),
        "tensor a: shape [4611686018427387905, 4] overflows: 2^63 elements or more" + DAMAGED,
    ),
    "16 strides of zero-size": (
        one(shape=[0, 1 << 62, 8], offsets=[0, 0]),
        "tensor a: shape [0, 4611686018427387904, 8] overflows: 2^63 elements or more" + DAMAGED,
    ),
    "16 huge integer": (
        one(shape=[10**30]),
        "tensor a: shape [1000000000000000000000000000000] is not a list of " + NATURALS,
    ),
    "16 integer of 5000 digits": (
        framed(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"\0"),
        "tensor a: header is not JSON at byte 5" + DAMAGED,
    ),
    "16 negative": (one(shape=[-4]), "tensor a: shape [-4] is not a list of " + NATURALS),
    "16 boolean": (one(shape=[True, 4]), "tensor a: shape [true, 4] is not a list of " + NATURALS),
    "16 float": (one(shape=[4.0]), "tensor a: shape [4.0] is not a list of " + NATURALS),
    "16 number": (one(shape=4), "tensor a: shape 4 is not a list of " + NATURALS),
    "16 odd F4": (
        one(dtype="F4", shape=[8, 1]),
        "tensor a: shape [8, 1] of F4, two values a byte, does not end in an even number" + DAMAGED,
    ),
    "17 dtype": (one(dtype="Q4"), 'tensor a: unknown dtype "Q4"' + KNOWN),
    "17 dtype list": (one(dtype=["U8"]), 'tensor a: unknown dtype ["U8"]' + KNOWN),
    "18 duplicate": (
        framed(b'{"a":%s,"\\u0061":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
        "tensor a: listed twice in the header" + DAMAGED,
    ),
    "18 duplicate field": (
        framed(b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
        "tensor a: a field is listed twice" + DAMAGED,
    ),
    "18 duplicate metadata": (
        framed(b'{"__metadata__":{},"__metadata__":{}}'),
        "tensor __metadata__: listed twice in the header" + DAMAGED,
    ),
    "18 duplicate metadata key": (
        framed(b'{"__metadata__":{"k":"1","k":"2"}}'),
        "__metadata__: k is listed twice" + DAMAGED,
    ),
    "metadata number": (framed({"__metadata__": {"k": 1}}), "__metadata__: k is not a string" + DAMAGED),
    "metadata list": (
        framed({"__metadata__": []}),
        "__metadata__ is not an object of at most 16777216 bytes" + DAMAGED,
    ),
    "fields missing": (
        framed({"a": {"dtype": "U8"}}),
        "tensor a: its description is not just dtype, shape and data_offsets" + DAMAGED,
    ),
    "fields more": (
        framed({"a": {**entry(), "x": 1}}, bytes(4)),
        "tensor a: its description is not just dtype, shape and data_offsets" + DAMAGED,
    ),
    "20 terminal": (
        framed({"../\x00\n\x1b[31m\u202e": 1}),
        r"tensor ../\x00\n\x1b[31m\u202e: its description is not just dtype, shape and data_offsets" + DAMAGED,
    ),
    "20 long name": (
        framed({"x" * 5000: 1}),
        f"tensor {'x' * 100}... (5000 characters): its description is not just dtype, shape and data_offsets" + DAMAGED,
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, line = BAD_FILES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert str(caught.value) == f"{path}: {line}"
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()


def test_a_header_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    sparse(path, 100_000_001, 200_000_000)
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    line = "claims a header of 100000001 bytes; the format's limit is 100000000"
    assert str(caught.value) == f"{path}: {line}{DAMAGED}"


BOMBS: dict[str, Callable[[int], bytes]] = {
    "arrays": lambda n: b'{"a":[' + b"[]," * (n // 3) + b"[]]}",
    "arrays in a description": lambda n: b'{"a":{"shape":[' + b"[]," * (n // 3) + b"[]]}}",
    "metadata": lambda n: b'{"__metadata__":{' + b'"":"",' * (n // 6) + b'"":""}}',
    "unclosed escapes": lambda n: b'{"a":"' + rb"\"" * (n // 2),
    "unclosed strings": lambda n: b'{"a":[' + b'"' * (n | 1),
    "deep": lambda n: b'{"a":' + b"[" * n,
    "blanks": lambda n: b"{" + b" " * n,
    "digits": lambda n: b'{"a":' + b"1" * n + b"}",
    "name": lambda n: b'{"' + b"n" * n + b'":1}',
    "braces": lambda n: b'{"a":{' + b"}" * n,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_header_costs_little_more_than_its_size(bomb: str, tmp_path: Path) -> None:
    size = 10_000_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed(BOMBS[bomb](size)))
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 500
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.2 * size


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "TENSOR_LIMIT", 3)
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed({str(i): entry("U8", [0], [0, 0]) for i in range(4)}))
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert str(caught.value) == f"{path}: header has more than 3 members{DAMAGED}"


def test_zero_sizes_scalars_and_strange_names_are_kept_exactly(tmp_path: Path) -> None:
    header = {
        "../../x\n": entry("U8", [0, 1 << 62], [0, 0]),
        "": entry("F32", [], [0, 4]),
        "z1": entry("BF16", [3, 0], [4, 4]),
        "z2": entry("I64", [0], [4, 4]),
        "__metadata__": {"k": "v", "k{": "}\u00e9"},
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed(header, b"\0\0\xc0\x3f"))
    file = read_file(path)
    assert list(file.entries) == ["../../x\n", "", "z1", "z2"]
    assert file.metadata == {"k": "v", "k{": "}\u00e9"}
    assert (file.size, file.size - file.header_size) == (path.stat().st_size, 4)
    assert [load(e).shape for e in file.entries.values()] == [(0, 1 << 62), (), (3, 0), (0,)]
    assert load(file.entries[""]).item() == 1.5
    assert (file.entries["z1"].numel, file.entries["z1"].nbytes) == (0, 0)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__")
tensors = st.dictionaries(
    names, st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=6
)


@settings(max_examples=100, deadline=None)
@given(
    tensors, st.dictionaries(st.text(max_size=5).filter(lambda t: t.isprintable()), st.text('ab\u00e9\n"{', max_size=9))
)
def test_a_written_header_is_read_alike_by_us_and_by_the_library(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    layout = [(n, DTYPES[d], tuple(s) if d != "F4" or s else (1,)) for n, (d, s) in wanted.items()]
    header, spans = write_header(layout, metadata)
    size = max([len(header), *(stop for _, stop in spans.values())])
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    path.write_bytes(header + bytes(i % 2 for i in range(size - len(header))))
    file = read_file(path)
    assert len(header) % 8 == 0
    assert (file.header_size, file.metadata) == (len(header), metadata)
    assert [(e.name, e.dtype, e.shape) for e in file.entries.values()] == layout
    assert {n: (e.start, e.stop) for n, e in file.entries.items()} == spans
    with safetensors.safe_open(path, "pt") as library:
        assert set(library.keys()) == set(spans)
        assert (library.metadata() or {}) == metadata
        for name, found in file.entries.items():
            ours, theirs = load(found), library.get_tensor(name)
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert ours.reshape(-1).view(torch.uint8).tolist() == theirs.reshape(-1).view(torch.uint8).tolist()


def test_a_header_that_no_file_can_hold_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'a' is listed twice"):
        write_header([("a", torch.int8, (1,)), ("a", torch.int8, (1,))], {})
    with pytest.raises(ValueError, match="reserved"):
        write_header([("__metadata__", torch.int8, (1,))], {})
    with pytest.raises(UnsupportedError) as caught:
        write_header([("a", torch.complex128, (2,))], {})
    assert str(caught.value) == "a: safetensors cannot hold torch.complex128 of shape [2]"
    monkeypatch.setattr(safetensors_header, "HEADER_LIMIT", 50)
    with pytest.raises(UnsupportedError) as caught:
        write_header([("a", torch.int8, (1,))], {})
    assert str(caught.value) == "too many tensors for one file: 1; use smaller shards"


VALID = framed(
    {"__metadata__": {"k": "v"}, "a": entry("F16", [2, 2], [0, 8]), "b\u00e9": entry("U8", [], [8, 9])}, bytes(9)
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(VALID)),
    st.binary(max_size=4),
)
def test_damage_raises_nothing_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int, inserted: bytes
) -> None:
    content = bytearray(VALID)
    for at, value in flips:
        content[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    for damaged in (content, content[:cut], content[:cut] + inserted + content[cut:]):
        path.write_bytes(damaged)
        try:
            entries = read_file(path).entries
        except LlmcError as error:
            assert str(error).isprintable()
            continue
        with safetensors.safe_open(path, "pt") as library:  # what we accept, the library accepts
            assert set(library.keys()) == set(entries)
        assert [load(e).shape for e in entries.values()] == [e.shape for e in entries.values()]
