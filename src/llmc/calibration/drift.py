"""Aiming at the original model: what a matrix should do on the inputs that it will really see.

Layers before it were compressed, so its inputs x differ from those of the original model, x_o, and so does the residual
stream that it writes to, r from r_o. Its weights W are replaced, before they are compressed, by the ones that make up
for as much of that as a matrix can, in the least squares over calibration tokens:

    W' = W + aim * mean((W (x_o - x) + r_o - r) x^T) (H + 1 % of its mean diagonal)^-1,   H = mean(x x^T)

The same correction without the residual stream is in Qronos (Zhang et al. 2025, arXiv 2505.11695) and GPTAQ (Li et al.
2025, arXiv 2504.02692).
"""

from __future__ import annotations

from dataclasses import dataclass

from llmc.calibration.statistics import Hessian
from llmc.late import torch
from llmc.threads import run_single

DAMPING = 0.1


@dataclass
class Drift:
    """How far the inputs of a layer are from the original's, against the inputs themselves.

    Attributes:
        of_outputs: the mean of (W (x_o - x) + r_o - r) x^T, `[out, in]`, for one matrix; else of (x_o - x) x^T,
            `[in, in]`, for all that read x.
        residual: r was known.
        sum: over tokens.
    """

    of_outputs: bool
    residual: bool
    sum: torch.Tensor | None = None
    tokens: int = 0

    @staticmethod
    def partial(lacking: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The sum over tokens for `lacking: [tokens, in or out]` and `x: [tokens, in]`. Changes nothing."""
        return (lacking.float().t() @ x.float()).cpu()

    def add(self, partial: torch.Tensor, tokens: int) -> None:
        """Take in what `partial` gave."""
        self.sum = partial if self.sum is None else self.sum.add_(partial)
        self.tokens += tokens

    def lacking(self, weight: torch.Tensor) -> torch.Tensor:
        """What the outputs of `weight: [out, in]` lack, against its inputs: float32 `[out, in]`."""
        if self.sum is None or not self.tokens:
            return torch.zeros(weight.shape)
        mean = self.sum / self.tokens
        return mean if self.of_outputs else weight.float() @ mean.to(weight.device)


def aimed(weight: torch.Tensor, hessian: Hessian, drift: Drift, aim: float, device: str = "cpu") -> torch.Tensor:
    """W' of `weight: [out, in]`, float32; the weight itself where nothing drifted or H has no factor.

    Args:
        hessian: of the inputs that the matrix will see.
        aim: share of the correction that is made.
    """
    if not hessian.tokens or not drift.tokens:
        return weight

    def solve() -> torch.Tensor:
        H = hessian.mean().to(device)
        H.diagonal().add_(DAMPING * float(H.diagonal().double().mean()) or 1.0)
        factor, failed = torch.linalg.cholesky_ex(H)
        lacking = drift.lacking(weight.to(device))
        if int(failed) or not bool(torch.isfinite(lacking).all()):
            return weight
        change = torch.cholesky_solve(lacking.t().to(H.dtype), factor).t()
        return weight.to(device, torch.float32).add(change, alpha=aim).cpu()

    return run_single(solve)
