"""The entropy coder: every path against the reference decoder, sizes against entropies, damage against refusals."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.encodings.coding import rans
from llmc.encodings.kernels import rans_reference as reference
from llmc.errors import InputError
from llmc.files.bytes import Bytes

PATHS = rans.paths()
KINDS = ("one", "context", "automaton")


def plane(seed: int, n: int, alphabet: int, low: int = 0) -> Bytes:
    """Symbols of a skewed distribution over `alphabet` values from `low` on."""
    rng = np.random.default_rng(seed)
    weights = rng.pareto(1.0, alphabet) + 1e-4
    return (low + rng.choice(alphabet, n, p=weights / weights.sum())).astype(np.uint8)


def selection(kind: str, seed: int, n: int, tables: int = 3) -> rans.Contexts | rans.Automaton | None:
    rng = np.random.default_rng(seed + 1)
    if kind == "one":
        return None
    if kind == "context":
        return rans.Contexts(rng.integers(0, 5, n, np.uint8), rng.integers(0, tables, 256, np.uint8))
    states, classes = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    return rans.Automaton(
        rng.integers(0, states, (states, classes), np.uint8),
        rng.integers(0, classes, 256, np.uint8),
        rng.integers(0, tables, states, np.uint8),
    )


def contexts_of(select: rans.Contexts | rans.Automaton | None) -> Bytes | None:
    return select.values if isinstance(select, rans.Contexts) else None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 1200),
    alphabet=st.sampled_from([1, 2, 3, 17, 32, 33, 200]),
    bits=st.integers(12, 14),
    lanes=st.sampled_from([4, 8, 16, 32, 64, 128, 256]),
    chunks=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
)
def test_every_path_decodes_what_the_reference_decodes(
    seed: int, n: int, alphabet: int, bits: int, lanes: int, chunks: int, kind: str
) -> None:
    symbols = plane(seed, n, alphabet, low=seed % (257 - alphabet))
    select = selection(kind, seed, n)
    size = lanes * max(1, -(-n // (lanes * chunks)))
    streams = {
        rans.encode(
            symbols, select=select, probability_bits=bits, lanes=lanes, chunk_symbols=size, threads=t, path=path
        ).tobytes()
        for path, t in itertools.product(PATHS, (1, 3))
    }
    assert len(streams) == 1
    stream = streams.pop()
    contexts = contexts_of(select)
    assert np.array_equal(reference.decode(stream, contexts), symbols)
    for path, threads in itertools.product(PATHS, (1, 2)):
        assert np.array_equal(rans.decode(stream, n, contexts=contexts, path=path, threads=threads), symbols)
    begin, end = sorted((seed % (n + 1), seed // 7 % (n + 1)))
    assert np.array_equal(rans.decode_range(stream, n, begin, end, contexts=contexts), symbols[begin:end])


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [1, 30, 3000])
def test_wide_values(dtype: type, kind: str, spread: int) -> None:
    rng = np.random.default_rng(spread)
    values = (rng.standard_t(2, 5000) * spread).clip(-32768, 32767).round().astype(dtype)
    values[:2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    select = selection(kind, 5, values.size)
    for escapes in (1, 4):
        stream = rans.encode_wide(values, select=select, escapes=escapes, lanes=16, chunk_symbols=1024)
        assert np.array_equal(reference.decode(stream.tobytes(), contexts_of(select)), values)
        for path in PATHS:
            decoded = rans.decode(stream, values.size, contexts=contexts_of(select), path=path)
            assert decoded.dtype == dtype
            assert np.array_equal(decoded, values)


def test_a_raw_value_drives_the_automaton_of_a_trellis() -> None:
    """Dependent quantization: the parity of a state says which integers it may send; tables hold only those."""
    rng, states = np.random.default_rng(3), 4
    parity, flip = [s & 1 for s in range(states)], [s >> 1 & 1 for s in range(states)]
    next_state = np.zeros((states, 4), np.uint8)
    for s, c in itertools.product(range(states), range(4)):
        next_state[s, c] = (2 * s + ((c - parity[s]) // 2 % 2 ^ flip[s])) % states
    class_of = np.arange(256, dtype=np.uint8) % 4
    automaton = rans.Automaton(next_state, class_of, np.array(parity, np.uint8))
    lanes, length = 16, 200  # a lane is a segment
    values = np.zeros((length, lanes), np.int32)
    for lane in range(lanes):
        s = 0
        for t in range(length):
            values[t, lane] = 2 * round(rng.standard_t(1.5) * 9) + parity[s]
            s = next_state[s, values[t, lane] % 4]
    stream = rans.encode_wide(values, select=automaton, escapes=4, base=-124, lanes=lanes, chunk_symbols=values.size)
    tables = rans.describe(stream, values.size).tables
    assert all(tables[p, (1 - p) % 2 :: 2].sum() == 0 for p in (0, 1)), "a table codes the other parity"
    assert (np.abs(values) > 200).any()
    assert np.array_equal(rans.decode(stream, values.size).reshape(values.shape), values)


def entropy_of(stream: Bytes, symbols: Bytes, tables: Bytes) -> float:
    """Bytes of the symbols at the probabilities of the stream's tables, and of its escapes."""
    info = rans.describe(stream, symbols.size)
    raw = symbols >= info.escape_first
    if info.escape_first < 256:
        rare = info.tables[:, symbols].max(axis=0) == 0
        symbols, raw = np.where(rare, info.escape_first, symbols), raw | rare
    q = info.tables[tables, symbols].astype(np.float64)
    return float((info.probability_bits - np.log2(q)).sum() / 8 + raw.sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [12, 14])
def test_size_is_the_entropy(kind: str, bits: int) -> None:
    n, lanes = 200_000, 16
    symbols = np.random.default_rng(1).normal(110, 1.6, n).round().astype(np.uint8)
    select = selection(kind, 4, n)
    stream = rans.encode(symbols, select=select, lanes=lanes, probability_bits=bits)
    tables = np.zeros(n, np.uint8)
    if isinstance(select, rans.Contexts) and select.table_of is not None:
        tables = select.table_of[select.values]
    if isinstance(select, rans.Automaton):
        state = np.zeros(lanes, np.uint8)
        for t in range(0, n, lanes):
            tables[t : t + lanes] = select.table_of[state]
            state = select.next_state[state, select.class_of[symbols[t : t + lanes]]]
    size = stream.size - rans.describe(stream, n).head_bytes
    assert size <= 1.0005 * entropy_of(stream, symbols, tables) + 4 * lanes


def test_an_exponent_table_is_small_and_a_rare_symbol_costs_little() -> None:
    symbols = np.random.default_rng(2).normal(110, 2.2, 1 << 18).round().astype(np.uint8)
    symbols[:5] = 0, 255, 1, 250, 251
    stream = rans.encode(symbols)
    info = rans.describe(stream, symbols.size)
    assert info.head_bytes - 36 - 12 * info.chunks < 100
    assert info.escape_first < 256, "five symbols that occur once share an escape"
    assert np.array_equal(rans.decode(stream, symbols.size), symbols)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 60), min_size=2, max_size=4))
def test_frequencies_are_the_best_possible(counts: list[int]) -> None:
    """A neighbour in the simplex is no better: the objective is separable and concave, so none is."""
    padded = np.zeros(256)
    padded[: len(counts)] = counts
    q = rans.normalise(padded)
    assert q.sum() == 4096
    present = np.flatnonzero(padded)
    if present.size == 0:
        assert q[0] == 4096
        return
    assert (q[present] >= 1).all() and q[padded == 0].sum() == 0

    def cost(frequencies: np.ndarray) -> float:
        return float(-(padded[present] * np.log2(frequencies[present])).sum())

    for a, b in itertools.permutations(present, 2):
        moved = q.copy()
        moved[a], moved[b] = moved[a] + 1, moved[b] - 1
        if moved[b]:
            assert cost(moved) >= cost(q) - 1e-9


@pytest.mark.parametrize("n", [0, 1, 7, 100_000])
def test_constant_and_tiny_streams(n: int) -> None:
    stream = rans.encode(np.full(n, 9, np.uint8))
    assert stream.size < 44
    assert (rans.decode(stream, n) == 9).all()
    assert (reference.decode(stream.tobytes()) == 9).all()


def test_auto_is_one_of_the_paths() -> None:
    for alphabet in (5, 30, 60, 200):
        symbols = plane(4, 1 << 14, alphabet)
        stream = rans.encode(symbols, lanes=64)
        assert rans.path_of(stream, symbols.size) in PATHS
    assert rans.path_of(rans.encode(symbols, lanes=4), symbols.size) == "scalar"
    with pytest.raises(InputError):
        rans.path_of(stream[:20], symbols.size)


def test_lanes_fall_with_the_size() -> None:
    assert [rans.lanes_for(n) for n in (0, 1 << 15, 1 << 16, 1 << 18, 1 << 20, 1 << 30)] == [4, 4, 8, 32, 64, 64]


def test_histogram() -> None:
    symbols, contexts = plane(1, 10_001, 256), plane(2, 10_001, 7)
    joint = np.zeros((256, 256), np.uint64)
    np.add.at(joint, (contexts, symbols), np.uint64(1))
    assert np.array_equal(rans.histogram(symbols), joint.sum(axis=0))
    assert np.array_equal(rans.histogram(symbols, contexts), joint)


@pytest.mark.parametrize("n", [(1 << 19) - 1, 1 << 19, (1 << 20) + 5])
def test_histogram_of_many(n: int) -> None:
    """Those are counted by pairs."""
    symbols = np.random.default_rng(n).geometric(0.2, n).astype(np.uint8)
    assert np.array_equal(rans.histogram(symbols), np.bincount(symbols, minlength=256))


def test_crc32c() -> None:
    assert rans.crc32c(b"123456789") == 0xE3069283
    data = np.random.default_rng(0).bytes(10_000)
    for size in (0, 1, 7, 8, 3071, 3072, 3080, 10_000):
        assert rans.crc32c(data[:size]) == reference.crc32c(data[:size])
        assert rans.crc32c(data[size:], rans.crc32c(data[:size])) == rans.crc32c(data)


@cache
def sample(kind: str) -> tuple[Bytes, Bytes, Bytes | None]:
    symbols = plane(8, 700, 40, 100)
    select = selection(kind, 8, 700)
    return rans.encode(symbols, select=select, lanes=16, chunk_symbols=256), symbols, contexts_of(select)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_no_damage_goes_unseen(kind: str, path: str) -> None:
    stream, symbols, contexts = sample(kind)
    for at in range(stream.size):
        damaged = stream.copy()
        damaged[at] ^= 1 << at % 8
        with pytest.raises(InputError):
            rans.decode(damaged, symbols.size, contexts=contexts, path=path)
        with pytest.raises(InputError):
            rans.decode(stream[:at], symbols.size, contexts=contexts, path=path)
    with pytest.raises(InputError):
        rans.decode(np.append(stream, np.uint8(0)), symbols.size, contexts=contexts, path=path)


def resummed(stream: Bytes, at: int, value: int, size: int = 1) -> Bytes:
    """A head that says something else, and whose own sum agrees."""
    changed = stream.copy()
    changed[at : at + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)
    head = rans.describe(stream, 700).head_bytes
    changed[head - 4 : head] = np.frombuffer(rans.crc32c(changed[: head - 4].copy()).to_bytes(4, "little"), np.uint8)
    return changed


@pytest.mark.parametrize(
    ("at", "value", "size", "line"),
    [
        (0, 0, 1, "not a stream of this coder, or of a version unknown here"),
        (4, 15, 1, "probability bits are not 12, 13 or 14"),
        (5, 9, 1, "lanes are not a power of two from 4 to 256"),
        (6, 3, 1, "the stream selects tables in a way unknown here"),
        (7, 255, 1, "the model of the stream is cut short"),
        (8, 2**40, 8, "the stream holds 1099511627776 symbols, not 700"),
        (16, 16, 4, "the chunk table is longer than the stream"),
        (16, 2**31, 4, "the chunk size is not a multiple of the lanes from 1 to 2^26"),
        (20, 300, 2, "the first escape symbol is above 256"),
        (22, 3, 1, "values are not of 1, 2 or 4 bytes"),
        (23, 1, 1, "a reserved byte of the stream is not zero"),
        (24, 1, 4, "the base of the values is out of range"),
        (28, 2**31, 4, "the model of the stream is longer than the stream"),
    ],
)
def test_refusals_of_a_head(at: int, value: int, size: int, line: str) -> None:
    with pytest.raises(InputError) as refused:
        rans.decode(resummed(sample("one")[0], at, value, size), 700)
    assert str(refused.value) == f"rans: {line}"


def test_refusals_of_arguments() -> None:
    symbols, stream = np.zeros(4, np.uint8), sample("context")[0]
    for call in (
        lambda: rans.encode(symbols, path="quantum"),
        lambda: rans.encode(symbols, lanes=5),
        lambda: rans.encode(symbols, lanes=512),
        lambda: rans.encode(symbols, chunk_symbols=0),
        lambda: rans.encode(symbols, probability_bits=20),
        lambda: rans.encode(symbols, select=rans.Contexts(symbols[:1])),
        lambda: rans.decode(stream, 700),
        lambda: rans.decode(stream, 700, contexts=symbols),
        lambda: rans.decode(sample("one")[0], 700, out=np.empty(3, np.uint8)),
        lambda: rans.decode(sample("one")[0][::2], 700),
    ):
        with pytest.raises(InputError):
            call()
