"""Errors made good by the columns to come: the algebra of GPTQ (Frantar et al. 2022, arXiv 2210.17323).

With H = V V^T, V upper triangular, the error e = w - q of a row costs |e V|^2. Once the columns before a are rounded,
those of a *slab* [a, b) do best at w + e V[:a, a:b] U, U the inverse of V[a:b, a:b]. Rounding column j of these
*running weights* with an error d_j costs (d_j V_jj)^2; over all columns that adds up to |e V|^2. This is the paper's
update (V^-1 is its Cholesky factor of H^-1) without the inverse of H, and it reads the errors instead of rewriting the
weights: one matrix product per slab. Matrices are [columns, rows] here, columns in the order of work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from llmc.calibration.statistics import Hessian
from llmc.compressors.cholesky import factor_upper, inverse_upper
from llmc.compressors.method import Context
from llmc.late import torch
from llmc.threads import run_single

RAISES = 3  # times damping is raised tenfold


@dataclass(frozen=True)
class Slab:
    """Columns `[start, stop)` in the order of work.

    Attributes:
        carried: `[stop - start, start]`, what errors in the columns before add to these: (V[:a, a:b] U)^T.
        V: `[stop - start, stop - start]`, their square of V.
        unit: the inverse of `V`, each row divided by its diagonal element: how errors are carried on within the slab.
    """

    start: int
    stop: int
    carried: torch.Tensor
    V: torch.Tensor
    unit: torch.Tensor


RoundSlab: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, Slab], None]"


@dataclass(frozen=True)
class Problem:
    """What all rows share: V V^T = H + damp, cut into slabs.

    Attributes:
        cost: `[columns]`, natural order: of a squared error that the columns to come make good.
        diagonal: `[columns]` of H.
        dead: `[columns]`, whose inputs were always zero.
        order: `order[i]` is the column worked on at step i.
    """

    slabs: list[Slab]
    cost: torch.Tensor
    diagonal: torch.Tensor
    dead: torch.Tensor
    damp: float
    order: torch.Tensor
    _scratch: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def work(self, W: torch.Tensor) -> torch.Tensor:
        """`W: [rows, columns]`, natural order, as `[columns, rows]` in the order of work."""
        return W.t()[self.order]

    def natural(self, work: torch.Tensor) -> torch.Tensor:
        """`work: [columns, rows]` with its columns in natural order."""
        return torch.empty_like(work).index_copy_(0, self.order, work)

    def energy(self, work: torch.Tensor) -> torch.Tensor:
        """`[rows]`: diag(W H W^T) of `work: [columns, rows]`."""
        energy = work.new_zeros(work.shape[1])
        for slab in self.slabs:
            own = work[slab.start : slab.stop]
            energy += (slab.V.t() @ torch.addmm(own, slab.carried, work[: slab.start])).square_().sum(0)
            energy -= own.square().sum(0).mul_(self.damp)
        return energy

    def carry(self, work: torch.Tensor, round_slab: RoundSlab) -> torch.Tensor:
        """Round `work: [columns, rows]`; returns diag(E H E^T) of the errors, `[rows]`.

        `round_slab(R, values, slab)` gets the running weights `R: [columns, rows]` of a slab. It puts what they are
        rounded to in `values`, carries errors on within the slab by `slab.unit` and leaves them in `R`.
        """
        E = self._kept("errors", work)
        error = E.new_zeros(work.shape[1])
        for slab in self.slabs:
            a, b = slab.start, slab.stop
            R, own = self._kept("running", work[a:b]), E[a:b]
            torch.addmm(work[a:b], slab.carried, E[:a], out=R)
            round_slab(R, own, slab)
            torch.sub(work[a:b], own, out=own)
            error += slab.V.diagonal().square() @ R.square_()
            error -= torch.square(own, out=R).sum(0).mul_(self.damp)
        return error

    def _kept(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A contiguous matrix like this one, in memory that this thread keeps: fresh pages cost more than the work."""
        kept = getattr(self._scratch, name, None)
        if kept is None or kept.numel() < like.numel() or (kept.dtype, kept.device) != (like.dtype, like.device):
            kept = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
            setattr(self._scratch, name, kept)
        return kept[: like.numel()].view(like.shape)


Order: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""diag H to the columns in the order of work."""


def by_activity(diagonal: torch.Tensor) -> torch.Tensor:
    """Most active columns first."""
    return torch.argsort(diagonal, descending=True, stable=True)


def by_groups(diagonal: torch.Tensor, size: int) -> torch.Tensor:
    """Groups of `size` columns stay together: most active groups first, most active columns first within them.

    Gafni, Karnieli and Hanani 2025, arXiv 2505.14638 (group-aware reordering).
    """
    groups = diagonal.double().view(-1, size)
    first = torch.arange(0, diagonal.numel(), size, device=diagonal.device)
    within = torch.argsort(groups, dim=1, descending=True, stable=True) + first.unsqueeze(1)
    return within[by_activity(groups.sum(1))].reshape(-1)


def by_place(diagonal: torch.Tensor) -> torch.Tensor:
    """Natural order."""
    return torch.arange(diagonal.numel(), device=diagonal.device)


def prepare(hessian: Hessian, damping: float, ordering: Order, width: int, context: Context) -> Problem | None:
    """Order, damp, factor and cut H into slabs of `width` columns; None when no damping helps.

    Notes `dead_columns`, and `damping_steps` with `damping` where it had to be raised.
    """
    diagonal = hessian.diagonal().to(context.device, exact(context))
    dead = diagonal <= 0
    count = int(dead.sum())
    if count:
        context.note("dead_columns", count)
    order = ordering(diagonal)
    mean = float(diagonal.double().sum()) / max(1, diagonal.numel() - count)
    for step in range(RAISES + 1):
        tried = damping if step == 0 else max(damping, 1e-3) * 10.0**step
        V = _damped(hessian, dead, tried * mean, order, context)
        if not run_single(partial(factor_upper, V)):
            continue
        if step:
            context.note("damping_steps", step)
            context.note("damping", tried)
        cost = torch.empty_like(diagonal).index_copy_(0, order, V.diagonal().square())
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


def _damped(hessian: Hessian, dead: torch.Tensor, damp: float, order: torch.Tensor, context: Context) -> torch.Tensor:
    H = hessian.mean().to(context.device, exact(context))
    H.diagonal().add_(damp).masked_fill_(dead, 1.0)
    H = H[order]  # one at a time: of wide layers a copy is large
    return H[:, order]


def _slabs(V: torch.Tensor, width: int) -> list[Slab]:
    return run_single(lambda: [_slab(V, a, min(a + width, V.shape[0])) for a in range(0, V.shape[0], width)])


def _slab(V: torch.Tensor, a: int, b: int) -> Slab:
    square = V[a:b, a:b].triu()
    U = inverse_upper(square)
    return Slab(a, b, U.t() @ V[:a, a:b].t(), square, U / U.diagonal().unsqueeze(1))
