"""A job being carried out: calibrate, compress block by block, write, journal."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Artifact, Unit
from llmc.artifacts.coded_folder import folder_for
from llmc.artifacts.folder import Folder
from llmc.artifacts.store import Stored, store
from llmc.artifacts.workfolder import check_place
from llmc.calibration.activations import give_back_freed_memory
from llmc.calibration.data import CalibrationSet
from llmc.calibration.drift import aimed
from llmc.calibration.held_out import held_out
from llmc.calibration.inputs import model_inputs, noise_note
from llmc.calibration.mixture import load_mixture, names_of
from llmc.calibration.walk import Walk
from llmc.compressors.method import Context
from llmc.compressors.together import encode_together, notes_of
from llmc.embedded.names import weighted
from llmc.encodings.values import held
from llmc.errors import InputError, OutputError
from llmc.files.bytes import raw_bytes
from llmc.files.safetensors import load_rows
from llmc.formats.container import Container, Spec
from llmc.formats.dense import Dense, holder
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.models.finite import require_finite
from llmc.models.tokenizer import tokenizer_of, vocabulary
from llmc.pipeline.memory import activation_memory, batch_size
from llmc.pipeline.plan import Job, check_memory, fingerprint
from llmc.recipe.recipe import Recipe, resolve_text
from llmc.results import Progress, silent
from llmc.targets import InputPoint

RAW = "tensors kept as they are"
CHUNK = 1 << 24


@dataclass(frozen=True)
class Written:
    """The units of a finished run, in order, and what calibration had to say."""

    units: tuple[Unit, ...]
    notes: tuple[str, ...]
    calibration: CalibrationSet | None

    @property
    def report(self) -> list[dict[str, Any]]:
        return [row for unit in self.units for row in unit.report]


class Execution:
    """One job being carried out into an open artifact."""

    def __init__(self, job: Job, artifact: Artifact, calibration: CalibrationSet | None, progress: Progress) -> None:
        self.job, self.artifact, self.calibration = job, artifact, calibration
        self.progress = progress
        self.workers = torch.get_num_threads()
        self.dtype = getattr(torch, job.recipe.compute_dtype)
        self.notes: list[str] = list(job.notes)
        if calibration is not None and (note := noise_note(job.checkpoint.model)):
            self.notes.append(note)
        self.total = sum(job.checkpoint.entries[name].numel for name in job.checkpoint.stored)
        self.seen = 0
        self.places: list[tuple[str, Container, Folder]] = [
            (folder, c, artifact.folders[folder])
            for name, c in job.containers.items()
            for folder in [job.folder_of(name)]
        ]

    def run(self) -> Written:
        """Do all units that the journal does not hold yet."""
        self._unit(RAW, self._copy_raw)
        for spec in self._outside():
            if spec.target.point is None or not self.job.needs_statistics:
                self._unit(spec.target.name, partial(self._encode, [spec], None))
        blocks = self._by_block()
        if self.job.needs_statistics and not self._all_done(blocks):
            self._walk(blocks)
        else:
            for path, specs in blocks.items():
                self._unit(path, partial(self._encode, specs, None))
        done = self.artifact.done  # a unit that was redone stands last there
        order = [RAW, *(s.target.name for s in self._outside()), *blocks]
        return Written(tuple(done[n] for n in dict.fromkeys(order) if n in done), tuple(self.notes), self.calibration)

    def _outside(self) -> list[Spec]:
        return [s for s in self.job.specs.values() if s.target.block is None or s.target.kind == "embedding"]

    def _by_block(self) -> dict[str, list[Spec]]:
        """Block path, or path of a targeted head, -> its specs, in the order they run."""
        out: dict[str, list[Spec]] = {path: [] for path in self.job.checkpoint.skeleton.blocks}
        for spec in self.job.specs.values():
            target = spec.target
            if target.block is not None and target.kind != "embedding":
                out[target.block].append(spec)
            elif target.point is not None and self.job.needs_statistics:
                out.setdefault(target.point.module, []).append(spec)
        return {path: specs for path, specs in out.items() if specs}

    def _all_done(self, blocks: dict[str, list[Spec]]) -> bool:
        return all(path in self.artifact.done for path in blocks)

    def _unit(self, name: str, work: Callable[[], list[Stored]]) -> None:
        if name not in self.artifact.done:
            stored = work()
            tensors: dict[str, dict[str, str]] = defaultdict(dict)
            for item in stored:
                for folder, digests in item.tensors.items():
                    tensors[folder].update(digests)
            self.artifact.record(Unit(name, dict(tensors), [s.row for s in stored if s.row]))
            give_back_freed_memory()

    def _advance(self, weights: int) -> None:
        self.seen += weights
        self.progress("quantize", self.seen, self.total)

    def _copy_raw(self) -> list[Stored]:
        names = [] if self.job.partial else self.job.checkpoint.stored
        return [self._copy(name) for name in names if name not in self.job.specs]

    def _copy(self, name: str) -> Stored:
        digest = hashlib.sha256()
        for offset, part in _row_chunks(self.job.checkpoint, name):
            if not self.job.recipe.allow_nonfinite:
                require_finite(part, name)
            data = raw_bytes(part)
            digest.update(data)
            for _, _, folder in self.places:
                folder.write_part(name, offset, data)
        self._advance(self.job.checkpoint.entries[name].numel)
        plain = digest.hexdigest()
        return Stored({key: {name: folder.digest_of(name, plain)} for key, _, folder in self.places}, {})

    def _walk(self, blocks: dict[str, list[Spec]]) -> None:
        if self.calibration is None:
            raise InputError("a method needs calibration text and there is none", fix="add --calibration FILE")
        recipe, checkpoint = self.job.recipe, self.job.checkpoint
        options = recipe.calibration
        size = batch_size(options) if options is not None else 1
        batches = model_inputs(checkpoint.model, self.calibration.token_ids, size, recipe.seed)
        heads = [path for path in blocks if path not in checkpoint.skeleton.blocks]
        with Walk(
            checkpoint,
            batches,
            doors=heads,
            workers=self.workers,
            dtype=self.dtype,
            device=recipe.device,
            memory=activation_memory(recipe),
            folder=self.artifact.partial / "activations",
            aiming=any(self.job.aim_of(spec) for spec in self.job.specs.values()),
        ) as walk:
            for path in walk.blocks(self._replaced):
                specs = blocks.get(path, [])
                if specs:
                    self._unit(path, partial(self._calibrated, walk, path, specs))
        for path in blocks:
            if path not in walk.visited:  # never reached: rounded with an identity Hessian, and the report says so
                self._unit(path, partial(self._encode, blocks[path], {}))

    def _calibrated(self, walk: Walk, path: str, specs: Sequence[Spec]) -> list[Stored]:
        """Compress a loaded block: what needs no statistics, the rest as batches get to it, then what none got to."""
        left = [s for s in specs if self.job.needs_text(s)]
        out = self._encode([s for s in specs if not self.job.needs_text(s)], None)
        shown = [] if self._keeps_original(specs) else specs
        points = sorted({s.target.point for s in left if s.target.point is not None}, key=str)
        if out and points:
            walk.refill({path}, self._replaced_among(shown, out))
        for stats in walk.observe(path, points):
            out += self._encode([s for s in left if s.target.point in stats], stats)
            left = [s for s in left if s.target.point not in stats]
            if not walk.over:
                walk.refill({p.module for p in stats}, self._replaced_among(shown, out))
        return out + self._encode(left, {})

    def _encode(self, specs: Sequence[Spec], stats: dict[InputPoint, Any] | None) -> list[Stored]:
        """Compress and write Targets; those that share a Hessian, a stage and a grid in one call."""
        out: list[Stored] = []
        with ThreadPoolExecutor(1) as writer:
            pending = None
            for together in self._shared(specs, stats):
                encoded = self._compress(together, stats)
                if pending is not None:
                    out += pending.result()
                pending = writer.submit(self._write, together, encoded)
            if pending is not None:
                out += pending.result()
        return out

    def _shared(self, specs: Sequence[Spec], stats: dict[InputPoint, Any] | None) -> Iterator[list[Spec]]:
        groups: dict[Any, list[Spec]] = defaultdict(list)
        for spec in specs:
            seen = stats.get(spec.target.point) if stats and spec.target.point else None
            stage = self.job.chains.get(spec.target.tensor)
            groups[(stage, id(seen), spec.grid) if seen is not None else spec.target.tensor].append(spec)
        yield from groups.values()

    def _compress(self, specs: Sequence[Spec], stats: dict[InputPoint, Any] | None) -> list[tuple[Any, ...]]:
        method = self.job.method_of(specs[0].target.tensor)
        dtypes = getattr(specs[0].grid, "scale_dtypes", ("float32",))
        rates = tuple(self.job.rates[s.target.tensor] for s in specs if s.target.tensor in self.job.rates)
        context = Context(self.dtype, self.job.recipe.device, self.workers, scale_dtypes=dtypes, rates=rates)
        weights = [self.job.checkpoint.matrix(s.target) for s in specs]
        for spec, weight in zip(specs, weights, strict=True):
            require_finite(weight, spec.target.tensor)
        point = specs[0].target.point
        seen = stats.get(point, {}) if stats is not None and point is not None else {}
        goals = weights
        if "drift" in seen and (aim := self.job.aim_of(specs[0])):
            context.note("aim", "inputs and residual stream" if seen["drift"].residual else "inputs")
            whole = aimed(torch.cat(weights), seen["hessian"], seen["drift"], aim, context.device)
            goals = list(torch.split(whole.to(weights[0].dtype), [len(w) for w in weights]))
        if method is None:
            return [(held(weight), self.job.original(spec), {}) for spec, weight in zip(specs, weights, strict=True)]
        if self.job.goes_on(specs[0]):
            context = replace(context, keep=torch.cat(weights) != 0)
        encoded = encode_together(method, goals, {name: seen[name] for name in method.needs if name in seen}, context)
        count = len(weights)
        return [(encoded[i], self.job.original(specs[i]), notes_of(context, i, count)) for i in range(count)]

    def _write(self, specs: Sequence[Spec], encoded: list[tuple[Any, ...]]) -> list[Stored]:
        torch.set_num_threads(1)
        out = []
        for spec, (code, weight, notes) in zip(specs, encoded, strict=True):
            stored = store(spec, code, weight, self.places)
            row = {**stored.row, "method": self.job.made_by(spec), "notes": notes}
            out.append(replace(stored, row=row))
            self._advance(spec.target.numel)
        return out

    def _keeps_original(self, specs: Sequence[Spec]) -> bool:
        return any(self.job.stage(s).outlook.sees_original for s in specs)

    def _replaced(self, path: str) -> Callable[[str], torch.Tensor | None]:
        """Decoded values of a finished block, read back from where they were written."""
        specs = [] if self._keeps_original(self._by_block().get(path, [])) else self._by_block().get(path, [])
        return self.reader({s.target.tensor: s for s in specs})

    def _replaced_among(self, specs: Sequence[Spec], done: Sequence[Stored]) -> Callable[[str], torch.Tensor | None]:
        names = {s.row["tensor"] for s in done}
        return self.reader({s.target.tensor: s for s in specs if s.target.tensor in names})

    def reader(self, specs: dict[str, Spec]) -> Callable[[str], torch.Tensor | None]:
        """Decoded values of written Targets by their names on disk, None of others."""
        _, container, folder = self.places[0]

        def read(name: str) -> torch.Tensor | None:
            spec = specs.get(name)
            return None if spec is None else read_back(spec, container, folder)

        return read


def read_back(spec: Spec, container: Container, folder: Folder) -> torch.Tensor:
    """A written Target as its tensor on disk was: decoded, in the Target's dtype and orientation."""
    container = holder(container, spec)
    tensors = {name: folder.read(name) for name in container.layout(spec)}
    if container == Dense():
        return tensors[spec.target.tensor]
    values = container.unpack(spec, tensors).dequantize(spec.target.dtype)
    return values.t().contiguous() if spec.target.transposed else values


def _row_chunks(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, torch.Tensor]]:
    """A tensor in pieces of whole rows: (byte offset, piece)."""
    entry = checkpoint.entries[name]
    if len(entry.shape) == 0 or entry.numel == 0:
        yield 0, checkpoint.tensor(name)
        return
    row = entry.nbytes // entry.shape[0]
    step = max(1, CHUNK // max(row, 1))
    for start in range(0, entry.shape[0], step):
        yield start * row, load_rows(entry, start, min(start + step, entry.shape[0]))


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Torch on one thread, so that sums never depend on how many there are; llmc works in parallel by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def execute(
    job: Job,
    out: Path,
    *,
    fresh: bool,
    force: bool,
    progress: Progress | None,
    finish: Callable[[Artifact, Written], Any],
) -> Any:
    """Carry out a job into `out`. `finish` writes the other files and puts the artifact in place."""
    inputs = inputs_of(job)
    check_place(out, force, *inputs)
    check_memory(job)
    calibration = calibrate(job)
    if calibration is not None and job.recipe.max_kl is not None:
        calibration, _ = held_out(calibration)
    mark = fingerprint(job, job.document(), calibration.sha256 if calibration is not None else None)
    artifact = Artifact(out, job.files, mark, folder_for, inputs)
    artifact.open(fresh=fresh, force=force)
    try:
        with single_threaded_torch():
            written = Execution(job, artifact, calibration, progress or silent).run()
        give_back_freed_memory()  # what the walk held: whoever finishes may need as much
        return finish(artifact, written)
    except InputError as error:
        if not isinstance(error, OutputError):
            artifact.done.clear()  # the same input would fail again: nothing worth keeping
        raise
    finally:
        artifact.abandon()


def inputs_of(job: Job) -> tuple[Path, ...]:
    """The folders and files that a job reads."""
    return (job.checkpoint.folder, *texts_of(job.recipe))


def texts_of(recipe: Recipe) -> tuple[Path, ...]:
    """The texts and tasks of a recipe that are files here."""
    texts = () if recipe.calibration is None else names_of(recipe.calibration)
    named = [weighted(text)[0] for text in texts]
    named += [] if recipe.eval is None else [recipe.eval.text or "", *recipe.eval.tasks]
    return tuple(Path(name) for name in named if name and os.path.exists(name))


def calibrate(job: Job) -> CalibrationSet | None:
    """The calibration set of a job, None where no method needs one."""
    options = job.recipe.calibration
    if options is None or not job.needs_statistics:
        return None
    with tempfile.TemporaryDirectory() as texts:
        resolved = tuple(resolve_text(name, Path(texts)) for name in names_of(options))
        options = replace(options, source=resolved)
        return load_mixture(options, tokenizer_of(job.checkpoint.folder), vocabulary(job.checkpoint.model))
