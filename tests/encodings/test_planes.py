"""Numbers to planes and back, bit for bit, alone and through the coder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.encodings.coding import planes, rans
from llmc.encodings.coding.planes import Split
from llmc.encodings.kernels import rans_reference as reference
from llmc.errors import InputError
from llmc.files.bytes import as_bytes

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
    Split(2, 15, 9),
    Split(2, 15, 13),  # 3 raw bits
    Split(2, 15, 15),
    Split(2, 0, 15),  # nothing moves
    Split(2, 8, 8),  # the sign between exponent and mantissa
    Split(2, 8, 12),
    Split(4, 31, 11),  # 21 raw bits
    Split(4, 0, 1),  # 31 raw bits
    Split(4, 16, 15),
    Split(1, 7, 1),
    Split(1, 3, 8),  # nothing raw
]


def naive(x: int, how: Split) -> tuple[int, int]:
    """Coded field and raw bits of one number, from its bits as text."""
    text = format(x, f"0{8 * how.bytes}b")
    text = text[1 : 1 + how.sign_after] + text[0] + text[1 + how.sign_after :]
    return int(text[: how.coded], 2), int(text[how.coded :] or "0", 2)


def patterns(size: int, n: int, seed: int = 0) -> np.ndarray:
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
    rng = np.random.default_rng(size + 1000 * seed)
    numbers = rng.integers(0, ones + 1, max(n, len(special)), np.uint64)
    numbers[: len(special)] = special
    return (numbers & np.uint64(ones)).astype(dtype)[:n]


def like_weights(size: int, n: int, seed: int) -> np.ndarray:
    """Numbers of `size` bytes with the exponents of weights, and patterns of all kinds among them."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.uniform(0, 3) * rng.standard_normal(n))
    values = torch.tensor(rng.standard_normal(n) * 0.02 * spread, dtype=torch.float32)
    kind = {1: torch.float8_e4m3fn, 2: torch.bfloat16 if seed % 2 else torch.float16, 4: torch.float32}[size]
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32}[size]
    numbers = as_bytes(values.to(kind)).view(bits).copy()
    odd = rng.random(n) < (0, 0.001, 0.3)[seed % 3]
    numbers[odd] = patterns(size, n, seed)[odd]
    return numbers


@pytest.mark.parametrize("how", SPLITS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 9, 8191])
def test_split_is_what_the_text_of_the_bits_says(how: Split, n: int) -> None:
    numbers = patterns(how.bytes, n)
    fields, raw = planes.split(numbers, how)
    bits = np.unpackbits(raw, bitorder="little") if raw.size else np.zeros(0, np.uint8)
    for i in [*range(min(n, 200)), *range(max(0, n - 100), n)]:
        field, rest = naive(int(numbers[i]), how)
        assert int(fields[i]) == field
        mine = bits[i * how.raw_bits : (i + 1) * how.raw_bits]
        assert sum(int(b) << k for k, b in enumerate(mine)) == rest
    assert raw.size == how.raw_bytes(n)
    back = np.empty_like(numbers)
    planes.merge(fields, raw, how, back)
    assert np.array_equal(back, numbers)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    how=st.sampled_from(SPLITS),
    n=st.integers(0, 9000),
    bits=st.integers(12, 14),
    lanes=st.sampled_from([4, 16, 64, 64, 64, 128]),
    chunks=st.integers(1, 5),
    threads=st.integers(1, 3),
)
def test_every_path_gives_back_the_numbers(
    seed: int, how: Split, n: int, bits: int, lanes: int, chunks: int, threads: int
) -> None:
    numbers = like_weights(how.bytes, n, seed)
    size = max(8, lanes) * max(1, -(-n // (max(8, lanes) * chunks)))
    options: dict[str, Any] = {"probability_bits": bits, "lanes": lanes, "chunk_symbols": size}
    fields, raw = planes.split(numbers, how)
    made = [planes.encode(numbers, how, threads=threads, path=path, **options) for path in rans.paths()]
    assert all(np.array_equal(packed, raw) for _, packed in made)
    assert len({stream.tobytes() for stream, _ in made}) == 1
    stream = made[0][0]
    assert np.array_equal(reference.decode(stream.tobytes()), fields)
    if how.coded <= 8:
        assert np.array_equal(stream, rans.encode(fields, **options))
    for path in rans.paths():
        back = np.empty_like(numbers)
        planes.decode(stream, raw, how, back, threads=threads, path=path)
        assert np.array_equal(back, numbers)


@pytest.mark.parametrize("mode", ["BALANCED", "SMALL"])
@pytest.mark.parametrize("name", DTYPES)
def test_tensors(mode: str, name: str) -> None:
    how = getattr(planes, mode)[name]
    weights = (torch.randn(70, 300, generator=torch.Generator().manual_seed(1)) * 0.02).to(DTYPES[name])
    stream, raw = planes.encode(weights, how)
    assert stream.size + raw.size < weights.nbytes
    back = torch.empty_like(weights)
    planes.decode(stream, raw, how, back)
    assert back.view(torch.uint8).equal(weights.view(torch.uint8))


def entropy(values: np.ndarray) -> float:
    counts = np.bincount(values)
    p = counts[counts > 0] / values.size
    return float(-(p * np.log2(p)).sum())


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_small_is_the_joint_entropy(name: str, spread: float) -> None:
    """H(sign, exponent, mantissa | exponent), what an ideal coder of whole numbers needs, everything counted."""
    rng = np.random.default_rng(5)
    scales = np.exp(spread * rng.standard_normal((512, 1))) * 0.02
    weights = torch.tensor(rng.standard_normal((512, 4096)) * scales).to(DTYPES[name])
    stream, raw = planes.encode(weights, how := planes.SMALL[name])
    numbers = as_bytes(weights).view({2: np.uint16, 4: np.uint32}[how.bytes])
    unsigned = numbers & np.asarray((1 << 8 * how.bytes - 1) - 1, numbers.dtype)
    low = max(0, how.raw_bits - 6)  # the last bits of fp32 are noise, and more values than there are weights
    limit = entropy((unsigned >> low).astype(np.int64)) + low + 1
    assert 8 * (stream.size + raw.size) / weights.numel() <= 1.0015 * limit


def test_rare_symbols_leave_a_table_that_fits_registers_where_that_is_free() -> None:
    rng = np.random.default_rng(6)
    weights = torch.tensor(rng.standard_normal(1 << 18) * 0.02).to(torch.bfloat16)
    used = {}
    for mode, most in (("BALANCED", 16), ("SMALL", 64)):
        how = getattr(planes, mode)["bfloat16"]
        stream, raw = planes.encode(weights, how)
        info = rans.describe(stream, weights.numel())
        used[mode] = int((info.tables > 0).sum())
        assert used[mode] <= most
        fields, _ = planes.split(weights, how)
        ideal = weights.numel() * entropy(fields) / 8
        assert stream.size - info.head_bytes < 1.003 * ideal + 4 * info.lanes
        back = torch.empty_like(weights)
        planes.decode(stream, raw, how, back)
        assert back.equal(weights)
    assert len(np.unique(planes.split(weights, planes.SMALL["bfloat16"])[0])) > 64
    flat = rng.integers(0, 200, 1 << 16).astype(np.uint8)
    assert (rans.describe(rans.encode(flat), flat.size).tables > 0).sum() == 200, "not where it costs"


def test_row_classes_select_tables() -> None:
    rng = np.random.default_rng(0)
    scales = np.where(np.arange(64) % 2, 0.01, 1.0)
    weights = torch.tensor(rng.standard_normal((64, 4096)) * scales[:, None]).to(torch.bfloat16)
    exponents, raw = planes.split(weights, how := planes.BALANCED["bfloat16"])
    classes = np.repeat((np.arange(64) % 2).astype(np.uint8), 4096)
    stream = rans.encode(exponents, select=rans.Contexts(classes))
    assert stream.size < 0.75 * rans.encode(exponents).size
    back = torch.empty_like(weights)
    planes.decode(stream, raw, how, back, contexts=classes)
    assert back.equal(weights)


@pytest.mark.parametrize("how", [planes.BALANCED["bfloat16"], planes.SMALL["bfloat16"]], ids=str)
def test_large_and_unaligned_memory(how: Split) -> None:
    """Stores past the caches need aligned memory; other memory gets the same numbers."""
    n = (1 << 22) + 77
    numbers = like_weights(2, n, 1)
    stream, raw = planes.encode(numbers, how, threads=2)
    fields, _ = planes.split(numbers, how)
    room = np.zeros(2 * n + 128, np.uint8)
    for shift in (-room.ctypes.data % 64, 2, 32, 33):
        back = room[shift : shift + 2 * n]
        planes.decode(stream, raw, how, back, threads=2)
        assert np.array_equal(back, numbers.view(np.uint8))
        planes.merge(fields, raw, how, back, threads=2)
        assert np.array_equal(back, numbers.view(np.uint8))


@pytest.mark.parametrize("how", [planes.BALANCED["bfloat16"], planes.SMALL["bfloat16"], Split(4, 31, 10)], ids=str)
@pytest.mark.parametrize("path", rans.paths())
def test_no_damage_of_the_stream_goes_unseen(how: Split, path: str) -> None:
    numbers = like_weights(how.bytes, 2000, 2)
    stream, raw = planes.encode(numbers, how, lanes=64, chunk_symbols=640)
    out = np.empty_like(numbers)
    for at in range(stream.size):
        damaged = stream.copy()
        damaged[at] ^= 1 << at % 8
        for data in (damaged, stream[:at]):
            with pytest.raises(InputError, match="planes: "):
                planes.decode(data, raw, how, out, path=path)


def test_refusals() -> None:
    numbers = np.zeros(8, np.uint16)
    numbers[:3] = 5000, 9, 77
    how = planes.BALANCED["bfloat16"]
    fields, raw = planes.split(numbers, how)
    stream, wide = rans.encode(fields), rans.encode_wide(fields.astype(np.int16))
    out = np.empty_like(numbers)
    odd, low = planes.split(numbers, Split(2, 15, 9))
    inside = rans.encode_wide(odd.astype(np.int16), lanes=4, chunk_symbols=4)
    for call in (
        lambda: planes.split(numbers, Split(3, 2, 8)),
        lambda: planes.split(np.zeros(8, np.uint8), Split(1, 7, 9)),
        lambda: planes.split(numbers, Split(2, 16, 8)),
        lambda: planes.split(numbers, Split(2, 15, 16)),
        lambda: planes.split(numbers, Split(2, 15, 0)),
        lambda: planes.split(np.zeros(3, np.uint8), how),
        lambda: planes.merge(fields[:3], raw, how, out),
        lambda: planes.merge(fields, raw[:3], how, out),
        lambda: planes.decode(wide, raw, how, out),
        lambda: planes.decode(stream, low, Split(2, 15, 9), out),
        lambda: planes.decode(inside, low, Split(2, 15, 9), out),
        lambda: planes.decode(stream, raw[:3], how, out),
        lambda: planes.decode(stream, raw, how, out[:3]),
        lambda: planes.decode(stream[:-1], raw, how, out),
        lambda: planes.encode(numbers, how, lanes=3),
        lambda: planes.encode(numbers, how, probability_bits=11),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize("how", [planes.BALANCED["bfloat16"], planes.SMALL["bfloat16"], Split(2, 15, 12)])
@pytest.mark.parametrize("threads", [1, 3])
def test_counts_of_many_numbers(how: Split, threads: int) -> None:
    """By any number of threads, and alike their bytes."""
    numbers = np.random.default_rng(0).standard_normal((1 << 21) + 3).astype(np.float32).view(np.uint32) >> 16
    numbers = numbers.astype(np.uint16)
    fields, _ = planes.split(numbers, how)
    stream, raw, counts = planes.encode_counted(numbers, how, threads=threads)
    assert np.array_equal(counts, np.bincount(fields, minlength=counts.size))
    alone, raw_alone, _ = planes.encode_counted(numbers, how)
    assert np.array_equal(stream, alone) and np.array_equal(raw, raw_alone)
