"""Spearman's correlation and its bootstrap against ranks by counting, pair by pair and draw by draw."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.errors import LlmcError
from llmc.eval.measures.similarity import RESAMPLES, cosines, similarity, spearman

VALUES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=9)


def naive_spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of ranks that are counted: those below, and the middle of those that are equal."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]

    x, y = ranks(a), ranks(b)
    mean = (len(x) + 1) / 2
    over = math.fsum((p - mean) * (q - mean) for p, q in zip(x, y, strict=True))
    under = math.fsum((p - mean) ** 2 for p in x) * math.fsum((q - mean) ** 2 for q in y)
    return over / math.sqrt(under) if under else math.nan


def test_spearman_of_a_known_example() -> None:
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]  # with hours of television a week
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    times = np.ones((1, 10), dtype=np.int64)
    found = spearman(np.array(iq, dtype=np.float64), np.array(hours, dtype=np.float64), times)
    assert found[0] == pytest.approx(-29 / 165)


@given(VALUES)
def test_spearman_of_a_draw_is_that_of_the_pairs_it_holds(rows: list[tuple[int, int, int]]) -> None:
    a, b, times = (np.array(column) for column in zip(*rows, strict=True))
    draws = np.stack([np.ones_like(times), times])
    found = spearman(a.astype(np.float64), b.astype(np.float64), draws)
    for value, counts in zip(found, draws, strict=True):
        if counts.any():
            expected = naive_spearman(np.repeat(a, counts).tolist(), np.repeat(b, counts).tolist())
            assert value == pytest.approx(expected, nan_ok=True, abs=1e-12)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8))


def cos(a: np.ndarray, b: np.ndarray) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def test_figures_and_intervals_equal_a_loop_over_the_same_draws() -> None:
    original = vectors(24)
    mine = original + 0.7 * vectors(24, 1)
    gold = np.round(vectors(12, 2)[:, 0]).tolist()  # with ties
    found = similarity(mine, original, gold=gold)
    own = [cos(mine[i], mine[i + 1]) for i in range(0, 24, 2)]
    theirs = [cos(original[i], original[i + 1]) for i in range(0, 24, 2)]
    each = [cos(a, b) for a, b in zip(mine, original, strict=True)]
    assert found["cosine"] == pytest.approx(sum(each) / 24)
    assert found["rank_correlation"] == pytest.approx(naive_spearman(own, theirs))
    assert found["correlation"] == pytest.approx(naive_spearman(own, gold))
    assert found["original_correlation"] == pytest.approx(naive_spearman(theirs, gold))
    assert found["correlation_difference"] == pytest.approx(found["correlation"] - found["original_correlation"])
    draws = np.random.default_rng(0).integers(12, size=(RESAMPLES, 12))
    loop = [
        naive_spearman([own[i] for i in draw], gold_of) - naive_spearman([theirs[i] for i in draw], gold_of)
        for draw in draws
        for gold_of in [[gold[i] for i in draw]]
    ]
    edges = np.nanquantile(loop, [0.025, 0.975])
    assert found["intervals"]["correlation_difference"] == pytest.approx(edges.tolist())
    assert found["texts"] == 24 and found["pairs"] == 12
    assert set(found["intervals"]) == {
        *("cosine", "rank_correlation", "correlation", "original_correlation", "correlation_difference")
    }
    json.dumps(found, allow_nan=False)


def test_a_model_beside_itself_and_a_scaled_one() -> None:
    original = vectors(40)
    found = similarity(3 * original, original)
    assert found["cosine"] == pytest.approx(1) and found["rank_correlation"] == pytest.approx(1)
    assert found["correlation"] is None and "correlation" not in found["intervals"]


def test_given_pairs_and_no_original() -> None:
    table = vectors(6)
    found = similarity(table, pairs=[(0, 5), (2, 2), (1, 3)], gold=[1, 2, 3])
    expected = naive_spearman([cos(table[0], table[5]), 1, cos(table[1], table[3])], [1, 2, 3])
    assert found["correlation"] == pytest.approx(expected)
    assert found["cosine"] is found["rank_correlation"] is found["correlation_difference"] is None


def test_what_has_no_correlation() -> None:
    table = vectors(6)
    found = similarity(table, vectors(6, 1)[:, :5], gold=[2, 2, 2])
    assert found["cosine"] is None and found["correlation"] is None and found["rank_correlation"] is not None
    found = similarity(table[:1], table[:1])
    assert found["cosine"] == pytest.approx(1)
    assert found["pairs"] == 0 and found["rank_correlation"] is None and found["intervals"] == {}
    with pytest.raises(LlmcError) as caught:
        similarity(table, table, gold=[1])
    assert str(caught.value) == "1 scores for 3 pairs; give one for each"


def test_the_interval_of_a_rank_correlation_covers_its_truth() -> None:
    generator, covered = np.random.default_rng(3), 0
    truth = 6 / math.pi * math.asin(0.8 / 2)  # Spearman's of two normal variables with a correlation of 0.8
    for _ in range(200):
        a = generator.normal(size=80)
        b = 0.8 * a + 0.6 * generator.normal(size=80)
        draws = generator.integers(80, size=(400, 80))
        times = np.stack([np.bincount(draw, minlength=80) for draw in draws])
        low, high = np.quantile(spearman(a, b, times), [0.025, 0.975])
        covered += low <= truth <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_cosines() -> None:
    a, b = vectors(5), vectors(5, 1)
    assert cosines(a, b) == pytest.approx([cos(x, y) for x, y in zip(a, b, strict=True)])
