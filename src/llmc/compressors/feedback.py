"""Errors made good by the columns to come: the algebra of GPTQ (Frantar et al. 2022, arXiv 2210.17323).

With H = V V^T, V upper triangular, the error e = w - q of a row costs |e V|^2. Once the columns before a are rounded,
those of a *slab* [a, b) do best at w + e V[:a, a:b] U, U the inverse of V[a:b, a:b]; rounding column j then costs
((w_j - q_j) V_jj)^2. This is the paper's update (V^-1 is its Cholesky factor of H^-1) without the inverse of H, and it
reads the errors instead of rewriting the weights: one matrix product per slab.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from llmc.calibration.statistics import Hessian
from llmc.compressors.cholesky import factor_upper, inverse_upper
from llmc.compressors.parallel import run_single
from llmc.structure import Context

RAISES = 3  # times damping is raised tenfold


@dataclass(frozen=True)
class Slab:
    """Columns `[start, stop)` in the order of work.

    Attributes:
        V: `[stop, stop - start]`, their part of V, zero below its diagonal.
        U: the inverse of the square at its end.
        unit: U, each row divided by its diagonal element.
    """

    start: int
    stop: int
    V: torch.Tensor
    U: torch.Tensor
    unit: torch.Tensor


RoundSlab = Callable[[torch.Tensor, Slab], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Problem:
    """What all rows share: V V^T = H + damp, cut into slabs.

    Attributes:
        cost: `[columns]`, natural order: of a squared error that the columns to come make good.
        diagonal: `[columns]` of H.
        dead: `[columns]`, whose inputs were always zero.
        order: `order[i]` is the column worked on at step i; None: i.
    """

    slabs: list[Slab]
    cost: torch.Tensor
    diagonal: torch.Tensor
    dead: torch.Tensor
    damp: float
    order: torch.Tensor | None

    def energy(self, W: torch.Tensor) -> torch.Tensor:
        """diag(W H W^T) of `W: [rows, columns]`, natural order."""
        energy = -self.damp * W.square().sum(1)
        W = W if self.order is None else W[:, self.order]
        for slab in self.slabs:
            energy += (W[:, : slab.stop] @ slab.V).square_().sum(1)
        return energy

    def carry(self, work: torch.Tensor, round_slab: RoundSlab) -> torch.Tensor:
        """Replace `work: [rows, columns]`, its columns in the order of work, by levels; returns diag(E H E^T).

        `round_slab(R, slab)` gets the running weights of a slab (transposed: a column is contiguous), carries errors on
        within it, and returns levels and the values that they stand for, `[columns, rows]` both.
        """
        E = torch.empty_like(work)
        error = work.new_zeros(work.shape[0])
        for slab in self.slabs:
            a, b = slab.start, slab.stop
            carried = E[:, :a] @ slab.V[:a]
            levels, values = round_slab((work[:, a:b] + carried @ slab.U).t().contiguous(), slab)
            torch.sub(work[:, a:b], values.t(), out=E[:, a:b])
            work[:, a:b] = levels.t()
            error += carried.addmm_(E[:, a:b], slab.V[a:]).square_().sum(1)
        return error.sub_(self.damp * E.square().sum(1))


def prepare(hessian: Hessian, damping: float, act_order: bool, width: int, context: Context) -> Problem | None:
    """Order, damp, factor and cut H into slabs of `width` columns; None when no damping helps.

    Notes `dead_columns`, and `damping_steps` with `damping` where it had to be raised.
    """
    diagonal = hessian.diagonal().to(context.device, exact(context))
    dead = diagonal <= 0
    count = int(dead.sum())
    if count:
        context.note("dead_columns", count)
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else None
    mean = float(diagonal.double().sum()) / max(1, diagonal.numel() - count)
    for step in range(RAISES + 1):
        tried = damping if step == 0 else max(damping, 1e-3) * 10.0**step
        V = _damped(hessian, dead, tried * mean, order, context)
        if not run_single(partial(factor_upper, V)):
            continue
        if step:
            context.note("damping_steps", step)
            context.note("damping", tried)
        cost = V.diagonal().square()
        if order is not None:
            cost = torch.empty_like(cost).index_copy_(0, order, cost)
        return Problem(_slabs(V, width), cost, diagonal, dead, tried * mean, order)
    return None


def exact(context: Context) -> torch.dtype:
    """float32 unless float64 was asked for: less does not factor."""
    return torch.float64 if context.compute_dtype == torch.float64 else torch.float32


def relative_error(error: torch.Tensor, energy: torch.Tensor, context: Context) -> None:
    """Note tr(E H E^T) / tr(W H W^T) from `[rows]` of both, for each of the stacked Targets."""
    sizes = list(context.parts) or [error.shape[0]]
    pairs = zip(torch.split(error.double(), sizes), torch.split(energy.double(), sizes), strict=True)
    ratios = [float(e.sum() / w.sum().clamp(min=1e-300)) for e, w in pairs]
    context.note("relative_error", ratios if context.parts else ratios[0])


def _damped(
    hessian: Hessian, dead: torch.Tensor, damp: float, order: torch.Tensor | None, context: Context
) -> torch.Tensor:
    H = hessian.mean().to(context.device, exact(context))
    H.diagonal().add_(damp).masked_fill_(dead, 1.0)
    return H if order is None else H[order][:, order]


def _slabs(V: torch.Tensor, width: int) -> list[Slab]:
    return run_single(lambda: [_slab(V, a, min(a + width, V.shape[0])) for a in range(0, V.shape[0], width)])


def _slab(V: torch.Tensor, a: int, b: int) -> Slab:
    panel = V[:b, a:b].clone()
    panel[a:].triu_()
    U = inverse_upper(panel[a:])
    return Slab(a, b, panel, U, U / U.diagonal().unsqueeze(1))
