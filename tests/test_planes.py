"""Numbers to planes and back, bit for bit, alone and through the coder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmc.errors import InputError
from llmc.formats import planes, rans
from llmc.formats.planes import Split

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
SPLITS = [
    *planes.BALANCED.values(),
    *planes.SMALL.values(),
    Split(2, 0, (1, 8, 7)),  # nothing moves, nothing raw
    Split(2, 8, (8, 4)),  # the sign between exponent and mantissa
    Split(2, 8, (8, 8)),
    Split(4, 31, (8, 3)),  # 21 raw bits
    Split(4, 31, (8, 8, 8, 8)),
    Split(4, 0, (1,)),  # 31 raw bits
    Split(1, 7, (1,)),
]


def naive(x: int, how: Split) -> tuple[list[int], int]:
    """Fields and raw bits of one number, from its bits as text."""
    text = format(x, f"0{8 * how.bytes}b")
    text = text[1 : 1 + how.sign_after] + text[0] + text[1 + how.sign_after :]
    fields = []
    for width in how.coded:
        fields.append(int(text[:width], 2))
        text = text[width:]
    return fields, int(text, 2) if text else 0


def patterns(size: int, n: int) -> np.ndarray:
    """Numbers of `size` bytes: all special ones of bf16, fp16, fp32 and fp8 are among the first, then any."""
    dtype = {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
    top = 8 * size - 1
    ones = (1 << 8 * size) - 1
    special = [
        0,
        1 << top,
        ones,
        1,
        0x7F80 << (top - 15) if size > 1 else 0x7C,
        ones >> 1,
        1 << (top - 1),
        0x7C01,
        0x38,
    ]
    rng = np.random.default_rng(size)
    numbers = rng.integers(0, ones + 1, max(n, len(special)), np.uint64)
    numbers[: len(special)] = special
    return (numbers & np.uint64(ones)).astype(dtype)[:n]


@pytest.mark.parametrize("how", SPLITS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 9, 8191])
def test_split_is_what_the_text_of_the_bits_says(how: Split, n: int) -> None:
    numbers = patterns(how.bytes, n)
    coded, raw = planes.split(numbers, how)
    bits = np.unpackbits(raw, bitorder="little") if raw.size else np.zeros(0, np.uint8)
    for i in range(min(n, 300)):
        fields, rest = naive(int(numbers[i]), how)
        assert [int(plane[i]) for plane in coded] == fields
        mine = bits[i * how.raw_bits : (i + 1) * how.raw_bits]
        assert sum(int(b) << k for k, b in enumerate(mine)) == rest
    assert raw.size == how.raw_bytes(n)
    back = np.empty_like(numbers)
    planes.merge(coded, raw, how, back)
    assert np.array_equal(back, numbers)


@pytest.mark.parametrize("how", SPLITS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 33, 10_001])
def test_through_the_coder(how: Split, n: int) -> None:
    numbers = patterns(how.bytes, n)
    coded, raw = planes.split(numbers, how, threads=2)
    options: dict[str, Any] = {"lanes": 16, "chunk_symbols": 4096}
    streams = [rans.encode(coded[0], **options)]
    streams += [rans.encode(plane, select=rans.Contexts(coded[0]), **options) for plane in coded[1:]]
    for path in rans.paths():
        for threads in (1, 2):
            back = np.empty_like(numbers)
            planes.decode(streams, raw, how, back, threads=threads, path=path)
            assert np.array_equal(back, numbers)


@pytest.mark.parametrize("mode", ["BALANCED", "SMALL"])
@pytest.mark.parametrize("name", DTYPES)
def test_tensors(mode: str, name: str) -> None:
    how = getattr(planes, mode)[name]
    weights = (torch.randn(70, 300, generator=torch.Generator().manual_seed(1)) * 0.02).to(DTYPES[name])
    coded, raw = planes.split(weights, how)
    streams = [rans.encode(coded[0])] + [rans.encode(p, select=rans.Contexts(coded[0])) for p in coded[1:]]
    assert sum(s.size for s in streams) + raw.size < weights.nbytes
    back = torch.empty_like(weights)
    planes.decode(streams, raw, how, back)
    assert back.view(torch.uint8).equal(weights.view(torch.uint8))


def test_row_classes_select_tables_of_the_first_plane() -> None:
    rng = np.random.default_rng(0)
    scales = np.where(np.arange(64) % 2, 0.01, 1.0)
    weights = torch.tensor(rng.standard_normal((64, 4096)) * scales[:, None]).to(torch.bfloat16)
    (exponents,), raw = planes.split(weights, how := planes.BALANCED["bfloat16"])
    classes = np.repeat((np.arange(64) % 2).astype(np.uint8), 4096)
    stream = rans.encode(exponents, select=rans.Contexts(classes))
    assert stream.size < 0.75 * rans.encode(exponents).size
    back = torch.empty_like(weights)
    planes.decode([stream], raw, how, back, contexts=classes)
    assert back.equal(weights)


def test_large_and_unaligned_memory() -> None:
    """Stores past the caches need aligned memory; other memory gets the same numbers."""
    n = (1 << 22) + 77
    numbers = patterns(2, n)
    (exponents,), raw = planes.split(numbers, how := planes.BALANCED["bfloat16"])
    stream = rans.encode(exponents, threads=2)
    room = np.zeros(2 * n + 64, np.uint8)
    for shift in (0, 2, 33):
        back = room[shift : shift + 2 * n]
        planes.decode([stream], raw, how, back, threads=2)
        assert np.array_equal(back, numbers.view(np.uint8))
        planes.merge([exponents], raw, how, back, threads=2)
        assert np.array_equal(back, numbers.view(np.uint8))


def test_refusals() -> None:
    numbers = np.zeros(8, np.uint16)
    how = planes.BALANCED["bfloat16"]
    (exponents,), raw = planes.split(numbers, how)
    stream, other = rans.encode(exponents), rans.encode(exponents, chunk_symbols=64)
    out = np.empty_like(numbers)
    for call in (
        lambda: planes.split(numbers, Split(3, 2, (8,))),
        lambda: planes.split(numbers, Split(2, 15, (8, 8, 1))),
        lambda: planes.split(numbers, Split(2, 16, (8,))),
        lambda: planes.split(numbers, Split(2, 15, (9,))),
        lambda: planes.split(numbers, Split(2, 15, ())),
        lambda: planes.split(np.zeros(3, np.uint8), how),
        lambda: planes.merge([exponents[:3]], raw, how, out),
        lambda: planes.merge([exponents], raw[:3], how, out),
        lambda: planes.decode([], raw, how, out),
        lambda: planes.decode([stream, stream], raw, how, out),
        lambda: planes.decode([stream, other], raw[:0], Split(2, 15, (8, 8)), out),
        lambda: planes.decode([stream], raw[:3], how, out),
        lambda: planes.decode([stream], raw, how, out[:3]),
        lambda: planes.decode([stream[:-1]], raw, how, out),
    ):
        with pytest.raises(InputError, match="planes: "):
            call()
