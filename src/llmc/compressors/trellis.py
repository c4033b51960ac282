"""Entropy-coded trellis quantization with GPTQ's feedback: the most quality for a number of bytes.

The rows of a column go through the trellis together, the error goes to later columns (`feedback`). What a code costs is
read from the codes of the pass before; passes over a part of the rows settle rates, shifts and the step, then all rows
follow. A step is per column: where an error costs much it is smaller (2**(k/4) times the step of the matrix).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from llmc.calibration.statistics import Hessian
from llmc.compressors.feedback import Problem, Slab, by_activity, by_place, prepare, relative_error
from llmc.compressors.method import Context, Outlook
from llmc.compressors.options import check_options, option
from llmc.encodings import trellis_search
from llmc.encodings.coding import tensor_coder
from llmc.encodings.encoded import Encoded
from llmc.encodings.trellis import (
    MACHINES,
    OCTAVE,
    SHIFT_UNIT,
    SHIFTS,
    FittedTrellis,
    TrellisGrid,
    encoded,
    row_order,
)
from llmc.encodings.trellis_search import RATES
from llmc.errors import UsageError
from llmc.late import torch
from llmc.threads import ordered_map, run_single

SEGMENTS = 3  # of rows worked on at once; odd: columns a power of two apart share places in the cache
PART = 4  # passes that settle rates see one row in so many
LEAST_ROWS = 512  # but so many at least
ROUNDS = 4  # such passes
TRIES = 6  # passes over all rows
TOLERANCE = 0.004  # of the bytes asked for, that a matrix may have less
HALVES = 2.0  # classes of rows and columns are half octaves apart
REACH = 2  # classes on either side of the middle
MERGED = (tuple(range(2 * REACH + 1)), (0, 1, 1, 1, 2), (0,) * (2 * REACH + 1))  # ways to put classes together
LEVELS = 4096  # magnitudes counted one by one
MOST_STEPS = 15000.0  # of the largest weight, before errors are carried to it: the search cuts off at 16000


@dataclass(frozen=True)
class Trellis:
    """Levels of a trellis through an entropy coder, errors made up for by the second moments of the inputs."""

    bits_per_weight: float = option(3.0, "stored bits per weight, everything counted", least=0.25, most=7.5)
    states: int = option(8, "of the machine: 4, 8, 16, 32, 64; 1 is plain uniform quantization", least=1, most=64)
    damping: float = option(0.01, "fraction of mean(diag H) added to the diagonal", least=0.0, most=10.0)
    act_order: bool = option(True, "most active columns first")
    column_steps: float = option(0.75, "how far steps of columns follow what their errors cost", least=0.0, most=1.0)
    tradeoff: float = option(0.45, "price of a bit, in squares of half a step", least=0.0, most=4.0)
    classes: bool = option(True, "probability tables by class of row and column, where that pays")
    rates: str = option(
        "sensitivity", "bits by what errors cost the model (a second run), or equal", choices=("sensitivity", "equal")
    )
    slab: int = option(128, "columns updated at once", least=16, most=4096)
    propagate: str = option(
        "quantized", "outputs of earlier layers that later ones are calibrated on", choices=("quantized", "original")
    )

    needs: ClassVar[tuple[str, ...]] = ("hessian",)
    by_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.states not in MACHINES:
            raise UsageError(f"option states: no machine has {self.states}", fix=f"use {', '.join(map(str, MACHINES))}")

    def outlook(self, scale_dtypes: tuple[str, ...]) -> Outlook:
        return Outlook(
            TrellisGrid(self.states, bits_per_weight=self.bits_per_weight),
            formats=("llmc",),
            bits_per_weight=self.bits_per_weight,
            shares=self.rates == "sensitivity",
            sees_original=self.propagate == "original",
        )

    def __call__(self, weight: torch.Tensor, stats: dict[str, Any], context: Context) -> Encoded:
        """Compress `weight: [out_features, in_features]` under `stats["hessian"]`; without one all columns count alike.

        Notes `relative_error` = tr(E H E^T) / tr(W H W^T), E = W - dequantized, and what `feedback.prepare` notes.
        """
        context = replace(context, compute_dtype=torch.float32)  # that of the search
        hessian: Hessian | None = stats.get("hessian")
        if hessian is None or hessian.tokens == 0:
            context.note("uncalibrated", True)
            hessian = None
        problem = None
        if hessian is not None:
            order = by_activity if self.act_order else by_place
            problem = prepare(hessian, self.damping, order, self.slab, context)
        if problem is None:
            problem = independent(weight.shape[1], self.slab)
        return run_single(lambda: Search(self, weight, problem, context)).best()


def independent(columns: int, width: int) -> Problem:
    """The problem of an identity Hessian."""
    slabs = []
    for a in range(0, columns, width):
        b = min(a + width, columns)
        slabs.append(Slab(a, b, torch.zeros(b - a, a), torch.eye(b - a), torch.eye(b - a)))
    ones = torch.ones(columns)
    return Problem(slabs, ones, ones, torch.zeros(columns, dtype=torch.bool), 0.0, torch.arange(columns))


@dataclass(frozen=True)
class Pass:
    """What a pass over some rows found.

    Attributes:
        codes: int16 [columns, rows], columns in the order of work; the next pass writes over them.
        counts: [classes of rows, classes of columns, 2, 2 * LEVELS] of levels, level 0 in the middle.
        short: float64 [2, SHIFTS] by magnitude of codes: how many, and by how many steps the weights lay below n / 2.
        error: diag(E H E^T).
    """

    codes: torch.Tensor
    counts: torch.Tensor
    short: torch.Tensor
    error: torch.Tensor


class Search:
    """One matrix on its way to the bytes asked for. Rows are in the order of the trellis here.

    Attributes:
        work: [columns, rows], columns in the order of work.
        codes: int16, the same, of the last pass.
    """

    def __init__(self, method: Trellis, weight: torch.Tensor, problem: Problem, context: Context) -> None:
        self.method, self.problem, self.context, self.dtype = method, problem, context, weight.dtype
        W = weight.to(context.device, torch.float32, copy=True)
        W[:, problem.dead] = 0
        code = _step_codes(problem.cost, method.column_steps)
        grid = FittedTrellis(method.states, bits_per_weight=method.bits_per_weight, step=1.0, step_code=code)
        scaled = W.square() / grid.steps.square()
        row = _classes(scaled.mean(1)) if method.classes else torch.zeros(W.shape[0], dtype=torch.uint8)
        column = _classes(scaled.mean(0)) if method.classes else torch.zeros(W.shape[1], dtype=torch.uint8)
        self.order = row_order(row)
        self.work, self.row_class = problem.work(W[self.order]), row[self.order]
        self.codes = torch.empty(self.work.shape, dtype=torch.int16)
        self.first_scale = float(scaled.mean()) ** 0.5
        spread = 0.5 * torch.log2(scaled.mean(0).clamp(min=1e-30)).mean()
        self.wanted = context.rates[0] if context.rates else method.bits_per_weight
        step = 2.0 ** (float(spread) + 2.05 - self.wanted)
        least = float((W.abs().amax(0) / grid.steps).max()) / MOST_STEPS
        self.least = max(least, 1e-30)
        self.most = max(4 * step, self.least)  # of tiny matrices, what is stored besides codes may exceed every budget
        self.grid = replace(grid, step=_float32(max(step, self.least)), column_class=column)
        self.rate = self._first_rates()

    def best(self) -> Encoded:
        """The matrix in at most the bytes asked for, and at least `1 - TOLERANCE` of them."""
        every = max(1, min(PART, self.work.shape[1] // LEAST_ROWS))
        for turn in range(ROUNDS):
            run_single(partial(self._adapt, self.run(every, learn=True), merge=turn == 0))
        return self._exactly()

    def _adapt(self, found: Pass, *, merge: bool) -> None:
        """Take classes, rates and the step from a pass."""
        if merge:
            found = self._merge_classes(found)
        self._learn(found)
        self._change(self._bits(found) - self.wanted)

    def _exactly(self) -> Encoded:
        """Passes over all rows until the bytes are right."""
        last = self._attempt()
        best: tuple[float, Encoded, torch.Tensor] | None = None
        slope = 1.0  # bits that a step twice as large saves
        for left in reversed(range(TRIES)):
            bits = last[0]
            if bits <= self.wanted and (best is None or bits > best[0]):
                best = last
            if self.wanted * (1 - TOLERANCE) <= bits <= self.wanted or not left:
                break
            if self.grid.step <= self.least and bits < self.wanted:
                break
            before = math.log2(self.grid.step)
            self._change((bits - self.wanted * (1 - TOLERANCE / 2)) / slope)
            last = self._attempt()
            moved = math.log2(self.grid.step) - before
            slope = min(max((bits - last[0]) / moved, 0.5), 4.0) if moved else slope  # escapes make it steep
        if best is None:
            self.context.note("over_budget", round(last[0] - self.wanted, 4))
        _, matrix, error = best or last
        relative_error(error, run_single(lambda: self.problem.energy(self.work)), self.context)
        return matrix

    def _attempt(self) -> tuple[float, Encoded, torch.Tensor]:
        """A pass over all rows: stored bits per weight, the matrix, diag(E H E^T)."""
        found = self.run(1, learn=False)
        matrix = self._natural(found.codes)
        bits = 8 * tensor_coder.quantized(matrix, threads=self.context.workers).nbytes / self.work.numel()
        return bits, matrix, found.error

    def _merge_classes(self, found: Pass) -> Pass:
        """Keep the classes whose tables save more bytes than they take."""
        columns, rows = self.work.shape
        share = rows / found.codes.shape[1]
        tried = []
        for by_row in MERGED:
            for by_column in MERGED:
                counts = _merged(_merged(found.counts, by_row, 0), by_column, 1)
                tables, planes = _table_bits(_by_class(counts)), 3 * rows * (len(counts) > 1)
                planes += 3 * columns * (counts.shape[1] > 1)
                tried.append((_entropy_bits(_by_class(counts)) * share + tables + planes, by_row, by_column, counts))
        _, by_row, by_column, counts = min(tried, key=lambda entry: entry[0])
        place = self._places()
        row_class = torch.tensor(by_row, dtype=torch.uint8)[self.row_class.long()][place]
        order = row_order(row_class)
        self.work, self.row_class, self.order = self.work[:, place[order]], row_class[order], order
        column_class = torch.tensor(by_column, dtype=torch.uint8)[self.grid.column_class.long()]
        self.grid = replace(self.grid, column_class=column_class)
        return replace(found, counts=counts)

    def _change(self, excess: float) -> None:
        """Another step, for so many bits per weight less."""
        step = self.grid.step * 2.0 ** max(-4.0, min(4.0, excess))
        self.grid = replace(self.grid, step=_float32(min(max(step, self.least), self.most)))

    def _places(self) -> torch.Tensor:
        """Where each row of the matrix stands in the order of the trellis."""
        return torch.empty_like(self.order).index_copy_(0, self.order, torch.arange(len(self.order)))

    def _natural(self, codes: torch.Tensor) -> Encoded:
        """The matrix of codes [columns, rows] in the orders of work and of the trellis."""
        place = self._places()
        codes = self.problem.natural(codes).t().contiguous()[place]
        return encoded(self.grid, codes, self.row_class[place], self.dtype)

    def run(self, every: int, *, learn: bool) -> Pass:
        """Quantize one row in `every`; without `learn` nothing is counted."""
        rows = -(-self.work.shape[1] // every)
        size = SEGMENTS * self.grid.segment
        codes = self.codes[:, :rows]

        def run(first: int) -> Pass:
            last = min(first + size, rows)
            part = slice(first * every, last * every, every)
            return self._tile(self.work[:, part], self.row_class[part].contiguous(), codes[:, first:last], learn=learn)

        passes = list(ordered_map(run, range(0, rows, size), self.context.workers))
        return Pass(
            codes,
            sum((p.counts for p in passes[1:]), passes[0].counts),
            sum((p.short for p in passes[1:]), passes[0].short),
            torch.cat([p.error for p in passes]),
        )

    def _tile(self, work: torch.Tensor, row_class: torch.Tensor, codes: torch.Tensor, *, learn: bool) -> Pass:
        order = self.problem.order
        short = torch.zeros(2, SHIFTS, dtype=torch.float64)

        def round_slab(R: torch.Tensor, values: torch.Tensor, slab: Slab) -> None:
            columns = order[slab.start : slab.stop]
            out = codes[slab.start : slab.stop], values
            trellis_search.search(R, slab.unit, self.grid, columns, row_class, self.rate, out, dtype=self.dtype)
            if learn:
                trellis_search.tally(out[0], R, self.grid.steps[columns], *short)

        error = self.problem.carry(work, round_slab)
        counts = self._count(codes, row_class) if learn else torch.zeros(1)
        return Pass(codes, counts, short, error)

    def _count(self, codes: torch.Tensor, row_class: torch.Tensor) -> torch.Tensor:
        order, column_class = self.problem.order, self.grid.column_class
        kinds = int(self.row_class.max()) + 1, int(column_class.max()) + 1
        counts = torch.zeros(*kinds, 2, 2 * LEVELS, dtype=torch.int64)
        trellis_search.count(codes, row_class, column_class[order], counts)
        return counts

    def _bits(self, found: Pass) -> float:
        """Stored bits per weight of a pass, by the entropy of its tables and what else is stored."""
        counts = _by_class(found.counts)
        bits = _entropy_bits(counts) / found.codes.numel()
        return bits + (_table_bits(counts) + 3 * sum(self.work.shape) + 800) / self.work.numel() + 0.004

    def _learn(self, found: Pass) -> None:
        """Rates and shifts from the codes of a pass."""
        price = self.method.tradeoff / 4
        counts = _by_class(found.counts).double()
        total = counts.sum(-1, keepdim=True).clamp(min=1)
        magnitude = counts[..., LEVELS:].clone()  # level 0 and up ...
        below = counts[..., :LEVELS].flip(-1)  # -1, -2, ...
        magnitude[:, 0, 1:] = (magnitude[:, 0, 1:] + below[:, 0, :-1]) / 2
        magnitude[:, 1] = (magnitude[:, 1] + below[:, 1]) / 2
        bits = -torch.log2(magnitude[..., :RATES].clamp(min=0.25) / total)
        slope = (bits[..., -4:].mean(-1) - bits[..., -8:-4].mean(-1)).clamp(min=0.2) / 4
        self.rate = (price * torch.cat([bits, slope.unsqueeze(-1)], -1)).float().contiguous()
        seen, lack = found.short
        shift = self.grid.shift.double() * SHIFT_UNIT + torch.where(seen > 100, lack / seen.clamp(min=1), 0)
        shift = (shift / SHIFT_UNIT).round().clamp(-127, 127)
        shift[0] = 0
        self.grid = replace(self.grid, shift=shift.to(torch.int8))

    def _first_rates(self) -> torch.Tensor:
        """Those of normal weights, by class."""
        kinds = int(self.row_class.max()) + int(self.grid.column_class.max()) + 1
        middle = (REACH if self.row_class.any() else 0) + (REACH if self.grid.column_class.any() else 0)
        sigma = self.first_scale / self.grid.step * 2.0 ** ((torch.arange(kinds) - middle) / HALVES)
        at = torch.arange(RATES) + torch.tensor([0.0, 0.5]).unsqueeze(1)
        density = torch.exp(-0.5 * (at / sigma.view(-1, 1, 1).clamp(min=0.05)).square()) + 1e-9
        both = 2 * density.sum(-1, keepdim=True)
        both[:, 0] -= density[:, 0, :1]
        bits = -torch.log2(density / both)
        slope = (bits[..., -1:] - bits[..., -2:-1]).clamp(min=0.05)
        return (self.method.tradeoff / 4 * torch.cat([bits, slope], -1)).float().contiguous()


def _float32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _step_codes(cost: torch.Tensor, exponent: float) -> torch.Tensor:
    """Codes uint8 of steps that fall with what an error in the column costs (V_jj^2)."""
    wanted = (-0.5 * exponent * OCTAVE) * torch.log2(cost.clamp(min=1e-30))
    codes = (wanted - wanted.median()).round().clamp(-60, 60)
    return (codes - codes.min()).to(torch.uint8)


def _classes(square: torch.Tensor) -> torch.Tensor:
    """Classes uint8 of rows or columns by their mean square, half octaves around the typical one."""
    size = 0.5 * torch.log2(square.clamp(min=1e-30))
    return ((HALVES * (size - size.median())).round().clamp(-REACH, REACH) + REACH).to(torch.uint8)


def _by_class(counts: torch.Tensor) -> torch.Tensor:
    """Counts [classes, 2, levels] of tables, which the sum of the classes of row and column names."""
    rows, columns = counts.shape[:2]
    out = counts.new_zeros(rows + columns - 1, *counts.shape[2:])
    for r in range(rows):
        out[r : r + columns] += counts[r]
    return out


def _merged(counts: torch.Tensor, groups: tuple[int, ...], axis: int) -> torch.Tensor:
    """Counts with classes of one axis put together."""
    groups = groups[: counts.shape[axis]]
    out = counts.new_zeros([max(groups) + 1 if i == axis else size for i, size in enumerate(counts.shape)])
    return out.index_add_(axis, torch.tensor(groups), counts)


def _table_bits(counts: torch.Tensor) -> int:
    """About what the probability tables of counts [classes, 2, levels] take."""
    return 8 * int(((counts > 0).sum(-1) * 1.5 + 4).sum())


def _entropy_bits(counts: torch.Tensor) -> float:
    """Of all symbols under a table for each [..., levels]."""
    counts = counts.double()
    total = counts.sum(-1, keepdim=True)
    return float((counts * (torch.log2(total.clamp(min=1)) - torch.log2(counts.clamp(min=1)))).sum())
