"""How far two encoders agree: cosine of their vectors, and Spearman's correlation of how they rank pairs of texts.

Spearman 1904: Pearson's correlation of ranks, equal values sharing the mean of theirs. Ranks depend on all pairs, so
that no sum per pair gives the correlation of a draw; here every draw has its own ranks, from how often it holds each
value in their sorted order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llmc.errors import UsageError
from llmc.eval.reports.intervals import paired_intervals, times_drawn
from llmc.late import np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL, RESAMPLES = 0.95, 2000


def similarity(
    mine: Floats,
    original: Floats | None = None,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    gold: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The figures, JSON-ready; those that need an original or gold scores are None without.

    Args:
        mine, original: vectors of the same texts, `[texts, hidden]`; the two may differ in `hidden`, but then have no
            `cosine`.
        pairs: which texts are compared; None takes the first with the second, the third with the fourth, and so on, so
            that no text stands in two of them, and pairs can be drawn like independent ones.
        gold: how alike people find the two texts of each pair.

    Returns:
        `cosine`: mean of cos(mine, original) over texts; `rank_correlation`: Spearman's of the pairs' similarities by
        both models; with gold scores `correlation` and `original_correlation` with them and their
        `correlation_difference`; `texts`, `pairs`; `intervals` at 95 %, by the paired bootstrap over texts and pairs.

    Raises:
        UsageError: as many gold scores as pairs are needed.
    """
    chosen = [(i, i + 1) for i in range(0, len(mine) - 1, 2)] if pairs is None else list(pairs)
    if gold is not None and len(gold) != len(chosen):
        raise UsageError(f"{len(gold)} scores for {len(chosen)} pairs", fix="give one for each")
    values: dict[str, Any] = dict.fromkeys(
        ("cosine", "rank_correlation", "correlation", "original_correlation", "correlation_difference")
    )
    intervals: dict[str, list[float]] = {}
    if original is not None and mine.shape == original.shape:
        each = cosines(mine, original)
        table = np.stack([np.ones(len(each)), each], axis=1)
        values["cosine"] = float(each.mean())
        edges = paired_intervals(table, {"cosine": lambda s: s[:, 1] / s[:, 0]})
        intervals |= {name: list(pair) for name, pair in edges.items()}
    for name, figure in _correlations(mine, original, chosen, gold).items():
        values[name], interval = _with_interval(figure, len(chosen))
        intervals |= {name: interval} if interval else {}
    return {**values, "texts": len(mine), "pairs": len(chosen), "intervals": intervals}


def cosines(a: Floats, b: Floats) -> Floats:
    """Cosine of each row of `a` with that of `b`, `[rows]`."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def _correlations(
    mine: Floats, original: Floats | None, pairs: Sequence[tuple[int, int]], gold: Sequence[float] | None
) -> dict[str, Callable[[NDArray[np.int64]], Floats]]:
    """Each figure as a function of how often pairs were drawn, `[draws, pairs]` to `[draws]`."""
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    own = cosines(mine[first], mine[second])
    right = None if gold is None else np.array(gold, dtype=np.float64)
    figures: dict[str, Callable[[NDArray[np.int64]], Floats]] = {}
    if right is not None:
        figures["correlation"] = partial(spearman, own, right)
    if original is None:
        return figures
    theirs = cosines(original[first], original[second])
    figures["rank_correlation"] = partial(spearman, own, theirs)
    if right is not None:
        figures["original_correlation"] = partial(spearman, theirs, right)
        figures["correlation_difference"] = lambda times: spearman(own, right, times) - spearman(theirs, right, times)
    return figures


def _with_interval(
    figure: Callable[[NDArray[np.int64]], Floats], units: int
) -> tuple[float | None, list[float] | None]:
    """The figure of all pairs and its interval; None where all values of a model, or of the scores, are equal."""
    value = figure(np.ones((1, units), dtype=np.int64))[0] if units else np.nan
    if np.isnan(value):
        return None, None
    drawn = np.concatenate([figure(times) for times in times_drawn(units, RESAMPLES)])
    tail = (1 - LEVEL) / 2
    return float(value), np.nanquantile(drawn, [tail, 1 - tail]).tolist()  # of a few pairs a draw may hold one only


def spearman(a: Floats, b: Floats, times: NDArray[np.int64]) -> Floats:
    """Spearman's correlation of `a` and `b` `[units]` in each draw that holds them `times` `[draws, units]`; `[draws]`.

    NaN for a draw whose values are all equal.
    """
    weights = times.astype(np.float64)
    count = weights.sum(1)
    middle = (count[:, None] + 1) / 2  # the mean of all ranks, ties or not
    x, y = _ranks(a, weights) - middle, _ranks(b, weights) - middle
    spread = np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    together = (weights * x * y).sum(1)
    return np.divide(together, spread, out=np.full_like(spread, np.nan), where=spread > 0)


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Rank of each unit from 1, in draws that hold it `weights` times, both `[draws, units]`; equal values share it."""
    _, group = np.unique(values, return_inverse=True)  # [units], in rising order of values
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    held = np.add.reduceat(weights[:, order], starts, axis=1)  # [draws, groups]
    below = held.cumsum(1) - held
    return (below + (held + 1) / 2)[:, group]
