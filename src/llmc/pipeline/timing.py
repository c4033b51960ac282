"""About how long a job will take, from a short measurement of this machine: each kind of work is done once, small.

What is measured: matrix products, and the job's own method on a slab of rows of a random matrix. What is assumed: that
time grows with rows, columns and tokens as the arithmetic does. The range says how far that has been off.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from llmc.calibration.statistics import Hessian
from llmc.compressors.method import Context
from llmc.errors import LlmcError
from llmc.formats.container import Spec
from llmc.late import torch
from llmc.pipeline.memory import aims, shares
from llmc.pipeline.plan import Job
from llmc.pipeline.stages import earlier

SIDE, SLAB, MOST = 768, 64, 1024
"""Side of the matrices multiplied, rows of the slab compressed, and most columns of it."""
IMPORTS = 3.5
"""Seconds until torch and transformers are there."""
BYTES_PER_SECOND = 3e8
"""Reading, hashing and writing."""
RANGE = (0.6, 2.0)


def seconds(job: Job) -> tuple[float, float]:
    """Between how many seconds a job is likely to take here.

    Takes some tenths of a second itself, and writes nothing.
    """
    rate = _products_per_second()
    work = IMPORTS + sum(_work(each, rate) for each in (*earlier(job), job))
    return RANGE[0] * work, RANGE[1] * work


def _work(job: Job, rate: float) -> float:
    """Seconds that one walk takes, at so many multiply-adds a second."""
    targets = [spec.target for spec in job.specs.values()]
    work = job.checkpoint.file_bytes / BYTES_PER_SECOND
    options = job.recipe.calibration
    if options is not None and job.needs_statistics:
        tokens = options.num_samples * options.sequence_length
        weights = sum(t.numel for t in targets if t.kind != "embedding")
        points = {(t.block, t.fuse or t.name): t.shape[1] for t in targets}
        squares = sum(columns**2 for columns in points.values())
        work += tokens * (weights + squares / 2 + (weights + squares if aims(job.recipe) else 0)) / rate
        if shares(job.recipe):
            work += 4 * tokens * weights / rate  # a pass of the whole model, back and forth
    return work + sum(_of_method(job, list(group)) for group in _by_method(job).values())


def _by_method(job: Job) -> dict[int, list[Spec]]:
    groups: dict[int, list[Spec]] = {}
    for tensor, spec in job.specs.items():
        groups.setdefault(job.stage_of[tensor], []).append(spec)
    return groups


def _of_method(job: Job, specs: list[Spec]) -> float:
    """Seconds for one stage's matrices, from two slabs of the most usual width: what an input costs, and what a row."""
    columns = Counter(spec.target.shape[1] for spec in specs).most_common(1)[0][0]
    first = next(spec for spec in specs if spec.target.shape[1] == columns)
    width = min(columns, MOST)
    if first.grid.group_size and width % first.grid.group_size:
        width = columns
    method = job.method_of(first.target.tensor)
    if method is None:
        return 0.0
    rows = (SLAB, 4 * SLAB)
    few, many = (_timed(partial(_compress, method, *_sample(method, n, width), job)) for n in rows)
    each = max(0.0, many - few) / (rows[1] - rows[0])
    growth = 2 if method.needs else 1
    inputs = {spec.target.fuse or spec.target.name: spec.target.shape[1] for spec in specs}
    once = max(0.0, few - each * rows[0]) * sum((wide / width) ** growth for wide in inputs.values())
    return once + each * sum(s.target.shape[0] * (s.target.shape[1] / width) ** growth for s in specs)


def _sample(method: Any, rows: int, columns: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """A random matrix and its statistics."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    if not method.needs:
        return weight, {}
    hessian = Hessian(columns)
    hessian.update(torch.randn(2 * columns, columns, generator=generator))
    return weight, {"hessian": hessian}


def _compress(method: Any, weight: torch.Tensor, given: dict[str, Any], job: Job) -> None:
    rates = () if method.outlook(("float32",)).bits_per_weight is None else (4.0,)
    dtype = getattr(torch, job.recipe.compute_dtype)
    method(weight, given, Context(dtype, workers=torch.get_num_threads(), rates=rates))


def _products_per_second() -> float:
    """Multiply-adds per second of float32 matrix products, all cores."""
    a = torch.randn(SIDE, SIDE)
    return float(SIDE**3 / max(_timed(lambda: a @ a), 1e-9))


def _timed(run: Callable[[], Any]) -> float:
    """Seconds that `run` takes the second time; 0 for what cannot be run on random numbers."""
    try:
        run()
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    except LlmcError:
        return 0.0
