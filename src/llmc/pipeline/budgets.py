"""Bits where they matter: a survey at equal rates, what its errors cost, and the rates that a budget then allows.

The survey is an ordinary run beside OUT whose folder stays until the real one is complete, so that a run that was
killed goes on from it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Artifact
from llmc.artifacts.folder import Folder
from llmc.artifacts.layout import arrange
from llmc.artifacts.workfolder import check_place, discard
from llmc.calibration.data import CalibrationSet
from llmc.calibration.inputs import model_inputs
from llmc.calibration.sensitivity import kl_losses
from llmc.errors import UnsupportedError
from llmc.pipeline.execute import Execution, Written, execute, inputs_of
from llmc.pipeline.memory import GRADIENT_PASSES, gradient_batch, shares
from llmc.pipeline.plan import Job, kept_bytes
from llmc.pipeline.sharing import LEAST, MOST, shared_out
from llmc.results import Progress, silent

ROOM = 256
"""Bytes of a header that may not be known before."""
TRIES = 5
CLOSE = 0.9
"""Share of the most KL divergence that a try must reach to be taken at once."""


@dataclass(frozen=True)
class Survey:
    """What a run at equal rates found: by name on disk the losses, rates and weights of its Targets, and the bytes of
    the tensors that are kept."""

    losses: dict[str, float]
    rates: dict[str, float]
    weights: dict[str, int]
    kept: int

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


def with_rates(job: Job, out: Path, *, fresh: bool, force: bool, progress: Progress | None) -> Job:
    """The job with the rates that its budget allows; raises UnsupportedError when the budget cannot be met."""
    budget = job.recipe.size
    if not shares(job.recipe) and budget is None:
        return job
    mean = asked(job) if budget is None else _affordable(job, budget, kept_bytes(job))
    check_place(out, force, *inputs_of(job))
    survey = take_survey(_equal(job, mean), survey_of(out), fresh=fresh, progress=progress)
    if budget is not None:
        mean = _affordable(job, budget, survey.kept)
    rates = (
        shared_out(survey.losses, survey.rates, survey.weights, mean) if shares(job.recipe) else _equal(job, mean).rates
    )
    return replace(job, rates=rates)


def survey_of(out: Path) -> Path:
    """Where the survey of OUT works."""
    return out.with_name(out.name + ".llmc-survey")


def forget_survey(out: Path) -> None:
    """Remove what a survey left."""
    discard(survey_of(out))


def take_survey(job: Job, place: Path, *, fresh: bool, progress: Progress | None) -> Survey:
    """Run a job to measure what its errors cost; nothing of it stays but its work folder."""
    found: list[Survey] = []

    def measure(artifact: Artifact, written: Written) -> None:
        found.append(_measured(job, artifact, written, progress or silent))

    execute(job, place, fresh=fresh, force=True, progress=progress, finish=measure)
    return found[0]


def _measured(job: Job, artifact: Artifact, written: Written, progress: Progress) -> Survey:
    folder = next(iter(artifact.folders.values()))
    rows = {row["tensor"]: row for row in written.report if row["tensor"] in sharing(job)}
    targets = [job.specs[name].target for name in rows]
    losses = dict.fromkeys(rows, 1.0)
    if written.calibration is not None and shares(job.recipe):
        recipe = job.recipe
        run = Execution(job, artifact, written.calibration, progress)
        read = run.reader({name: job.specs[name] for name in rows})
        batches = _batches(job, written.calibration)
        options = {"dtype": run.dtype, "device": recipe.device, "seed": recipe.seed, "progress": progress}
        losses = kl_losses(job.checkpoint, targets, read, batches, **options)
    weights = {t.tensor: t.numel for t in targets}
    rates = {name: float(row["bits_per_weight"]) for name, row in rows.items()}
    return Survey(losses, rates, weights, _kept(job, folder))


def _batches(job: Job, calibration: CalibrationSet) -> list[dict[str, Any]]:
    options = job.recipe.calibration
    size = 1 if options is None else gradient_batch(options, calibration.token_ids.shape[0])
    ids = calibration.token_ids[-GRADIENT_PASSES * size :]
    return model_inputs(job.checkpoint.model, ids, size, job.recipe.seed)


def sharing(job: Job) -> dict[str, int]:
    """Name on disk -> weights of the Targets that take part in a budget."""
    follow = {i for i, stage in enumerate(job.recipe.stages) if stage.outlook.bits_per_weight is not None}
    return {name: spec.target.numel for name, spec in job.specs.items() if job.stage_of[name] in follow}


def asked(job: Job) -> float:
    """Mean bits per weight that the stages ask for."""
    asked_of, weights = [stage.outlook.bits_per_weight or 0.0 for stage in job.recipe.stages], sharing(job)
    total = sum(count * asked_of[job.stage_of[name]] for name, count in weights.items())
    return float(total) / max(sum(weights.values()), 1)


def _equal(job: Job, mean: float) -> Job:
    return replace(job, rates=dict.fromkeys(sharing(job), mean))


def _kept(job: Job, folder: Folder) -> int:
    """Bytes of a finished folder that no rate changes: kept tensors and headers."""
    sizes = {name: folder.size(name) for name in folder.files.slots}
    headers = arrange({n: (folder.files.slots[n].dtype, (size,)) for n, size in sizes.items()}).headers
    return sum(sizes[n] for n in sizes if n not in sharing(job)) + sum(map(len, headers.values())) + ROOM


def _affordable(job: Job, budget: int, kept: int) -> float:
    """Mean bits per weight that are left of a budget in bytes."""
    weights = sum(sharing(job).values())
    mean = 8 * (budget - kept) / max(weights, 1)
    if mean < LEAST:
        least = kept + int(LEAST * weights / 8)
        raise UnsupportedError(
            f"{budget:,} bytes cannot be reached: what is kept takes {kept:,}, and the rest at least {least - kept:,}",
            where="--size",
            fix=f"use at least {least:,}, or target more matrices",
        )
    return min(mean, MOST)


def within_kl(
    job: Job, out: Path, judge: Callable[[Job, Path], float], *, fresh: bool, force: bool, progress: Progress | None
) -> Job:
    """The job at the fewest bits found whose KL divergence, at the upper end of its interval, is within the recipe's.

    Args:
        judge: carries out a job into a folder and says that upper end.

    Raises:
        UnsupportedError: not even the most bits reach it.
    """
    most = job.recipe.max_kl
    if most is None:
        return job
    check_place(out, force, *inputs_of(job))
    survey = take_survey(_equal(job, asked(job)), survey_of(out), fresh=fresh, progress=progress)
    fails, holds = LEAST, MOST
    found: dict[str, float] | None = None
    reached = math.inf
    mean = asked(job) + _octaves(survey.loss, most * CLOSE)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as scratch:
        for attempt in range(TRIES):
            mean = min(max(mean, LEAST), MOST)
            rates = shared_out(survey.losses, survey.rates, survey.weights, mean)
            reached = judge(replace(job, rates=rates), Path(scratch) / f"try-{attempt}")
            if reached <= most:
                holds, found = min(holds, mean), rates
            else:
                fails = max(fails, mean)
            if (reached <= most and reached >= CLOSE * most) or holds - fails < 0.02 or mean in (LEAST, MOST):
                break
            mean += _octaves(reached, most * (1 + CLOSE) / 2)
            if not fails < mean < holds and fails < holds:
                mean = (fails + holds) / 2
    if found is None:
        raise UnsupportedError(
            f"a KL divergence of {most} was not reached: {reached:.4g} at {mean:.2f} bits per weight",
            where="--max-kl",
            fix="allow more, or --ignore the matrices that llmc inspect shows to be worst",
        )
    return replace(job, rates=found)


def _octaves(loss: float, wanted: float) -> float:
    """Bits per weight by which errors have to shrink."""
    return 0.5 * math.log2(max(loss, 1e-12) / wanted)
