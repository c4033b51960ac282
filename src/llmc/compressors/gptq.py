"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round column by column, each error made good by the columns to come.

With H = V V^T, V upper triangular, the error e = w - q of a row costs |e V|^2. Once the columns before a are rounded,
those of a *slab* [a, b) do best at w + e V[:a, a:b] U, U the inverse of V[a:b, a:b]; rounding column j then costs
((w_j - q_j) V_jj)^2. This is the paper's update (V^-1 is its Cholesky factor of H^-1) without the inverse of H, and it
reads the errors instead of rewriting the weights: one matrix product per slab.
Left out: act_order whose groups follow the permuted order (it needs an index per column in storage).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch

from llmc.calibration.statistics import Hessian
from llmc.compressors.cholesky import factor_upper, inverse_upper
from llmc.compressors.options import GridOptions, check_groups, option
from llmc.compressors.parallel import ordered_map, row_tiles, run_single
from llmc.compressors.rtn import round_to_nearest
from llmc.formats import int_kernel
from llmc.formats.encoded import Encoded, Grid, Params, Plane
from llmc.formats.int_grid import IntGrid
from llmc.structure import Context

ROWS = 3072  # rows worked on at once: long columns make the Python between two products cheap ...
TILE = 1 << 23  # ... but no more weights than this
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

        Notes `relative_error` = tr(E H E^T) / tr(W H W^T), E = W - dequantized (a list when `context.parts` is set),
        and where it happened: `dead_columns`, `damping_steps` with `damping`, `uncalibrated`, `fallback`.

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
        diagonal = hessian.diagonal().to(context.device, _exact(context))
        dead = diagonal <= 0
        count = int(dead.sum())
        if count:
            context.note("dead_columns", count)
        order = torch.argsort(diagonal, descending=True, stable=True) if self.act_order else None
        mean = float(diagonal.double().sum()) / max(1, diagonal.numel() - count)
        for step in range(RAISES + 1):
            damping = self.damping if step == 0 else max(self.damping, 1e-3) * 10.0**step
            V = _damped(hessian, dead, damping * mean, order, context)
            if not run_single(partial(factor_upper, V)):
                continue
            if step:
                context.note("damping_steps", step)
                context.note("damping", damping)
            width = _slab_width(self.slab, self.group_size, self.act_order)
            cost = V.diagonal().square()  # of an error that the columns to come make good
            if order is not None:
                cost = torch.empty_like(cost).index_copy_(0, order, cost)
            # Scales fitted to the cost alone suit the calibration text too well: sqrt(diag H) is the milder witness.
            importance = (cost * diagonal.clamp(min=0).sqrt()).sqrt()
            return _Problem(_slabs(V, width), importance, dead, damping * mean, order)
        return None


@dataclass(frozen=True)
class _Slab:
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


@dataclass(frozen=True)
class _Problem:
    """What all rows share: V V^T = H + damp, cut into slabs; `importance` and `dead` columns in natural order.

    `order[i]` is the column worked on at step i; None: i.
    """

    slabs: list[_Slab]
    importance: torch.Tensor
    dead: torch.Tensor
    damp: float
    order: torch.Tensor | None


@dataclass(frozen=True)
class _Group:
    """Params of one group of columns, and how to round under them: see `IntGrid.nearest`.

    `least` is the least level of each row, where a zero point shifts it.
    """

    params: Params
    scale: torch.Tensor
    divisor: torch.Tensor
    least: torch.Tensor | None
    nearest: Callable[[torch.Tensor, torch.Tensor], object]


def _solve(weight: torch.Tensor, grid: Grid, problem: _Problem, context: Context) -> Encoded:
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8)

    def work(bounds: tuple[int, int]) -> tuple[Params, torch.Tensor, torch.Tensor]:
        a, b = bounds
        W = weight[a:b].to(context.device, _exact(context), copy=True)
        W[:, problem.dead] = 0
        energy = _energy(W, problem)
        groups, error = _quantize(W, grid, problem, weight.dtype)
        params = {k: torch.cat([g.params[k] for g in groups], dim=1) for k in groups[0].params}
        levels = W.view(b - a, len(groups), -1)
        codes[a:b] = grid.round(levels, {k: v.unsqueeze(-1) for k, v in _unit(params).items()}).view(b - a, columns)
        return {k: v.cpu() for k, v in params.items()}, error.cpu(), energy.cpu()

    done = list(ordered_map(work, row_tiles(rows, min(ROWS, TILE // columns)), context.workers))
    stored = [part[0] for part in done]
    params = {k: torch.cat([part[k] for part in stored]) for k in stored[0]}
    sizes = list(context.parts) or [rows]
    error = torch.split(torch.cat([part[1] for part in done]).double(), sizes)
    energy = torch.split(torch.cat([part[2] for part in done]).double(), sizes)
    ratios = [float(e.sum() / w.sum().clamp(min=1e-300)) for e, w in zip(error, energy, strict=True)]
    context.note("relative_error", ratios if context.parts else ratios[0])
    return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, (rows, columns), weight.dtype)


def _energy(W: torch.Tensor, problem: _Problem) -> torch.Tensor:
    """diag(W H W^T) of `W: [rows, columns]`, natural order."""
    energy = -problem.damp * W.square().sum(1)
    W = W if problem.order is None else W[:, problem.order]
    for slab in problem.slabs:
        energy += (W[:, : slab.stop] @ slab.V).square_().sum(1)
    return energy


def _quantize(W: torch.Tensor, grid: Grid, problem: _Problem, dtype: torch.dtype) -> tuple[list[_Group], torch.Tensor]:
    """Replace `W: [rows, columns]` by levels: grid values in multiples of the scale.

    Returns the groups and diag(E H E^T), E the error after rounding values to `dtype`.
    """
    columns, order = W.shape[1], problem.order
    size = grid.group_size or columns
    groups: list[_Group] = []
    if order is not None or size == columns:
        parts = zip(torch.split(W, size, 1), torch.split(problem.importance, size), strict=True)
        groups = [_fit(grid, values, importance) for values, importance in parts]
    work = W if order is None else W[:, order]
    E = torch.empty_like(work)
    error = W.new_zeros(W.shape[0])
    for slab in problem.slabs:
        a, b = slab.start, slab.stop
        carried = E[:, :a] @ slab.V[:a]
        R = (work[:, a:b] + carried @ slab.U).t().contiguous()
        members = [i // size for i in (range(a, b) if order is None else order[a:b].tolist())]
        levels, values = _round_slab(R, grid, slab, groups, members, problem.importance, dtype)
        torch.sub(work[:, a:b], values.t(), out=E[:, a:b])
        work[:, a:b] = levels.t()
        error += carried.addmm_(E[:, a:b], slab.V[a:]).square_().sum(1)
    error -= problem.damp * E.square().sum(1)
    if order is not None:
        W[:, order] = work
    return groups, error


def _round_slab(
    R: torch.Tensor,
    grid: Grid,
    slab: _Slab,
    groups: list[_Group],
    members: list[int],
    importance: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and values `[columns, rows]` for the running weights `R` of a slab (transposed: a column is contiguous).

    `members[j]` is the group of column j; groups not there yet are fitted when their first column is reached.
    """
    width, size = R.shape[0], grid.group_size or R.shape[0]
    levels, values, D = torch.empty_like(R), torch.empty_like(R), torch.empty_like(R)
    for m, n in pairwise(sorted({*range(0, width, MICRO), *range(0, width, size), width})):
        if members[m] == len(groups):
            at = slab.start + m
            groups.append(_fit(grid, R[m : m + size].t(), importance[at : at + size]))
        out = levels[m:n], values[m:n], D[m:n]
        _round_columns(R[m:n], grid, slab.unit[m:n, m:n], [groups[g] for g in members[m:n]], out, dtype)
        R[n:].addmm_(slab.unit[m:n, n:].t(), D[m:n], alpha=-1)
    return levels, values


def _round_columns(
    R: torch.Tensor,
    grid: Grid,
    unit: torch.Tensor,
    groups: list[_Group],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Levels, values and errors of columns `R: [columns, rows]`, column j under `groups[j]`, errors carried on."""
    if isinstance(grid, IntGrid) and int_kernel.applies(R) and R.dtype == torch.float32 and dtype in int_kernel.NUMBERS:
        used = list({id(g): g for g in groups}.values())
        place = {id(g): i for i, g in enumerate(used)}
        least = [g.least for g in used if g.least is not None]
        scale = torch.stack([g.scale for g in used])
        which = [place[id(g)] for g in groups]
        bounds = torch.stack(least) if least else None
        int_kernel.round_columns(R, unit, scale, bounds, which, out, bits=grid.bits, dtype=dtype)
        return
    units, stored = torch.empty_like(R[0]), torch.empty_like(R[0], dtype=dtype)
    for j, (running, level, value, error) in enumerate(zip(R, *out, strict=True)):
        torch.div(running, groups[j].divisor, out=units)
        groups[j].nearest(units, level)
        torch.mul(level, groups[j].scale, out=units)
        stored.copy_(units)
        value.copy_(stored)
        torch.sub(running, value, out=error)
        R[j + 1 :].sub_(unit[j, j + 1 :].unsqueeze(1) * error)  # not a fused operation: the same on every machine


def _fit(grid: Grid, values: torch.Tensor, importance: torch.Tensor) -> _Group:
    """Params of one group, `values: [rows, n]`, `importance: [n]`."""
    rows, columns = values.shape
    tiles = row_tiles(rows, FIT // columns)
    parts = [grid.fit(values[a:b].contiguous().float(), importance.float()) for a, b in tiles]
    params = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
    scale = params["scale"].squeeze(-1).to(values.dtype)
    least = -params["zero_point"].squeeze(-1).to(values.dtype) if "zero_point" in params else None
    return _Group(params, scale, torch.where(scale == 0, 1.0, scale), least, _nearest(grid, params))


def _nearest(grid: Grid, params: Params) -> Callable[[torch.Tensor, torch.Tensor], object]:
    if isinstance(grid, IntGrid):
        return grid.nearest(params)
    unit = _unit(params)
    return lambda units, out: out.copy_(grid.value(grid.round(units.unsqueeze(-1), unit), unit).squeeze(-1))


def _unit(params: Params) -> Params:
    return {**params, "scale": torch.ones_like(params["scale"])}


def _exact(context: Context) -> torch.dtype:
    """float32 unless float64 was asked for: less does not factor."""
    return torch.float64 if context.compute_dtype == torch.float64 else torch.float32


def _damped(
    hessian: Hessian, dead: torch.Tensor, damp: float, order: torch.Tensor | None, context: Context
) -> torch.Tensor:
    H = hessian.mean().to(context.device, _exact(context))
    H.diagonal().add_(damp).masked_fill_(dead, 1.0)
    return H if order is None else H[order][:, order]


def _slabs(V: torch.Tensor, width: int) -> list[_Slab]:
    return run_single(lambda: [_slab(V, a, min(a + width, V.shape[0])) for a in range(0, V.shape[0], width)])


def _slab(V: torch.Tensor, a: int, b: int) -> _Slab:
    panel = V[:b, a:b].clone()
    panel[a:].triu_()
    U = inverse_upper(panel[a:])
    return _Slab(a, b, panel, U, U / U.diagonal().unsqueeze(1))


def _slab_width(slab: int, group_size: int | None, act_order: bool) -> int:
    """`slab`, made to hold whole groups where their params are fitted on the way."""
    if act_order or group_size is None:
        return slab
    return max(group_size, slab // group_size * group_size)
