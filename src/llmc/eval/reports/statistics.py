"""Whether two models judged on the same items differ, beyond the bootstrap: exact tests of counts."""

from __future__ import annotations

import math
from statistics import NormalDist

from llmc.late import np

POWER = 0.8


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact two-sided p (1947): how often a fair coin splits the discordant items as unevenly as this.

    Args:
        lost: items that only the original got right.
        gained: items that only the other model got right.
    """
    count, term, tail = lost + gained, 1, 0
    for k in range(min(lost, gained) + 1):
        tail += term  # whole numbers: nothing is rounded
        term = term * (count - k) // (k + 1)
    return min(1.0, 2 * tail / 2**count)


def items_to_resolve(items: int, lost: int, gained: int, *, level: float = 0.95, power: float = POWER) -> int | None:
    """How many items would show the observed difference at `level`, with probability `power`; None where there is none.

    Connor 1987: `n = (a sqrt(s) + b sqrt(s - d^2))^2 / d^2`, with s the share of discordant items, d the difference of
    the accuracies, a and b the normal quantiles of `1 - (1 - level) / 2` and of `power`.
    """
    if lost == gained:
        return None
    share, difference = (lost + gained) / items, (gained - lost) / items
    a, b = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)
    return math.ceil((a * math.sqrt(share) + b * math.sqrt(max(0.0, share - difference**2))) ** 2 / difference**2)


def share_interval(count: int, items: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share from `count` of `items`: Clopper and Pearson 1934, which covers the truth at least so often.

    The bootstrap has none where the count is 0: it would say that nothing ever flips.
    """
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else 1 - _edge(items - count, items, tail)
    return low, 1.0 if count == items else _edge(count, items, tail)


def _edge(count: int, items: int, tail: float) -> float:
    """The share for which `count` or fewer of `items` happen with probability `tail`, by bisection."""
    k = np.arange(count + 1)
    steps = np.log(items - k[:-1]) - np.log(k[:-1] + 1)
    ways = np.concatenate([[0.0], np.cumsum(steps)])  # log of the binomial coefficients
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        logs = ways + k * math.log(middle) + (items - k) * math.log1p(-middle)
        below = np.exp(logs - logs.max()).sum() * np.exp(logs.max())
        low, high = (middle, high) if below > tail else (low, middle)
    return (low + high) / 2
