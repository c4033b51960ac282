"""Intervals for figures that are functions of sums: the paired bootstrap over windows.

Efron 1979, percentile method. Windows are drawn with replacement, each with all its sums, so that what two models share
on a window cancels in their difference or ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from llmc.late import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]

DRAWN_AT_ONCE = 2**20  # windows drawn per slab: bounds the temporaries


def paired_intervals(
    sums: NDArray[np.float64],
    figures: Mapping[str, Figure],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of several figures from the same draws.

    Args:
        sums: `[units, columns]`, one row of sums per window (or document, or item).
        figures: each takes totals `[resamples, columns]` and returns its value for each, `[resamples]`.
        level: coverage of the interval.
        resamples: number of draws.
        seed: of the draws; same seed and sums, same intervals.

    Returns:
        `{name: (low, high)}`; empty when there are fewer than two units, which say nothing about their spread.
    """
    units = len(sums)
    if units < 2:
        return {}
    totals = np.concatenate([times @ sums for times in times_drawn(units, resamples, seed)])
    tail = (1 - level) / 2
    edges = {name: np.quantile(figure(totals), [tail, 1 - tail]) for name, figure in figures.items()}
    return {name: (float(low), float(high)) for name, (low, high) in edges.items()}


def times_drawn(units: int, resamples: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """How often each draw of `units` with replacement holds each of them, `[draws, units]`, slab after slab."""
    generator = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // units)
    for begin in range(0, resamples, step):
        drawn = generator.integers(units, size=(min(step, resamples - begin), units))
        drawn += np.arange(len(drawn))[:, None] * units
        yield np.bincount(drawn.reshape(-1), minlength=drawn.size).reshape(drawn.shape)
