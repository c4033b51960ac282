"""Bit packing: the inverse, a bit-by-bit oracle, and the packer of compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmc.encodings.coding import packing
from llmc.encodings.coding.packing import pack_rows, unpack_rows, words_per_row


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=draw, dtype=torch.uint8)


def bit_by_bit(row: list[int], bits: int) -> list[int]:
    """The stream as one Python integer, cut into signed 32-bit words."""
    stream = sum(code << (i * bits) for i, code in enumerate(row))
    words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


@given(bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 150), seed=st.integers(0, 1 << 30))
def test_unpack_inverts_pack(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = random_codes(rows, columns, bits, seed)
    packed = pack_rows(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows, words_per_row(columns, bits))
    assert torch.equal(unpack_rows(packed, bits, columns), codes)


@given(bits=st.integers(1, 8), columns=st.integers(1, 100), seed=st.integers(0, 1 << 30))
def test_words_are_one_dense_stream(bits: int, columns: int, seed: int) -> None:
    codes = random_codes(2, columns, bits, seed)
    assert pack_rows(codes, bits).tolist() == [bit_by_bit(row, bits) for row in codes.tolist()]


@pytest.mark.parametrize("bits", range(1, 9))
def test_extreme_codes_survive(bits: int) -> None:
    codes = torch.full((3, 37), (1 << bits) - 1, dtype=torch.uint8)
    assert torch.equal(unpack_rows(pack_rows(codes, bits), bits, 37), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 7, 32, 33, 96, 128, 131])
def test_same_words_as_compressed_tensors(bits: int, columns: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = random_codes(5, columns, bits, seed=bits)
    signed = (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(pack_rows(codes, bits), helpers.pack_to_int32(signed, bits))
    along_rows = pack_rows(codes.t().contiguous(), bits).t()
    assert torch.equal(along_rows, helpers.pack_to_int32(signed, bits, packed_dim=0))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_tiles_do_not_show(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(23, 45, bits)
    whole = pack_rows(codes, bits)
    monkeypatch.setattr(packing, "TILE", 100)
    assert torch.equal(pack_rows(codes, bits), whole)
    assert torch.equal(unpack_rows(whole, bits, 45), codes)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_empty_matrices(shape: tuple[int, int]) -> None:
    codes = torch.zeros(shape, dtype=torch.uint8)
    assert torch.equal(unpack_rows(pack_rows(codes, 3), 3, shape[1]), codes)


def test_pack_takes_codes_at_any_offset() -> None:
    codes = torch.arange(17, dtype=torch.uint8) % 16
    assert torch.equal(pack_rows(codes[1:].view(1, 16), 4), pack_rows(codes[1:].clone().view(1, 16), 4))


@pytest.mark.parametrize("rows", [1, 2])
def test_unpack_takes_a_column_of_words(rows: int) -> None:
    codes = torch.arange(8 * rows, dtype=torch.uint8).view(rows, 8) % 16
    column = pack_rows(codes, 4).t().contiguous().t()
    assert torch.equal(unpack_rows(column, 4, 8), codes)
    assert torch.equal(unpack_rows(pack_rows(codes, 4).repeat(1, 2)[:, ::2], 4, 8), codes)


def test_unpack_takes_strided_words() -> None:
    codes = random_codes(6, 40, 3)
    strided = pack_rows(codes, 3).t().contiguous().t()
    assert torch.equal(unpack_rows(strided, 3, 40), codes)
