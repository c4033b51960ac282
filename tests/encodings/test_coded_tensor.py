"""Tensors to coded tensors and back, bit for bit, against the definition in `kernels/coded_tensor.py`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from coded_cases import bits, check, joined, noise, resealed
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.encodings.coding import coded_head, coded_tensor, planes, tensor_coder
from llmc.encodings.coding.coded_head import BYTES, COLUMNS, CONSTANT, PIECES, PLANES, RAW, ROWS, SAME, Head, parse_head
from llmc.encodings.coding.coded_tensor import decode
from llmc.encodings.coding.tensor_coder import MODES, encode, entropy
from llmc.encodings.kernels import coded_tensor as reference
from llmc.errors import InputError
from llmc.files.bytes import as_bytes

FLOATS = [getattr(torch, name) for name in planes.BALANCED]
OTHERS = [torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64, torch.complex64]


def weights(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS], ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 4099])
def test_any_bits_come_back(n: int, dtype: torch.dtype, mode: str) -> None:
    check(noise(n, dtype, seed=n), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values_among_weights(dtype: torch.dtype, mode: str) -> None:
    values = weights(40, 300, dtype=dtype)
    values.view(-1)[:500] = noise(500, dtype)
    assert check(values, mode).head.kind == PLANES


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), max_size=3),
    dtype=st.sampled_from([*FLOATS, *OTHERS]),
    mode=st.sampled_from(MODES),
    spread=st.sampled_from([1, 3, 50, 256]),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: list[int], dtype: torch.dtype, mode: str, spread: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, spread, math.prod(shape) * dtype.itemsize, np.uint8)
    if dtype == torch.bool:
        data &= 1
    tensor = torch.from_numpy(data).view(dtype).view(shape) if data.size else torch.empty(shape, dtype=dtype)
    check(tensor, mode)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_constant_tensor_takes_one_element(value: float, dtype: torch.dtype) -> None:
    coded = check(torch.full((300, 70), value, dtype=dtype))
    assert (coded.head.kind, coded.nbytes) == (CONSTANT, coded.head.size + dtype.itemsize)


def test_nearly_constant_is_not_constant() -> None:
    tensor = torch.zeros(10_000)
    tensor[-1] = -0.0
    assert check(tensor).head.kind != CONSTANT


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_float32_that_holds_less_is_stored_as_that(narrow: torch.dtype) -> None:
    values = weights(128, 130, dtype=narrow)
    wide, own = check(values.float()), check(values)
    assert wide.head.held == str(narrow).removeprefix("torch.")
    assert wide.nbytes == own.nbytes


def test_float32_with_one_odd_value_is_not_narrowed() -> None:
    values = weights(128, 130).float()
    values[-1, -1] += 2.0**-30
    assert check(values).head.held == "float32"


def test_nan_payloads_survive_in_float32() -> None:
    values = weights(128, 130, dtype=torch.float16).float()
    values.view(torch.int32)[5, 5] = 0x7FA00000  # a signalling NaN, whose bits float16 could hold
    check(values)


@pytest.mark.parametrize(("axis", "shape"), [(ROWS, (256, 1)), (COLUMNS, (1, 300))])
def test_rows_or_columns_of_other_scale_get_tables_of_their_own(axis: int, shape: tuple[int, int]) -> None:
    scale = torch.exp(torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2)
    values = (weights(256, 300, dtype=torch.float32) * scale).bfloat16()
    coded = check(values, "small")
    assert coded.head.axis == axis and coded.head.groups > 1
    assert coded.gained_bytes > 0
    assert coded.nbytes < check(values).nbytes


def test_integers_lose_the_bytes_that_say_nothing() -> None:
    coded = check(torch.arange(100_000))
    assert coded.head.kind == BYTES
    assert coded.nbytes < 0.3 * 800_000


def test_float64_is_coded_by_bytes() -> None:
    assert check(weights(100, 100, dtype=torch.float64)).head.kind == BYTES


@pytest.mark.parametrize("rest", [0, 5])
def test_rows_that_were_never_trained_are_coded_apart(rest: int) -> None:
    """Padding of a vocabulary, and rows that are still what a narrower dtype made them."""
    values = weights(400, 400, dtype=torch.float32).reshape(-1)
    values[40_000:80_000] = values[40_000:80_000].half().float()
    values[90_000:] = 0.25
    coded = check(values[: values.numel() - rest])
    assert coded.head.kind == PIECES and coded.head.pieces == 5  # the last: what fills no block
    apart = sum(check(values[a:b]).nbytes for a, b in ((0, 40_960), (40_960, 77_824), (77_824, 90_112)))
    assert coded.nbytes < apart + 1000
    assert coded.nbytes < 0.75 * encode(values + weights(160_000, dtype=torch.float32, seed=3) * 1e-6).nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_that_are_narrower_all_through_are_one_piece(dtype: torch.dtype) -> None:
    coded = check(weights(401, 400, dtype=dtype).float())
    assert (coded.head.kind, coded.head.held) == (PLANES, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize(("last", "pieces"), [(2.0**-9 + 2.0**-19, False), (2.0**-9 + 2.0**-20, True)])
def test_what_fills_no_block_decides_too(last: float, pieces: bool) -> None:
    values = weights(401, 400, dtype=torch.float16).bfloat16().float().reshape(-1)  # of both narrow dtypes
    values[-1] = last  # a float16 and no bfloat16, or neither
    assert (check(values).head.kind == PIECES) == pieces


def test_what_only_looks_narrower_is_not() -> None:
    """Blocks are looked at in few places first."""
    values = weights(60, 4096, dtype=torch.float32)
    values[10:40] = values[10:40].bfloat16().float()
    values[20:30, 77] += 2.0**-30
    values[40:60] = 1.5
    values[50, 4095] = 2.0
    coded = check(values)
    assert coded.head.kind == PIECES
    assert coded.head.pieces == 7  # the last: constant, the block with a 2, constant


def test_many_short_runs_are_not_pieces() -> None:
    values = weights(1000, 4096, dtype=torch.bfloat16)
    values[::2] = 0
    assert check_fast(values, "balanced").head.kind != PIECES


def test_pieces_must_make_the_whole() -> None:
    values = weights(300, 400, dtype=torch.float32)
    values[150:] = 0
    coded = encode(values)
    assert coded.head.kind == PIECES
    with pytest.raises(InputError, match="the pieces of a coded tensor do not make the whole"):
        decode(
            np.concatenate([as_bytes(coded_head.pack_head(replace(coded.head, shape=(300, 399)))), *coded.pieces[1:]])
        )
    with pytest.raises(InputError, match="a coded tensor of 0 pieces"):
        decode(as_bytes(coded_head.pack_head(Head(PIECES, "float32", (3,), "float32"))))


def test_noise_stays_raw() -> None:
    assert check(noise(100_000, torch.uint8)).head.kind == RAW
    assert check(noise(100_000, torch.bfloat16)).head.kind == RAW


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_balanced_is_at_its_limit(dtype: torch.dtype) -> None:
    """H(first field) + the raw bits, in float64, and what the report says of it."""
    values = weights(1100, 1000, dtype=dtype)
    coded = check_fast(values, "balanced")
    how = planes.BALANCED[str(dtype).removeprefix("torch.")]
    fields, _ = planes.split(values, how)
    limit = entropy(np.bincount(fields, minlength=256)) + how.raw_bits
    assert coded.limit_bits == pytest.approx(limit, abs=1e-9)
    assert limit <= 8 * coded.nbytes / values.numel() <= 1.001 * limit


def test_small_is_near_the_joint_entropy() -> None:
    values = weights(2048, 2048)
    coded = check_fast(values, "small")
    words = values.view(torch.int16).numpy().reshape(-1).astype(np.int64) & 0xFFFF
    exponent, both = np.bincount(words >> 7 & 0xFF), np.bincount(words & 0x7FFF)
    limit = 1 + entropy(both)
    assert entropy(exponent) < entropy(both) < 16
    assert 8 * coded.nbytes / values.numel() <= 1.0015 * limit


def check_fast(tensor: torch.Tensor, mode: str) -> tensor_coder.Coded:
    """Without the slow reference."""
    coded = encode(tensor, mode)
    assert bits(decode(joined(coded))) == bits(tensor)
    return coded


@pytest.mark.parametrize("mode", MODES)
def test_bytes_depend_on_no_thread(mode: str) -> None:
    values = weights(1500, 1500)
    one, two = (joined(encode(values, mode, threads=n)) for n in (1, 3))
    assert np.array_equal(one, two)
    assert torch.equal(decode(one, threads=3), values)


def test_a_repeated_tensor_says_which_one() -> None:
    coded = tensor_coder.repeat(weights(4, 5), "model.embed_tokens.weight")
    data = joined(coded)
    assert parse_head(data).kind == SAME
    assert coded_tensor.same_as(data) == "model.embed_tokens.weight" == reference.same_as(data.tobytes())
    with pytest.raises(InputError, match="cannot be decoded alone"):
        decode(data)


def samples() -> list[np.ndarray]:
    scale = torch.exp(torch.randn(64, 1, generator=torch.Generator().manual_seed(1)) * 3)
    tensors = [
        (weights(40, 50), "balanced"),
        (weights(40, 50), "small"),
        ((weights(64, 1100, dtype=torch.float32) * scale).bfloat16(), "small"),
        (weights(40, 50).float(), "balanced"),
        (torch.arange(700), "balanced"),
        (torch.zeros(30, 30), "balanced"),
        (noise(64, torch.int32), "balanced"),
    ]
    return [joined(encode(tensor, mode)) for tensor, mode in tensors]


@pytest.mark.parametrize("index", range(7))
def test_damage_is_always_found(index: int) -> None:
    data = samples()[index]
    random = np.random.default_rng(index)
    places = {*random.integers(0, data.size, 150).tolist(), *range(min(60, data.size))}
    for place in places:
        bad = data.copy()
        bad[place] ^= 1 << int(random.integers(8))
        with pytest.raises(InputError):
            decode(bad)


@pytest.mark.parametrize("index", range(7))
def test_a_cut_is_always_found(index: int) -> None:
    data = samples()[index]
    for size in {0, 3, 4, 7, 8, 20, data.size // 2, data.size - 1}:
        with pytest.raises(InputError):
            decode(data[:size])
    with pytest.raises(InputError, match="claims"):
        decode(np.append(data, np.uint8(0)))


# The head of a tensor [40, 50]: magic 0-3, kind 4, dtype 5, held 6, dimensions 7, shape 8 and 9, coder 10, sign 11,
# coded bits 12, axis 13, groups 14, lengths of the parts from 15 on, two bytes each.
LIES = {
    "another magic": (0, b"lLT9", "no coded tensor: it begins with b'lLT9'"),
    "an unknown kind": (4, b"\x09", "a coded tensor of unknown kind 9"),
    "an unknown dtype": (5, b"\xc8", "dtypes 200"),
    "a dtype that cannot hold the values": (6, b"\x11", "whose values are float32"),
    "a shape that the stream is not of": (8, b"\x29", "rans|planes|stream|symbols|bytes"),
    "an unknown coder": (10, b"\x63", "the unknown coder 99"),
    "a sign that moves too far": (11, b"\x10", "the sign below 16"),
    "no coded bits": (12, b"\x00", "codes 0 of 16 bits"),
    "an axis without groups": (13, b"\x07", "groups along axis 7"),
    "no groups": (14, b"\x00", "a coded tensor of 0 groups"),
    "a part beyond the end": (16, b"\x7f", "claims"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_head_that_lies_is_refused(name: str) -> None:
    at, new, message = LIES[name]
    data = joined(encode(weights(40, 50)))
    with pytest.raises(InputError, match=message):
        decode(resealed(data, at, new))


def test_a_raw_part_of_another_size_is_refused() -> None:
    data = joined(encode(noise(64, torch.int32).view(8, 8)))
    with pytest.raises(InputError, match="part 0 of a coded tensor has 256 bytes where 224 belong"):
        decode(resealed(data, 8, b"\x07"))


@pytest.mark.parametrize("shape", [(1 << 50,), (1 << 30, 1 << 30), (0, 1 << 62)])
def test_a_shape_of_more_bytes_than_any_tensor_has_is_refused(shape: tuple[int, ...]) -> None:
    head = replace(encode(torch.zeros(30, 30)).head, shape=shape)
    with pytest.raises(InputError, match="more than 1099511627776 bytes"):
        decode(np.frombuffer(coded_head.pack_head(head) + bytes(4), np.uint8))


def test_a_number_without_end_is_refused() -> None:
    data = b"lLT1" + bytes((0, 1, 1, 1)) + b"\xff" * 100
    with pytest.raises(InputError, match="a number in the head of a coded tensor is too long"):
        decode(np.frombuffer(data, np.uint8))
