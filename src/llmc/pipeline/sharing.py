"""A budget shared out among matrices: more bits where errors cost the model more.

At a rate of b bits an error costs about 4**-b; so equal total bits do least harm where every weight's share of the loss
is the same: b_i = b + log2(loss_i / weights_i) / 2 + constant. Rates keep within reach of the mean, because losses are
estimates, grow faster than that at low rates, and are those of the calibration text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

BELOW, ABOVE = 1.0, 2.0  # how far rates may lie from the mean, in bits
LEAST, MOST = 0.3, 7.5


def shared_out(
    losses: Mapping[str, float], before: Mapping[str, float], weights: Mapping[str, int], mean: float
) -> dict[str, float]:
    """Bits per weight of each matrix, `mean` on average.

    Args:
        losses: what the errors of each cost at the rates `before`.
        weights: how many each has.
    """
    least, most = max(LEAST, mean - BELOW), min(MOST, mean + ABOVE)
    floor = max(losses.values(), default=0.0) * 1e-9 or 1e-300
    wanted = {name: before[name] + 0.5 * math.log2(max(losses[name], floor) / weights[name]) for name in weights}
    total = sum(weights.values())

    def at(level: float) -> dict[str, float]:
        return {name: min(max(bits + level, least), most) for name, bits in wanted.items()}

    low, high = least - max(wanted.values()), most - min(wanted.values())
    for _ in range(80):
        middle = (low + high) / 2
        reached = sum(rate * weights[name] for name, rate in at(middle).items()) / total
        low, high = (middle, high) if reached <= mean else (low, middle)
    return at(low)
