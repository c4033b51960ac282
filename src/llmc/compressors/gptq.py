"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round column by column, each error made good by the columns to come.

The algebra is in `feedback`; here are grids whose groups of columns share params.
Left out: groups that follow the order of work (they need an index per column in storage).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

from llmc.calibration.statistics import Hessian
from llmc.compressors.feedback import Problem, Slab, by_activity, by_groups, exact, prepare, relative_error
from llmc.compressors.method import Context, Outlook
from llmc.compressors.options import GridOptions, check_groups, option
from llmc.compressors.rtn import round_to_nearest
from llmc.encodings import int_kernel
from llmc.encodings.encoded import Encoded, Grid, Params, Plane
from llmc.encodings.int_grid import IntGrid
from llmc.late import torch
from llmc.threads import ordered_map, row_tiles

ROWS = 3072  # rows worked on at once: long columns make the Python between two products cheap ...
TILE = 1 << 23  # ... but no more weights than this
FIT = 1 << 17  # weights whose params are fitted at once
MICRO = 16  # columns rounded one by one before a product updates the rest of the slab
SEEN = ("quantized", "original")


@dataclass(frozen=True)
class Gptq(GridOptions):
    """Rounding that makes up for its own errors, by the second moments of the inputs."""

    damping: float = option(0.01, "fraction of mean(diag H) added to the diagonal", least=0.0, most=10.0)
    act_order: bool = option(False, "most active columns of all groups first, params fixed before; off: group by group")
    slab: int = option(128, "columns updated at once", least=16, most=4096)
    propagate: str = option("quantized", "outputs of earlier layers that later ones are calibrated on", choices=SEEN)

    needs: ClassVar[tuple[str, ...]] = ("hessian",)
    by_rows: ClassVar[bool] = True

    def outlook(self, scale_dtypes: tuple[str, ...]) -> Outlook:
        grid = self.make_grid(scale_dtypes)
        return Outlook(grid, keeps_zeros=True, sees_original=self.propagate == "original")

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
        size = weight.shape[1] if self.group_size is None else self.group_size
        fixed = self.act_order or self.group_size is None  # params, before the first column
        order = by_activity if fixed else partial(by_groups, size=size)
        width = self.slab if fixed else max(size, self.slab // size * size)
        problem = prepare(hessian, self.damping, order, width, context)
        if problem is None:
            context.note("fallback", "rtn: the Hessian has no Cholesky factor at any damping tried")
            return round_to_nearest(weight, grid, None, context)
        return _solve(weight, grid, problem, fixed, context)


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


def _solve(weight: torch.Tensor, grid: Grid, problem: Problem, fixed: bool, context: Context) -> Encoded:
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8)

    def work(bounds: tuple[int, int]) -> tuple[Params, torch.Tensor, torch.Tensor]:
        a, b = bounds
        W = weight[a:b].to(context.device, exact(context), copy=True)
        W[:, problem.dead] = 0
        keep = None if context.keep is None else context.keep[a:b].to(context.device)
        groups, error, energy = _quantize(W, grid, problem, fixed, weight.dtype, keep)
        params = {k: torch.cat([g.params[k] for g in groups], dim=1) for k in groups[0].params}
        levels = W.view(b - a, len(groups), -1)
        codes[a:b] = grid.round(levels, {k: v.unsqueeze(-1) for k, v in _unit(params).items()}).view(b - a, columns)
        return {k: v.cpu() for k, v in params.items()}, error.cpu(), energy.cpu()

    done = list(ordered_map(work, row_tiles(rows, min(ROWS, TILE // columns)), context.workers))
    stored = [part[0] for part in done]
    params = {k: torch.cat([part[k] for part in stored]) for k in stored[0]}
    relative_error(torch.cat([part[1] for part in done]), torch.cat([part[2] for part in done]), context)
    return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, (rows, columns), weight.dtype)


def _quantize(
    W: torch.Tensor, grid: Grid, problem: Problem, fixed: bool, dtype: torch.dtype, keep: torch.Tensor | None
) -> tuple[list[_Group], torch.Tensor, torch.Tensor]:
    """Replace `W: [rows, columns]` by levels: grid values in multiples of the scale, 0 where `keep` says so.

    Returns the groups, diag(E H E^T), E the error after rounding values to `dtype`, and diag(W H W^T).
    """
    columns, order = W.shape[1], problem.order
    size = grid.group_size or columns
    # Scales fitted to the cost alone suit the calibration text too well: sqrt(diag H) is the milder witness.
    importance = (problem.cost * problem.diagonal.clamp(min=0).sqrt()).sqrt()
    groups: dict[int, _Group] = {}
    if fixed:
        parts = zip(torch.split(W, size, 1), torch.split(importance, size), strict=True)
        groups = {g: _fit(grid, *part) for g, part in enumerate(parts)}
    work = problem.work(W)
    energy, levels = problem.energy(work), torch.empty_like(work)
    gone = None if keep is None else ~problem.work(keep)

    def round_slab(R: torch.Tensor, values: torch.Tensor, slab: Slab) -> None:
        a, b = slab.start, slab.stop
        members = [i // size for i in order[a:b].tolist()]
        zeros = None if gone is None else gone[a:b]
        _round_slab(R, (levels[a:b], values), grid, slab, groups, members, importance[order[a:b]], dtype, zeros)

    error = problem.carry(work, round_slab)
    W.copy_(problem.natural(levels).t())
    return [groups[g] for g in range(columns // size)], error, energy


def _round_slab(
    R: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor],
    grid: Grid,
    slab: Slab,
    groups: dict[int, _Group],
    members: list[int],
    importance: torch.Tensor,
    dtype: torch.dtype,
    zeros: torch.Tensor | None,
) -> None:
    """Put levels and values `[columns, rows]` of the running weights `R` of a slab in `out`; `R` becomes errors.

    `members[j]` is the group of column j; groups not there yet are fitted when their first column is reached, with
    the `importance: [columns]` of the slab.
    """
    width, size = R.shape[0], grid.group_size or R.shape[0]
    levels, values = out
    for m, n in pairwise(sorted({*range(0, width, MICRO), *range(0, width, size), width})):
        if members[m] not in groups:
            fitted = R[m : m + size] if zeros is None else R[m : m + size].masked_fill(zeros[m : m + size], 0)
            groups[members[m]] = _fit(grid, fitted.t(), importance[m : m + size])
        parts = levels[m:n], values[m:n], R[m:n]
        own = None if zeros is None else zeros[m:n]
        _round_columns(R[m:n], grid, slab.unit[m:n, m:n], [groups[g] for g in members[m:n]], parts, dtype, own)
        R[n:].addmm_(slab.unit[m:n, n:].t(), R[m:n], alpha=-1)


def _round_columns(
    R: torch.Tensor,
    grid: Grid,
    unit: torch.Tensor,
    groups: list[_Group],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    dtype: torch.dtype,
    zeros: torch.Tensor | None,
) -> None:
    """Levels, values and errors (where `R` was) of columns `R: [columns, rows]`, column j under `groups[j]`.

    Levels are 0 where `zeros: [columns, rows]` says so.
    """
    plain = zeros is None and R.dtype == torch.float32 and dtype in int_kernel.NUMBERS
    if plain and isinstance(grid, IntGrid) and int_kernel.applies(R):
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
        if zeros is not None:
            level.masked_fill_(zeros[j], 0)
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
