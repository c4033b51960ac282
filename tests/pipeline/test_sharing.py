"""Bits shared out among matrices: bounds and mean kept, more where errors cost more, as a search over grids finds."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.pipeline.sharing import ABOVE, BELOW, LEAST, MOST, shared_out

losses_of = st.one_of(st.just(0.0), st.floats(1e-9, 1e3))
matrices = st.lists(st.tuples(losses_of, st.floats(0.5, 7.0), st.integers(1, 10**7)), min_size=1, max_size=12)
means = st.floats(LEAST, MOST)

Matrices = list[tuple[float, float, int]]


def bounds(mean: float) -> tuple[float, float]:
    return max(LEAST, mean - BELOW), min(MOST, mean + ABOVE)


def shared(rows: Matrices, mean: float) -> list[float]:
    names = [f"m{i}" for i in range(len(rows))]
    columns = [dict(zip(names, column, strict=True)) for column in zip(*rows, strict=True)]
    found = shared_out(columns[0], columns[1], columns[2], mean)
    assert list(found) == names
    return list(found.values())


def mean_of(rates: list[float], rows: Matrices) -> float:
    return sum(r * n for r, (*_, n) in zip(rates, rows, strict=True)) / sum(n for *_, n in rows)


def total(rates: list[float], rows: Matrices) -> float:
    return sum(loss * 4 ** (before - rate) for rate, (loss, before, _) in zip(rates, rows, strict=True))


@given(matrices, means)
@settings(max_examples=300, deadline=None)
def test_the_mean_is_reached_and_no_bound_left(rows: Matrices, mean: float) -> None:
    rates, (least, most) = shared(rows, mean), bounds(mean)
    assert all(least <= rate <= most for rate in rates)
    assert mean_of(rates, rows) == pytest.approx(mean, abs=1e-6)
    assert mean_of(rates, rows) <= mean + 1e-12  # rounding of the sum


@given(matrices, means)
@settings(max_examples=200, deadline=None)
def test_more_where_a_weight_costs_more(rows: Matrices, mean: float) -> None:
    """At one rate before, the order of the rates is that of the losses per weight."""
    floor = max(loss for loss, *_ in rows) * 1e-9  # what is less counts as this much
    rows = [(max(loss, floor, 1e-9), 3.0, n) for loss, _, n in rows]
    rates = shared(rows, mean)
    for (one, (a, _, n)), (other, (b, _, m)) in itertools.combinations(zip(rates, rows, strict=True), 2):
        if a / n <= b / m:
            assert one <= other + 1e-9


@given(matrices, means, st.floats(1.5, 1e2))
@settings(max_examples=200, deadline=None)
def test_a_larger_loss_never_gets_fewer_bits(rows: Matrices, mean: float, times: float) -> None:
    rows = [(max(loss, 1e-3), before, n) for loss, before, n in rows]
    more = [(rows[0][0] * times, *rows[0][1:]), *rows[1:]]
    assert shared(more, mean)[0] >= shared(rows, mean)[0] - 1e-9


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.floats(1e-9, 1e3), means)
@settings(max_examples=100, deadline=None)
def test_equal_losses_per_weight_at_equal_rates_stay_equal(counts: list[int], loss: float, mean: float) -> None:
    rates = shared([(loss * n, 3.0, n) for n in counts], mean)
    assert rates == pytest.approx([mean] * len(counts), abs=1e-6)


@given(matrices, means, st.floats(1e-3, 1e3))
@settings(max_examples=100, deadline=None)
def test_the_unit_of_losses_does_not_matter(rows: Matrices, mean: float, unit: float) -> None:
    scaled = [(loss * unit, before, n) for loss, before, n in rows]
    assert shared(scaled, mean) == pytest.approx(shared(rows, mean), abs=1e-6)


@given(matrices, means)
@settings(max_examples=100, deadline=None)
def test_what_matters_is_the_loss_at_a_rate_not_the_rate(rows: Matrices, mean: float) -> None:
    """A loss measured one bit higher counts as four times as much."""
    rows = [(max(loss, 1e-3), before, n) for loss, before, n in rows]
    moved = [(loss * 4, before - 1, n) if i % 2 else (loss, before, n) for i, (loss, before, n) in enumerate(rows)]
    assert shared(moved, mean) == pytest.approx(shared(rows, mean), abs=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        [(1.0, 3.0, 100), (4.0, 3.0, 100), (9.0, 3.0, 100)],
        [(1e-4, 3.0, 1000), (1e-3, 2.5, 400), (5e-3, 4.0, 2500)],
        [(1e-6, 3.0, 1000), (1.0, 3.0, 1000), (1.0, 3.0, 9000)],  # the first at its lower bound
        [(1e3, 3.0, 10), (1e-3, 3.0, 1000), (1e-3, 3.0, 1000)],  # the first at its upper bound
    ],
)
@pytest.mark.parametrize("mean", [1.1, 3.0, 6.3])
def test_no_other_rates_of_the_same_bits_cost_less(rows: Matrices, mean: float) -> None:
    """Brute force over two of three rates; the third is what is left of the bits."""
    (least, most), every = bounds(mean), sum(n for *_, n in rows)
    steps = [least + (most - least) * i / 150 for i in range(151)]
    best = math.inf
    for one, two in itertools.product(steps, steps):
        three = (mean * every - one * rows[0][2] - two * rows[1][2]) / rows[2][2]
        if least <= three <= most:
            best = min(best, total([one, two, three], rows))
    ours = total(shared(rows, mean), rows)
    assert ours <= best * (1 + 1e-9)
    assert ours >= best * 0.97  # the grid comes near


def test_nothing_known_of_any_loss_shares_evenly_by_rate_before() -> None:
    assert shared([(0.0, 3.0, 50), (0.0, 3.0, 50)], 2.0) == pytest.approx([2.0, 2.0], abs=1e-6)
