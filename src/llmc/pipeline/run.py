"""The verbs that make artifacts: `plan`, `quantize`, `run`, `push`. The order of the stages; nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Artifact
from llmc.artifacts.push import PushResult
from llmc.artifacts.push import push as push_to_hub
from llmc.artifacts.verify import require_verified
from llmc.artifacts.workfolder import check_place
from llmc.calibration.held_out import held_out
from llmc.errors import GateError, UnsupportedError, UsageError
from llmc.eval.gates import GateResult, check_gates, gates_failure, gates_table
from llmc.eval.tasks.tasks import load_tasks
from llmc.models.checkpoint import Checkpoint
from llmc.models.devices import require_device
from llmc.models.hub import resolve_model as fetch_model
from llmc.models.tokenizer import tokenizer_of
from llmc.pipeline.budgets import forget_survey, with_rates, within_kl
from llmc.pipeline.check import Check, is_cheap
from llmc.pipeline.check import check as measure_loss
from llmc.pipeline.entropy import CODED, code_folders
from llmc.pipeline.execute import Written, calibrate, execute, inputs_of, texts_of
from llmc.pipeline.finish import complete_folder, folder_summary
from llmc.pipeline.plan import Job, PlanResult, describe, prepare
from llmc.pipeline.stages import after_earlier, forget_earlier
from llmc.public import public
from llmc.recipe.options import from_options
from llmc.recipe.recipe import Recipe, load_recipe, resolve_model, resolve_text, to_yaml
from llmc.results import Progress, Table, size


@dataclass(frozen=True)
class RunResult:
    """What a run wrote and what it measured.

    Attributes:
        out: the output folder.
        folders: container -> sizes and mean error of its folder.
        evaluation: container -> the eval report, when the recipe asks for one.
        gates: outcome of the recipe's gates.
        check: what the model lost on text beyond its calibration set, where that was asked for.
    """

    out: Path
    folders: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    evaluation: dict[str, Any] = field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    pushed: str | None = None
    check: Check | None = None

    @property
    def failure(self) -> GateError | None:
        """The error that failed gates amount to; the artifact is complete all the same."""
        return gates_failure(self.gates, self.out.name)

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"out": str(self.out), "folders": self.folders, "notes": list(self.notes)}
        if self.evaluation:
            document["evaluation"] = {name: report.to_json() for name, report in self.evaluation.items()}
        if self.gates:
            document["gates"] = [gate.to_json() for gate in self.gates]
        if self.pushed:
            document["pushed"] = self.pushed
        if self.check:
            document["check"] = self.check.to_json()
        return document

    def tables(self) -> list[Table]:
        columns = ("format", "weight files", "of original", "bits/weight", "bits/weight, model", "output error")
        rows = []
        for name, s in self.folders.items():
            share = s["weight_bytes"] / max(s["original_bytes"], 1)
            bits = (f"{s['bits_per_weight']:.3f}", f"{s['model_bits_per_weight']:.3f}")
            error = s.get("mean_output_error")
            shown = "not measured" if error is None else f"{error:.3%}"
            rows.append((name, size(s["weight_bytes"]), f"{share:.1%}", *bits, shown))
        out = [Table(f"Written to {self.out}", columns, tuple(rows))]
        if self.check is not None:
            out.append(self.check.table())
        out += [table for report in self.evaluation.values() for table in report.tables()]
        if self.gates:
            out.append(gates_table(self.gates))
        if self.notes:
            out.append(Table("Notes", ("note",), tuple((n,) for n in self.notes)))
        return out


@dataclass(frozen=True)
class DryRun:
    """A recipe as it would run, and its plan."""

    recipe: Recipe
    plan: PlanResult

    def to_json(self) -> dict[str, Any]:
        return {"recipe": to_yaml(self.recipe), "plan": self.plan.to_json()}

    def tables(self) -> list[Table]:
        lines = tuple((line,) for line in to_yaml(self.recipe).splitlines())
        return [Table("Recipe", ("resolved",), lines), *self.plan.tables()]


@public(from_options)
def plan(
    model: str | None = None,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    token: str | None = None,
    **options: Any,
) -> PlanResult:
    """What `quantize` with the same options, or `run` of a recipe, will cost. Writes nothing.

    Raises InputError for everything that the run itself would refuse before its work.
    """
    from llmc.pipeline.timing import seconds

    resolved = _recipe(model, recipe, overrides, options)
    job = prepare(resolved, _open(resolved, token))
    return replace(describe(job), seconds=seconds(job))


@public(from_options)
def quantize(
    model: str,
    out: str | Path,
    *,
    fresh: bool = False,
    force: bool = False,
    check: bool | None = False,
    token: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RunResult:
    """Quantize a model with one method.

    Args:
        model: a local Hugging Face folder or a Hub id.
        out: the folder to write; with several formats, one folder each inside it.
        fresh: discard an unfinished run instead of going on with it.
        force: replace an existing `out`.
        check: also measure the KL divergence on text beyond the calibration set; None: where that is cheap.
        options: as `llmc quantize` has them; see `llmc.recipe.options.from_options`.

    Raises:
        InputError, StorageError, MemoryLimitError: one line each.
    """
    recipe = from_options(model, **options)
    job = prepare(recipe, _open(recipe, token, Path(out), force=force))
    result = carry_out(job, Path(out), fresh=fresh, force=force, progress=progress, token=token)
    if not (is_cheap(job) if check is None else check):
        return result
    folder = result.out / job.folder_of(next(iter(job.containers)))
    return replace(result, check=measure_loss(job, folder, progress))


@public()
def run(
    recipe: str,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    push: str | None = None,
    dry_run: bool = False,
    allow_unresolved: bool = False,
    fresh: bool = False,
    force: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
) -> RunResult | DryRun:
    """Run a recipe: stages, containers, evaluation, gates, push.

    Args:
        recipe: path of a YAML file, or the name of a recipe that ships with llmc.
        overrides: `path=value`, as in `stages.0.bits=3`.
        push: the repository that the recipe may upload to: named here too, since a recipe may be anybody's.
        dry_run: check everything, return the plan, write nothing.
        allow_unresolved: let gates pass that the intervals of their figures do not decide.

    A failed gate does not raise: it is the result's `failure`. The artifact is complete then, and nothing is pushed.

    Raises:
        RecipeError: naming file, line and stage.
        UsageError: the recipe uploads, and `push` does not agree; `push`, and the recipe does not upload.
    """
    resolved = load_recipe(recipe, overrides)
    if not dry_run:
        require_consent(resolved, push)
    if resolved.eval is not None:
        load_tasks(resolved.eval.tasks)  # what is wrong with them shows before the work
    if dry_run:
        return DryRun(resolved, describe(prepare(resolved, _open(resolved, token))))
    place = out if out is not None else resolved.out
    if place is None:
        raise UsageError("nowhere to write to", fix="add -o OUT, or `out:` to the recipe")
    job = prepare(resolved, _open(resolved, token, Path(place), force=force))
    options: dict[str, Any] = {"fresh": fresh, "force": force, "progress": progress, "token": token}
    return carry_out(job, Path(place), allow_unresolved=allow_unresolved, **options)


def require_consent(recipe: Recipe, push: str | None) -> None:
    """Raise UsageError unless who runs a recipe has named the repository that it uploads to."""
    repo = None if recipe.push is None else recipe.push.repo
    if repo == push:
        return
    if repo is None:
        raise UsageError("the recipe uploads nothing", where=f"--push {push}", fix=f"add --set push.repo={push}")
    raise UsageError(
        f"the recipe uploads the model to {repo}{'' if push is None else f', not to {push}'}",
        where="push",
        fix=f"add --push {repo} if it shall, else --set push=null",
    )


def _recipe(model: str | None, recipe: str | None, overrides: Sequence[str], options: dict[str, Any]) -> Recipe:
    if recipe is not None and model is None:
        return load_recipe(recipe, overrides)
    if model is not None and recipe is None:
        return from_options(model, **options)
    raise UsageError("give either MODEL or --recipe", fix="llmc plan MODEL, or llmc plan --recipe R")


def _open(recipe: Recipe, token: str | None, out: Path | None = None, *, force: bool = False) -> Checkpoint:
    """The model of a recipe, after the checks that need none: of the device, and of the place to write to."""
    require_device(recipe.device)
    name, texts = resolve_model(recipe.model), texts_of(recipe)
    if out is not None and not os.path.exists(name):
        check_place(out, force, *texts)  # a place that will not do is said before anything is downloaded
    folder = fetch_model(name, revision=recipe.revision, token=token)
    if out is not None:
        check_place(out, force, folder, *texts)
    return Checkpoint(folder)


def carry_out(
    job: Job,
    out: Path,
    *,
    fresh: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    token: str | None = None,
    allow_unresolved: bool = False,
) -> RunResult:
    """Do a prepared job; see `quantize` and `run`."""
    options: dict[str, Any] = {"fresh": fresh, "force": force, "progress": progress}
    check_place(out, force, *inputs_of(job))
    job = after_earlier(job, out, fresh=fresh, progress=progress)
    if job.recipe.max_kl is None:
        job = with_rates(job, out, **options)
    else:
        job = within_kl(job, out, partial(_upper_kl, progress=progress), **options)
    result = _write(job, out, allow_unresolved=allow_unresolved, **options)
    forget_survey(out)
    forget_earlier(job, out)
    if result.failure is not None:
        return result
    return _push(job, result, token, progress)


def _write(
    job: Job, out: Path, *, fresh: bool, force: bool, progress: Progress | None, allow_unresolved: bool = False
) -> RunResult:
    results: list[RunResult] = []

    plain = replace(job, recipe=replace(job.recipe, entropy=False))  # what is coded is what a run without it writes

    def finish(artifact: Artifact, written: Written) -> None:
        result = _finish(plain, artifact, written, progress, allow_unresolved)
        coded = code_folders(artifact, result.folders, progress) if job.recipe.entropy else None
        artifact.finish("model" if coded is None else CODED)
        results.append(result if coded is None else replace(result, folders=coded))

    execute(plain, out, fresh=fresh, force=force, progress=progress, finish=finish)
    return results[0]


def _upper_kl(job: Job, folder: Path, progress: Progress | None) -> float:
    """Write a job's model into `folder` and measure it on the calibration text that was held out."""
    from llmc.eval.evaluation import evaluate

    _write(
        replace(job, recipe=replace(job.recipe, eval=None, gates=())), folder, fresh=True, force=True, progress=progress
    )
    calibration = calibrate(job)
    if calibration is None:
        raise UsageError("there is no calibration text to judge by", where="--max-kl", fix="add --calibration FILE")
    judged = held_out(calibration)[1]
    with tempfile.TemporaryDirectory() as texts:
        path = Path(texts) / "held-out.txt"
        tokenizer = tokenizer_of(job.checkpoint.folder)
        path.write_text("\n".join(tokenizer.batch_decode(judged.token_ids, skip_special_tokens=True)), encoding="utf-8")
        context = judged.token_ids.shape[1]
        report = evaluate(folder, text=path, against=job.checkpoint.folder, context=context, stride=context)
    return float(report.to_json()["intervals"]["kl"][1])


def _finish(
    job: Job, artifact: Artifact, written: Written, progress: Progress | None, allow_unresolved: bool
) -> RunResult:
    """Complete every folder, evaluate while the model is still in its work folder, seal."""
    reports: dict[str, Any] = {}
    folders = {}
    gates: tuple[GateResult, ...] = ()
    _check_size(job, artifact)
    for name, container in job.containers.items():
        place = artifact.folders[job.folder_of(name)]
        seal = complete_folder(job, container, place, written)
        if job.recipe.eval is not None:
            report = _evaluate(job, place.path, progress)
            reports[name] = replace(report, model=artifact.out.name)
            figures = reports[name].to_json()
            gates += tuple(check_gates(job.recipe.gates, figures, allow_unresolved=allow_unresolved))
        seal(reports.get(name))
        folders[name] = folder_summary(job, container, place, written)
    calibration = written.calibration
    notes = (*written.notes, *(calibration.notes if calibration is not None else ()))
    return RunResult(artifact.out, folders, notes, reports, gates)


def _check_size(job: Job, artifact: Artifact) -> None:
    """Refuse to finish what takes more bytes than its recipe allows."""
    if job.recipe.size is None:
        return
    for folder in artifact.folders.values():
        folder.close()
        if folder.files.total > job.recipe.size:
            raise UnsupportedError(
                f"its weight files have {folder.files.total:,} bytes, more than {job.recipe.size:,}",
                where=artifact.out.name,
                fix="allow more: some matrices cannot be made smaller",
            )


def _evaluate(job: Job, folder: Path, progress: Progress | None) -> Any:
    from llmc.eval.evaluation import evaluate

    options = job.recipe.eval
    if options is None:
        return None
    with tempfile.TemporaryDirectory() as texts:
        return evaluate(
            folder,
            text=None if options.text is None else resolve_text(options.text, Path(texts)),
            against=job.checkpoint.folder,
            tasks=options.tasks,
            limit=options.limit,
            context=options.context,
            stride=options.stride,
            max_tokens=options.max_tokens,
            prompt=options.prompt,
            raw_text=options.raw_text,
            device=job.recipe.device,
            progress=progress,
        )


def _push(job: Job, result: RunResult, token: str | None, progress: Progress | None) -> RunResult:
    options = job.recipe.push
    if options is None:
        return result
    if len(job.containers) > 1:
        raise UsageError("push takes one folder", where="push", fix="give one format, or push each folder by llmc push")
    push(result.out, options.repo, public=options.public, base_model=options.base_model, token=token, progress=progress)
    return replace(result, pushed=options.repo)


@public(push_to_hub, but=["verify"])
def push(folder: str | Path, repo: str, **options: Any) -> PushResult:
    """Verify an artifact, then upload it in one commit; see `llmc.artifacts.push.push` for the options."""
    return push_to_hub(folder, repo, verify=require_verified, **options)
