"""Online accumulators of activations. They merge, so that samples may be taken in anywhere and added in order."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from llmc.late import torch
from llmc.registry import Registry

Stats: TypeAlias = dict[str, Any]
"""Name of a statistic -> the statistic, of one input point."""
STATISTICS = Registry("statistic", {"hessian": "llmc.calibration.statistics:Hessian"})

NARROW = 1024  # features, up to which thin strips are the fastest


class Hessian:
    """The mean of x x^T over tokens, x the input of a layer: `[features, features]`.

    Only strips on and above the diagonal are computed and kept (a little over half of the matrix), in float32: the
    rounding of a sum of a few hundred partial sums is 1e-6 of the diagonal, far below the damping that follows.

    Args:
        features: length of x.
    """

    def __init__(self, features: int) -> None:
        self.features = features
        self.tokens = 0
        self.total = 0.0  # sum of the tokens' weights
        self.sum = torch.zeros(_strips(features)[-1][2].stop)

    @staticmethod
    def partial(x: torch.Tensor) -> torch.Tensor:
        """The sum of x x^T over `x: [tokens, features]`, as strips laid end to end. Changes nothing: runs anywhere."""
        x = x.reshape(-1, x.shape[-1]).to(torch.float32)
        features = x.shape[1]
        strips = _strips(features)
        out = torch.empty(strips[-1][2].stop)
        for a, b, place in strips:
            torch.mm(x[:, a:b].t(), x[:, a:], out=out[place].view(b - a, features - a))
        return out

    def add(self, partial: torch.Tensor, tokens: int, total: float | None = None) -> None:
        """Take in what `partial` gave for so many tokens (of this total weight)."""
        self.sum.add_(partial)
        self.tokens += tokens
        self.total += tokens if total is None else total

    def update(
        self, x: torch.Tensor, *, reference: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> None:
        """Take in `x: [tokens, features]`; `weight: [tokens]`, not negative, says how much each token counts."""
        x = x.reshape(-1, self.features)
        if weight is None:
            self.add(self.partial(x), x.shape[0])
            return
        weight = weight.reshape(-1).float()
        self.add(self.partial(x.float() * weight.sqrt().unsqueeze(-1)), x.shape[0], float(weight.sum()))

    def merge(self, other: Hessian) -> None:
        """Take in what another one has seen."""
        self.add(other.sum, other.tokens, other.total)

    def mean(self) -> torch.Tensor:
        """The Hessian `float32 [features, features]`, exactly symmetric, a new tensor; zero before the first token."""
        out = torch.empty(self.features, self.features)
        for a, b, place in _strips(self.features):
            strip = self.sum[place].view(b - a, -1)
            out[a:b, a:] = strip
            out[b:, a:b] = strip[:, b - a :].t()
            square = out[a:b, a:b]  # of a matrix product: its halves may differ in the last digit
            square.triu_().add_(square.triu(1).t())
        return out.div_(self.total or 1.0)

    def diagonal(self) -> torch.Tensor:
        """The mean of x^2: `float32 [features]`."""
        parts = [self.sum[place].view(b - a, self.features - a).diagonal() for a, b, place in _strips(self.features)]
        return torch.cat(parts) / (self.total or 1.0)


def _strips(features: int) -> list[tuple[int, int, slice]]:
    """Rows [a, b) of each strip, and where it stands in the flat sum."""
    width = 64 if features <= NARROW else 256
    out, start = [], 0
    for a in range(0, features, width):
        b = min(a + width, features)
        stop = start + (b - a) * (features - a)
        out.append((a, b, slice(start, stop)))
        start = stop
    return out


class Statistic(Protocol):
    """An online, mergeable accumulator at one input point."""

    def update(
        self, x: torch.Tensor, *, reference: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> None:
        """Take in `x: [tokens, features]`."""

    def merge(self, other: Any) -> None:
        """Take in what another accumulator of the same kind has seen."""
