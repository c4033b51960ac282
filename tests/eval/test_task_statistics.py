"""McNemar, exact intervals and the number of items, against brute force and simulation."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from llmc.eval.reports.intervals import paired_intervals
from llmc.eval.reports.statistics import items_to_resolve, mcnemar, share_interval
from llmc.eval.reports.task_report import FIGURES


def split_of_coins(lost: int, gained: int) -> float:
    """Share of all throws of as many coins that are split at least as unevenly."""
    throws = list(itertools.product((0, 1), repeat=lost + gained))
    return sum(abs(2 * sum(t) - len(t)) >= abs(lost - gained) for t in throws) / len(throws)


@pytest.mark.parametrize(("lost", "gained"), [(a, b) for a in range(8) for b in range(8)])
def test_mcnemar_counts_throws_of_coins(lost: int, gained: int) -> None:
    assert mcnemar(lost, gained) == split_of_coins(lost, gained)


def test_mcnemar_of_many_items() -> None:
    assert mcnemar(3000, 3000) == 1
    # the normal approximation with continuity correction, close at such counts
    assert mcnemar(2450, 2600) == pytest.approx(2 * NormalDist().cdf(-149 / math.sqrt(5050)), rel=1e-3)
    assert mcnemar(0, 5000) == 0  # 2^-4999 is no float


def test_mcnemar_equals_scipy() -> None:
    for lost, gained in [(0, 0), (1, 4), (10, 25), (300, 350)]:
        expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1
        assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "items"), [(0, 9), (1, 10), (7, 50), (50, 50), (333, 1000)])
def test_share_intervals_equal_scipys(count: int, items: int) -> None:
    found = stats.binomtest(count, items).proportion_ci(0.95, method="exact")
    assert share_interval(count, items) == pytest.approx((found.low, found.high), abs=1e-9)


@pytest.mark.parametrize("items", [1, 5, 40])
def test_share_intervals_cover_every_truth(items: int) -> None:
    """By enumeration: at least 95 % of outcomes, whatever the true share, and each end misses at most 2.5 %."""
    edges = [share_interval(count, items) for count in range(items + 1)]
    for truth in np.linspace(0.001, 0.999, 111):
        chances = [math.comb(items, k) * truth**k * (1 - truth) ** (items - k) for k in range(items + 1)]
        below = sum(p for p, (_, high) in zip(chances, edges, strict=True) if high < truth)
        above = sum(p for p, (low, _) in zip(chances, edges, strict=True) if low > truth)
        assert max(below, above) <= 0.025 + 1e-12


def test_share_interval_without_an_event() -> None:
    low, high = share_interval(0, 300)
    assert low == 0
    assert (1 - high) ** 300 == pytest.approx(0.025)
    assert share_interval(300, 300) == (pytest.approx(1 - high), 1)
    low, high = share_interval(20_000, 100_000)
    assert (low, high) == pytest.approx((0.19753, 0.20249), abs=5e-5)


def simulate(generator: np.random.Generator, runs: int, items: int, lost: float, gained: float) -> np.ndarray:
    """Correctness of original and candidate, `[2, runs, items]` bool; half of the unchanged items are right."""
    drawn = generator.random((runs, items))
    before = (drawn < lost) | (drawn > (1 + lost + gained) / 2)
    after = ((drawn >= lost) & (drawn < lost + gained)) | (drawn > (1 + lost + gained) / 2)
    return np.stack([before, after])


def test_the_interval_of_a_difference_of_accuracies_covers_its_truth() -> None:
    generator = np.random.default_rng(0)
    before, after = simulate(generator, 1000, 200, lost=0.16, gained=0.08)
    covered = 0
    for seed in range(1000):
        table = np.stack([np.ones(200), after[seed], before[seed]], axis=1)
        found = paired_intervals(table, {"difference": FIGURES["difference"]}, resamples=300, seed=seed)
        low, high = found["difference"]
        covered += low <= -0.08 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_that_many_items_do_resolve_a_difference() -> None:
    """Simulated with the observed shares as the truth: four of five runs reach p < 0.05, and half as many do not."""
    items = items_to_resolve(100, lost=12, gained=6)
    assert items == 391
    generator = np.random.default_rng(0)
    resolved = []
    for size in (items, items // 2):
        before, after = simulate(generator, 2000, size, lost=0.12, gained=0.06)
        lost, gained = (before & ~after).sum(axis=1), (after & ~before).sum(axis=1)
        resolved.append(np.mean([mcnemar(a, b) < 0.05 for a, b in zip(lost.tolist(), gained.tolist(), strict=True)]))
    assert 0.75 < resolved[0] < 0.83
    assert resolved[1] < 0.6


def test_no_number_of_items_resolves_what_is_equal() -> None:
    assert items_to_resolve(100, 0, 0) is None
    assert items_to_resolve(100, 7, 7) is None
    assert items_to_resolve(10, 10, 0) == 4
