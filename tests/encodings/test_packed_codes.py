"""Kind CODES of coded tensors: packed codes as one plane, bit for bit, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from coded_cases import bits, check, joined, noise, resealed
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.encodings.coding import code_choice, coded_head, packed_codes, rans
from llmc.encodings.coding.coded_head import CODES, Head, pack_head, parse_head
from llmc.encodings.coding.coded_tensor import decode
from llmc.encodings.coding.packed_codes import ALONG_COLUMNS, ALONG_ROWS, LINES, NO_AXIS, PLACES, Cut
from llmc.encodings.coding.packing import pack_rows
from llmc.encodings.coding.rans import Contexts
from llmc.encodings.coding.tensor_coder import encode, entropy
from llmc.encodings.kernels import coded_tensor as reference
from llmc.errors import InputError


def codes(rows: int, columns: int, width: int, *, spread: int = 0, seed: int = 0) -> torch.Tensor:
    """Codes of `width` bits of normal weights, uint8 [rows, columns]; lines (1) or places (2) of other scale."""
    random = torch.Generator().manual_seed(seed)
    scales = (1, 1) if not spread else (rows, 1) if spread == LINES else (1, columns)
    spreads = torch.exp(torch.randn(scales, generator=random) * bool(spread))
    values = torch.randn(rows, columns, generator=random) * spreads
    middle = 1 << (width - 1)
    return (values * middle / (4 if spread else 2.5) + middle).round().clamp(0, 2 * middle - 1).to(torch.uint8)


def packed(plane: torch.Tensor, width: int, along: int = ALONG_ROWS) -> torch.Tensor:
    words = pack_rows(plane, width)
    return words if along == ALONG_ROWS else words.t().contiguous()


@pytest.mark.parametrize("along", [ALONG_ROWS, ALONG_COLUMNS])
@pytest.mark.parametrize("width", range(2, 9))
def test_packed_codes_are_found_and_coded_near_their_entropy(width: int, along: int) -> None:
    plane = codes(128, 300, width)
    coded = check(packed(plane, width, along))
    limit = entropy(np.bincount(plane.view(-1).numpy())) * plane.numel() / 8
    assert coded.head.kind == CODES or width == 8  # whole bytes are as good
    assert coded.nbytes < 1.01 * limit + 150 + 2.5 * (1 << width)
    if width in (3, 5, 6, 7):
        assert coded.head.cut is not None and (coded.head.cut.bits, coded.head.cut.along) == (width, along)


@pytest.mark.parametrize("along", [ALONG_ROWS, ALONG_COLUMNS])
@pytest.mark.parametrize("axis", [LINES, PLACES])
@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_lines_or_places_of_other_scale_get_tables_of_their_own(width: int, axis: int, along: int) -> None:
    plane = codes(256, 384, width, spread=axis)
    coded = check(packed(plane, width, along))
    assert coded.head.kind == CODES and coded.head.axis == axis and coded.head.groups > 1
    together = entropy(np.bincount(plane.view(-1).numpy())) * plane.numel() / 8
    lines = [plane[i] if axis == LINES else plane[:, i] for i in range(plane.shape[axis - 1])]
    apart = sum(entropy(np.bincount(line.numpy())) * line.numel() / 8 for line in lines)
    assert apart < coded.nbytes < together


def test_padding_is_restored_and_costs_nothing() -> None:
    """Rows of 100 codes of 3 bits fill 9.4 words."""
    plane = codes(200, 100, 3)
    coded = check(packed(plane, 3))
    assert coded.head.cut is not None and coded.head.cut.count < 106
    exact = check(packed(codes(200, 96, 3), 3))
    assert coded.nbytes / 100 < 1.03 * exact.nbytes / 96


@pytest.mark.parametrize("value", [1, -(2**31)])
def test_a_bit_in_the_padding_survives(value: int) -> None:
    words = packed(codes(200, 100, 3), 3)
    words[17, -1] |= value << 20 if value == 1 else value
    check(words)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_codes_in_integers_of_any_size(dtype: torch.dtype) -> None:
    words = packed(codes(120, 256, 4, spread=PLACES), 4)
    assert check(words.view(dtype)).head.kind == CODES


def test_experts_in_one_tensor() -> None:
    words = torch.stack([packed(codes(64, 96, 3, spread=PLACES, seed=i), 3, ALONG_COLUMNS) for i in range(4)])
    coded = check(words)
    assert coded.head.kind == CODES and coded.head.cut is not None and coded.head.cut.count == 4 * 96


def test_fast_has_no_codes() -> None:
    assert check(packed(codes(128, 300, 3), 3), "fast").head.kind != CODES


def test_noise_is_no_codes() -> None:
    assert code_choice.choose(np.frombuffer(bits(noise(50_000, torch.int32)), np.uint8), 4, 50) is None


def test_large_tensors_are_judged_by_some_of_their_lines() -> None:
    """The groups are those of all lines: one that was not looked at has a code that no other has."""
    plane = codes(4096, 2048, 3, spread=PLACES)
    assert plane.numel() * 3 // 8 > code_choice.SECOND
    plane[:, 2040:] = 0
    plane[4095, 2047] = 5
    words = packed(plane, 3)
    coded = encode(words)
    assert coded.head.kind == CODES and coded.head.axis == PLACES
    assert torch.equal(decode(joined(coded)), words)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 70),
    width=st.integers(2, 8),
    along=st.sampled_from([ALONG_ROWS, ALONG_COLUMNS]),
    spread=st.sampled_from([NO_AXIS, LINES, PLACES]),
    seed=st.integers(0, 1000),
)
def test_any_codes(rows: int, columns: int, width: int, along: int, spread: int, seed: int) -> None:
    check(packed(codes(rows, columns, width, spread=spread, seed=seed), width, along))


@settings(max_examples=60, deadline=None)
@given(
    table=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.sampled_from([1, 2, 4, 8]),
    width=st.integers(1, 8),
    along=st.sampled_from([ALONG_ROWS, ALONG_COLUMNS]),
    axis=st.sampled_from([NO_AXIS, LINES, PLACES]),
    groups=st.integers(1, 64),
    seed=st.integers(0, 1000),
)
def test_any_cut_that_the_format_allows(
    table: tuple[int, int], size: int, width: int, along: int, axis: int, groups: int, seed: int
) -> None:
    """Both decoders, on what an encoder may write: any groups, any count."""
    random = np.random.default_rng(seed)
    columns, n = table[1], table[0] * table[1]
    groups = groups if axis else 1
    whole = Cut(width, along, columns, 1)
    cut = replace(whole, count=int(random.integers(1, 8 * whole.line_bytes(n, size) // width + 1)))
    lines = cut.lines(n)
    plane = random.integers(0, 1 << width, (lines, cut.count)).astype(np.uint8)
    data = sealed(plane, cut, table, size, axis, random.integers(0, groups, lines if axis == LINES else cut.count))
    line = [sum(int(code) << (width * i) for i, code in enumerate(row)) for row in plane]
    expected = np.array(
        [[list(value.to_bytes(whole.line_bytes(n, size), "little"))] for value in line], np.uint8
    ).reshape(lines, -1, size)
    expected = expected if along == ALONG_ROWS else expected.transpose(1, 0, 2)
    for back in (decode(data), reference.dequantize(data.tobytes())):
        assert tuple(back.shape) == table
        assert bits(back) == expected.tobytes()


def sealed(
    plane: np.ndarray, cut: Cut, table: tuple[int, int], size: int, axis: int, group_of: np.ndarray, **changes: Any
) -> np.ndarray:
    """A coded tensor of codes, written by hand."""
    dtype = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}[size]
    members = group_of.astype(np.uint8)
    context = np.repeat(members, plane.shape[1]) if axis == LINES else np.tile(members, plane.shape[0])
    streams = [rans.encode(members), rans.encode(plane, select=Contexts(context))] if axis else [rans.encode(plane)]
    groups = int(members.max()) + 1 if axis else 1
    head = Head(CODES, dtype, table, dtype, cut=cut, axis=axis, groups=groups)
    head = replace(head, lengths=tuple(s.size for s in streams), sums=(0,) * len(streams), **changes)
    return np.concatenate([np.frombuffer(pack_head(head), np.uint8), *streams])


def example() -> np.ndarray:
    return joined(check(packed(codes(64, 384, 3, spread=PLACES), 3)))


# The head of a tensor [64, 36]: magic 0-3, kind 4, dtype 5, held 6, dimensions 7, shape 8 and 9, bits 10, along 11,
# axis 12, groups 13, width 14, count 15 and 16.
LIES = {
    "no bits": (10, b"\x00", "codes of 0 bits along axis 1"),
    "too many bits": (10, b"\x09", "codes of 9 bits along axis 1"),
    "a third direction": (11, b"\x03", "codes of 3 bits along axis 3"),
    "an unknown axis": (12, b"\x03", "groups along axis 3"),
    "no groups": (13, b"\x00", "a coded tensor of 0 groups"),
    "fewer groups": (13, b"\x01", "a member of no group"),
    "rows of nothing": (14, b"\x00", "in rows of 0"),
    "rows that do not divide it": (14, b"\x23", "2304 elements in rows of 35"),
    "codes beyond the line": (15, b"\x81\x03", "385 codes of 3 bits in a line that is shorter"),
    "fewer codes": (15, b"\xff\x02", "rans"),
    "narrower codes": (10, b"\x02", "codes of more than 2 bits"),
    "another shape": (8, b"\x20", "rans"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_head_that_lies_is_refused(name: str) -> None:
    at, new, message = LIES[name]
    data = example()
    assert parse_head(data).cut == Cut(3, ALONG_ROWS, 36, 384)
    with pytest.raises(InputError, match=message):
        decode(resealed(data, at, new))


def test_a_member_of_no_group_is_refused() -> None:
    cut, plane = Cut(4, ALONG_ROWS, 2, 16), np.zeros((3, 16), np.uint8)
    data = sealed(plane, cut, (3, 2), 4, LINES, np.array([0, 5, 1]), groups=5)
    with pytest.raises(InputError, match="a member of no group"):
        decode(data)


def test_values_that_are_no_bytes_are_refused() -> None:
    cut = Cut(4, ALONG_ROWS, 2, 16)
    stream = rans.encode_wide(np.arange(48, dtype=np.int16) % 5 - 3)
    head = Head(CODES, "int32", (3, 2), "int32", cut=cut, lengths=(stream.size,), sums=(0,))
    with pytest.raises(InputError, match="codes of more than 4 bits"):
        decode(np.concatenate([np.frombuffer(pack_head(head), np.uint8), stream]))


def test_damage_is_always_found() -> None:
    data = example()
    random = np.random.default_rng(0)
    for place in {*random.integers(0, data.size, 150).tolist(), *range(60)}:
        bad = data.copy()
        bad[place] ^= 1 << int(random.integers(8))
        with pytest.raises(InputError):
            decode(bad)
    for size in (0, 12, 15, 30, data.size // 2, data.size - 1):
        with pytest.raises(InputError):
            decode(data[:size])


def test_bytes_depend_on_no_thread() -> None:
    words = packed(codes(2048, 1024, 3, spread=PLACES), 3)
    one, two = (joined(encode(words, threads=n)) for n in (1, 3))
    assert np.array_equal(one, two)
    assert torch.equal(decode(one, threads=3), words)


def test_a_sample_is_whole_lines() -> None:
    words = torch.arange(60, dtype=torch.int32).view(10, 6)
    data = np.frombuffer(bits(words), np.uint8)
    rows = packed_codes.sample(data, 4, 6, ALONG_ROWS, 50).view(np.int32).reshape(-1, 6)
    columns = packed_codes.sample(data, 4, 6, ALONG_COLUMNS, 50).view(np.int32).reshape(10, -1)
    assert {tuple(row) for row in rows.tolist()} < {tuple(row) for row in words.tolist()}
    assert {tuple(column) for column in columns.T.tolist()} < {tuple(column) for column in words.t().tolist()}
    assert np.array_equal(packed_codes.sample(data, 4, 6, ALONG_ROWS, 1000), data)


def test_the_kind_has_its_number() -> None:
    assert (CODES, coded_head.KINDS[CODES]) == (6, "codes")
