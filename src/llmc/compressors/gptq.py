"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round column by column, each error made good by the columns to come.

With H = V V^T, V upper triangular, the error of a row e = w - q is |e V|^2. Once columns 1..j are rounded, the columns
still to come do best at w + e V[:j, j:] U, U = V^-1 (upper, so only its blocks on the diagonal are needed), and rounding
column j then costs ((w_j - q_j) V_jj)^2. This is the paper's update, U being its Cholesky factor of H^-1, without the
inverse, and it reads the errors instead of rewriting the weights: one matrix product per *slab* of columns.
Left out: act_order whose groups follow the permuted order (it needs an index per column in storage).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch

from llmc.calibration.statistics import Hessian
from llmc.compressors.cholesky import factor_upper, inverse_upper
from llmc.compressors.options import GridOptions, check_groups, option
from llmc.compressors.parallel import ordered_map, row_tiles, run_single
from llmc.compressors.rtn import round_to_nearest
from llmc.formats.encoded import Encoded, Grid, Params, Plane
from llmc.structure import Context

ROWS = 2048  # rows worked on at once: long columns make the Python between two products cheap
FIT = 1 << 17  # weights whose params are fitted at once
MICRO = 16  # columns rounded one by one before a product updates the rest of the slab
RAISES = 3  # times damping is raised tenfold
SEEN = ("quantized", "original")


@dataclass(frozen=True)
class Gptq(GridOptions):
    """Rounding that makes up for its own errors, by the second moments of the inputs."""

    damping: float = option(0.01, "fraction of mean(diag H) added to the diagonal", least=0.0, most=10.0)
    act_order: bool = option(False, "most active columns first, the params of all groups fixed before")
    slab: int = option(128, "columns updated at once", least=16, most=4096)
    propagate: str = option("quantized", "outputs of earlier blocks that later ones are calibrated on", choices=SEEN)

    needs: ClassVar[tuple[str, ...]] = ("hessian",)
    by_rows: ClassVar[bool] = True

    def __call__(self, weight: torch.Tensor, stats: dict[str, Any], context: Context) -> Encoded:
        """Compress `weight: [out_features, in_features]` under `stats["hessian"]`.

        Notes `relative_error` = tr(E H E^T) / tr(W H W^T), E = W - dequantized (a list when `context.parts` is set), and
        where it happened: `dead_columns`, `damping_steps` with `damping`, `uncalibrated`, `fallback`.

        Raises:
            UsageError: the group size does not divide the columns, or the grid cannot be had.
        """
        check_groups(self.group_size, weight.shape[1])
        grid = self.make_grid(context.scale_dtypes)
        hessian: Hessian | None = stats.get("hessian")
        if hessian is None or hessian.tokens == 0:
            context.note("uncalibrated", True)
            return round_to_nearest(weight, grid, None, context)
        problem = self._problem(hessian, context)
        if problem is None:
            context.note("fallback", "rtn: the Hessian has no Cholesky factor at any damping tried")
            return round_to_nearest(weight, grid, None, context)
        return _solve(weight, grid, problem, context)

    def _problem(self, hessian: Hessian, context: Context) -> _Problem | None:
        """Order, damp and factor; None when no damping helps."""
        diagonal = hessian.diagonal().to(context.device, context.compute_dtype)
        dead = diagonal <= 0
        count = int(dead.sum())
        if count:
            context.note("dead_columns", count)
        order = torch.argsort(diagonal, descending=True, stable=True) if self.act_order else None
        mean = float(diagonal.double().sum()) / max(1, diagonal.numel() - count)
        for step in range(RAISES + 1):
            damping = self.damping if step == 0 else max(self.damping, 1e-3) * 10.0**step
            V = _damped(hessian, dead, damping * mean, order, context)
            if not run_single(lambda V=V: factor_upper(V)):
                continue
            if step:
                context.note("damping_steps", step)
                context.note("damping", damping)
            width = _slab_width(self.slab, self.group_size, self.act_order)
            return _Problem(V, _diagonal_inverses(V, width), diagonal, dead, damping * mean, order, width)
        return None


@dataclass(frozen=True)
class _Problem:
    """What all rows share. `order[i]` is the column worked on at step i (None: i); V, U and slabs are in that order.

    Attributes:
        V: upper triangular, V V^T = H + damp.
        U: the inverses of V's diagonal blocks, one per slab.
        diagonal: diag(H), natural order.
        dead: columns that were never active, natural order.
        damp: what was added to the diagonal.
        order: see above.
        width: columns of a slab.
    """

    V: torch.Tensor
    U: list[torch.Tensor]
    diagonal: torch.Tensor
    dead: torch.Tensor
    damp: float
    order: torch.Tensor | None
    width: int


@dataclass
class _Tile:
    """Some rows, transposed, in the order of work: a column is contiguous.

    Attributes:
        W: the weights `[columns, rows]`.
        E: their errors so far.
        codes: `uint8 [columns, rows]`.
        groups: params by group, natural order; empty until fitted.
        error: sum of squared errors under V, `[rows]`.
    """

    W: torch.Tensor
    E: torch.Tensor
    codes: torch.Tensor
    groups: list[Params]
    error: torch.Tensor


def _solve(weight: torch.Tensor, grid: Grid, problem: _Problem, context: Context) -> Encoded:
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8)

    def work(bounds: tuple[int, int]) -> tuple[Params, torch.Tensor, torch.Tensor]:
        a, b = bounds
        W = weight[a:b].to(context.device, context.compute_dtype).t().contiguous()
        tile, energy = _solve_tile(W, grid, problem, weight.dtype)
        natural = tile.codes if problem.order is None else tile.codes[torch.argsort(problem.order)]
        codes[a:b] = natural.t()
        params = {k: torch.cat([g[k] for g in tile.groups], dim=1).cpu() for k in tile.groups[0]}
        return params, tile.error.cpu(), energy.cpu()

    done = list(ordered_map(work, row_tiles(rows, ROWS), context.workers))
    params = {k: torch.cat([part[0][k] for part in done]) for k in done[0][0]}
    error, energy = (torch.cat([part[i] for part in done]).double() for i in (1, 2))
    sizes = list(context.parts) or [rows]
    ratios = [
        float(e.sum() / w.sum().clamp(min=1e-300)) for e, w in zip(error.split(sizes), energy.split(sizes), strict=True)
    ]
    context.note("relative_error", ratios if context.parts else ratios[0])
    return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, (rows, columns), weight.dtype)


def _solve_tile(W: torch.Tensor, grid: Grid, problem: _Problem, dtype: torch.dtype) -> tuple[_Tile, torch.Tensor]:
    """Quantize `W: [columns, rows]`, natural order, overwritten. Also returns diag(W H W^T) `[rows]`."""
    columns, rows = W.shape
    W[problem.dead] = 0
    group = grid.group_size or columns
    static = problem.order is not None or group == columns
    groups: list[Params] = []
    if static:
        groups = [_fit(W[g : g + group], grid, problem.diagonal[g : g + group]) for g in range(0, columns, group)]
    if problem.order is not None:
        W = W[problem.order]
    tile = _Tile(
        W,
        torch.empty_like(W),
        torch.empty(columns, rows, dtype=torch.uint8, device=W.device),
        groups,
        W.new_zeros(rows),
    )
    energy = -problem.damp * W.square().sum(0)
    for a in range(0, columns, problem.width):
        b = min(a + problem.width, columns)
        panel = problem.V[:b, a:b].clone()
        panel[a:].triu_()
        energy += (panel.t() @ W[:b]).square_().sum(0)
        _solve_slab(tile, a, b, grid, problem, dtype)
    tile.error -= problem.damp * tile.E.square().sum(0)
    return tile, energy


def _solve_slab(tile: _Tile, a: int, b: int, grid: Grid, problem: _Problem, dtype: torch.dtype) -> None:
    """Quantize columns `[a, b)` in the order of work, given the errors of those before."""
    U = problem.U[a // problem.width]
    diagonal = problem.V[a:b, a:b].diagonal().tolist()
    natural = range(a, b) if problem.order is None else problem.order[a:b].tolist()
    group = grid.group_size or tile.W.shape[0]
    R = tile.W[a:b].clone()  # the weights updated for the errors so far, then the values chosen
    if a:
        R.addmm_(U.t(), problem.V[:a, a:b].t() @ tile.E[:a])
    err = torch.empty_like(R)
    cuts = sorted({*range(0, b - a, MICRO), *range(0, b - a, group), b - a})
    for m, n in pairwise(cuts):
        if len(tile.groups) * group == a + m:
            tile.groups.append(_fit(R[m : m + group], grid, problem.diagonal[a + m : a + m + group]))
        for j in range(m, n):
            column = R[j].addmv_(err[m:j].t(), U[m:j, j], alpha=-1) if j > m else R[j]
            params = tile.groups[natural[j] // group]
            code = grid.round(column.unsqueeze(-1), params)
            tile.codes[a + j] = code.squeeze(-1)
            value = grid.value(code, params).squeeze(-1).to(dtype).to(R.dtype)
            torch.sub(column, value, out=err[j]).mul_(diagonal[j])
            R[j] = value
        R[n:].addmm_(U[m:n, n:].t(), err[m:n], alpha=-1)
    torch.sub(tile.W[a:b], R, out=tile.E[a:b])
    tile.error += err.square_().sum(0)


def _fit(values: torch.Tensor, grid: Grid, importance: torch.Tensor) -> Params:
    """Params `[rows, 1]` of one group, `values: [columns, rows]`."""
    columns, rows = values.shape
    parts = [
        grid.fit(values[:, a:b].t().float(), importance.float()) for a, b in row_tiles(rows, max(256, FIT // columns))
    ]
    return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}


def _damped(
    hessian: Hessian, dead: torch.Tensor, damp: float, order: torch.Tensor | None, context: Context
) -> torch.Tensor:
    H = hessian.mean().to(context.device, context.compute_dtype)
    H.diagonal().add_(damp).masked_fill_(dead, 1.0)
    return H if order is None else H[order][:, order]


def _diagonal_inverses(V: torch.Tensor, width: int) -> list[torch.Tensor]:
    columns = V.shape[0]
    blocks = [V[a : a + width, a : a + width].triu() for a in range(0, columns, width)]
    return run_single(lambda: [inverse_upper(block) for block in blocks])


def _slab_width(slab: int, group_size: int | None, act_order: bool) -> int:
    """`slab`, made to hold whole groups where their params are fitted on the way."""
    if act_order or group_size is None:
        return slab
    return max(group_size, slab // group_size * group_size)
