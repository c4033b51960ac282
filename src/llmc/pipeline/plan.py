"""What a recipe will do to a model, decided and checked before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from llmc.artifacts.card import method_line
from llmc.artifacts.layout import WeightFiles, at_most
from llmc.artifacts.shapes import model_facts, target_bits, weight_files
from llmc.artifacts.sidecar import side_notes, sidecar_bytes
from llmc.calibration.mixture import names_of
from llmc.compressors.method import Compressor
from llmc.embedded.names import CARRIED_TEXT, EMBEDDED_MODEL
from llmc.errors import MemoryLimitError, UsageError
from llmc.formats import CONTAINERS
from llmc.formats.container import Container, Facts, Spec, encoded
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.models.devices import require_device
from llmc.models.finite import nonfinite
from llmc.pipeline.memory import needs_statistics, peak_ram
from llmc.pipeline.selection import check_formats, choose, fitting, is_named, left_alone
from llmc.recipe.paths import public
from llmc.recipe.recipe import Recipe, Stage, to_dict
from llmc.results import Table, in_words, size
from llmc.targets import Target

Chosen: TypeAlias = dict[str, tuple[tuple[int, ...], Target]]
CONTAINERS_OF_VALUES = "dense"
CODED_SHARE = 0.67  # of bfloat16 weights, coded without loss
CARRIED_NOTE = (
    f"calibrated on {CARRIED_TEXT}, 300 kB about a small made-up world that llmc carries: "
    "text like what the model will read loses less (--calibration FILE)"
)


@dataclass(frozen=True)
class Job:
    """A recipe bound to a model: which stage makes what of which Target, and where every byte goes.

    Attributes:
        stage_of: name on disk -> index of its last stage.
        chains: name on disk -> indices of all its stages.
        specs: name on disk -> the Target and what it is stored on; on `Values` where nothing encodes it.
        files: folder name -> weight files; "" for a single container.
        notes: what the user should know about it.
        rates: name on disk -> bits per weight, where a budget was shared out.
        segments: index of a stage -> that of the walk through the model that it belongs to.
        segment: which of them this is; `partial`: one whose Targets alone are written, for a later one to go on from.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    containers: dict[str, Container]
    facts: Facts
    stage_of: dict[str, int]
    specs: dict[str, Spec]
    files: dict[str, WeightFiles]
    notes: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    chains: dict[str, tuple[int, ...]] = field(default_factory=dict)
    segments: tuple[int, ...] = (0,)
    partial: bool = False

    segment: int = 0

    def document(self) -> dict[str, Any]:
        """All that the result depends on as plain data: the recipe, or the stages up to this segment's."""
        if not self.partial:
            return to_dict(self.recipe)
        known = [stage for stage, own in zip(self.recipe.stages, self.segments, strict=True) if own <= self.segment]
        plain: dict[str, Any] = {
            "formats": ("dense",),
            "size": None,
            "max_kl": None,
            "entropy": False,
            "eval": None,
            "gates": (),
        }
        return to_dict(replace(self.recipe, stages=tuple(known), push=None, **plain))

    def stage(self, spec: Spec) -> Stage:
        """The last stage of a Target in this segment or before it."""
        return self.recipe.stages[self.stage_of[spec.target.tensor]]

    def aim_of(self, spec: Spec) -> float:
        """How far a Target aims at the original: what an earlier stage removed is not made up for by a later one."""
        return 0.0 if self.goes_on(spec) or self.is_done(spec) else self.stage(spec).aims

    def goes_on(self, spec: Spec) -> bool:
        """Whether an earlier segment has worked on the Target, and this one does too."""
        return self.first_segment(spec) < self.segment and not self.is_done(spec)

    def is_done(self, spec: Spec) -> bool:
        """Whether only earlier segments have work to do on the Target."""
        return self.segments[self.stage_of[spec.target.tensor]] < self.segment

    def first_segment(self, spec: Spec) -> int:
        return self.segments[self.chains[spec.target.tensor][0]]

    def needs_text(self, spec: Spec) -> bool:
        return not self.is_done(spec) and (bool(self.stage(spec).method.needs) or self.aim_of(spec) > 0)

    def made_by(self, spec: Spec) -> str:
        """Names of a Target's stages: `wanda, gptq`."""
        return ", ".join(self.recipe.stages[i].name for i in self.chains[spec.target.tensor])

    def original(self, spec: Spec) -> torch.Tensor:
        """The Target's weight `[out, in]` in the original model."""
        return (self.checkpoint.original or self.checkpoint).matrix(spec.target)

    @property
    def encoded(self) -> list[Spec]:
        """What containers are asked about."""
        return encoded(self.specs.values())

    @property
    def needs_statistics(self) -> bool:
        return any(map(self.needs_text, self.specs.values()))

    def method_of(self, tensor: str) -> Compressor | None:
        """What compresses this name on disk; None where earlier segments have done all."""
        spec = self.specs[tensor]
        return None if self.is_done(spec) else self.stage(spec).method

    def folder_of(self, container: str) -> str:
        """Name of the folder a container writes to."""
        return "" if len(self.containers) == 1 else container


@dataclass(frozen=True)
class PlanResult:
    """What a run will cost and who can load the result.

    Attributes:
        files: weight file -> bytes, exact; with `at_most` what they will not exceed.
        other_bytes: config, tokenizer, kernel, manifest and card, about.
        peak_ram_bytes: upper estimate of the resident size.
        runtimes: container -> runtime -> `yes ...` or `no: why`.
        notes: what the user should know about it.
        method: what will be done to the matrices, in words.
        seconds: between how many the run is likely to take on this machine; None where it was not asked for.
    """

    files: dict[str, int]
    weight_bytes: int
    other_bytes: int
    peak_ram_bytes: int
    bits_per_weight: float
    runtimes: dict[str, dict[str, str]]
    targets: int
    original_bytes: int
    at_most: bool = False
    notes: tuple[str, ...] = ()
    method: str = ""
    seconds: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "at_most": self.at_most,
            "files": self.files,
            "weight_bytes": self.weight_bytes,
            "other_bytes": self.other_bytes,
            "peak_ram_bytes": self.peak_ram_bytes,
            "bits_per_weight": self.bits_per_weight,
            "runtimes": self.runtimes,
            "targets": self.targets,
            "original_bytes": self.original_bytes,
            "notes": list(self.notes),
            "method": self.method,
            "seconds": self.seconds and list(self.seconds),
        }

    def tables(self) -> list[Table]:
        most = ", at most" if self.at_most else ""
        rows = [("method", self.method), *((name, size(count)) for name, count in self.files.items())]
        rows += [
            (f"all weight files{most}", size(self.weight_bytes)),
            ("of the original files", f"{self.weight_bytes / max(self.original_bytes, 1):.1%}"),
            ("other files, about", size(self.other_bytes)),
            ("peak RAM, at most about", size(self.peak_ram_bytes)),
            ("bits/weight", f"{self.bits_per_weight:.3f}"),
        ]
        if self.seconds is not None:
            rows.append(("time on this machine, about", in_words(self.seconds)))
        loads = [(c, r, says) for c, table in self.runtimes.items() for r, says in table.items()]
        notes = [Table("Notes", ("note",), tuple((note,) for note in self.notes))] if self.notes else []
        return [
            Table("Plan", ("what", ""), tuple(rows)),
            Table("Who can load it", ("format", "runtime", "loads"), tuple(loads)),
            *notes,
        ]


def prepare(recipe: Recipe, checkpoint: Checkpoint) -> Job:
    """Bind a recipe to a model. Raises InputError for everything that can be known to fail."""
    require_device(recipe.device)
    chosen = choose(recipe.stages, checkpoint.targets, checkpoint.folder.name, recipe.size is not None)
    containers: dict[str, Container] = {name: CONTAINERS.get(name)() for name in recipe.formats}
    specs: dict[str, Spec] = {}
    notes = (*checkpoint.notes, *side_notes(checkpoint.folder), *_text_note(recipe))
    chains = {tensor: stages for tensor, (stages, _) in chosen.items()}
    gates = left_alone(chosen.keys(), checkpoint.targets)
    if recipe.allow_nonfinite:
        chosen, skipped = _finite(chosen, checkpoint)
        notes += skipped
    for tensor, (stages, target) in chosen.items():
        dtypes = _scale_dtypes(target, containers.values())
        _check_divides(recipe, stages, target)
        specs[tensor] = Spec(target, recipe.stages[stages[-1]].method.outlook(dtypes).grid)
    named = {t for t, (stages, target) in chosen.items() if any(is_named(recipe.stages[i], target) for i in stages)}
    _check_something(specs, recipe)
    facts = model_facts(checkpoint, specs)
    specs, odd = fitting(specs, containers.values(), facts, named=named, strict=recipe.strict)
    if odd:
        facts = model_facts(checkpoint, specs)
    check_formats(specs, containers.values(), facts)
    notes += _own_format_note(recipe)
    notes += (*gates, *odd)
    files = {
        name if len(containers) > 1 else "": weight_files(checkpoint, container, specs)
        for name, container in containers.items()
    }
    stage_of = {tensor: chains[tensor][-1] for tensor in specs}
    chains = {tensor: chains[tensor] for tensor in specs}
    cut = segments(recipe, chains.values())
    options: dict[str, Any] = {"chains": chains, "segments": cut, "segment": max(cut)}
    return Job(recipe, checkpoint, containers, facts, stage_of, specs, files, notes, **options)


def segments(recipe: Recipe, chains: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Index of a stage -> its segment: a walk whose stages work on different Targets. The last one encodes."""
    out = [0] * len(recipe.stages)
    for index in range(len(out)):
        before = [chain[chain.index(index) - 1] for chain in chains if index in chain[1:]]
        out[index] = max((out[i] + 1 for i in before), default=0)
    last = max(out)
    return tuple(last if stage.outlook.encodes else own for stage, own in zip(recipe.stages, out, strict=True))


def _check_divides(recipe: Recipe, stages: Sequence[int], target: Target) -> None:
    """Refuse a pattern of columns that does not fill them."""
    for index in stages:
        stage = recipe.stages[index]
        size = stage.outlook.divides
        if target.shape[1] % size:
            raise UsageError(
                f"the pattern of stage {index} ({stage.name}) does not divide {target.shape[1]} columns by {size}",
                where=target.name,
                fix=f"add --ignore {target.name}, or use a sparsity",
            )


def _check_something(specs: dict[str, Spec], recipe: Recipe) -> None:
    """Refuse a container of codes where nothing is encoded."""
    strange = [name for name in recipe.formats if name != CONTAINERS_OF_VALUES]
    if strange and not encoded(specs.values()):
        raise UsageError("no stage encodes anything", where=f"format {strange[0]}", fix="use format dense")
    bare = [spec.target.name for spec in specs.values() if not encoded([spec])]
    coded = [name for name in recipe.formats if CONTAINERS.get(name).coded]
    if bare and coded:
        fix = "encode it too, or give its stage an ignore"
        raise UsageError(f"format {coded[0]} holds no matrix that is pruned only", where=bare[0], fix=fix)


def _own_format_note(recipe: Recipe) -> tuple[str, ...]:
    """That only llmc and transformers read the format which follows a budget, and what gives one of a runtime."""
    if recipe.formats != ("llmc",):
        return ()
    return (
        "format llmc is read by llmc and by transformers after `import llmc.hf`; vLLM, SGLang and others take "
        "--bits 4 --format compressed-tensors, or what llmc export --format dense makes of it",
    )


def _text_note(recipe: Recipe) -> tuple[str, ...]:
    """That a model is calibrated on the text of a world which is not its own."""
    options = recipe.calibration
    carried = options is not None and CARRIED_TEXT in names_of(options)
    return (CARRIED_NOTE,) if carried and recipe.model != EMBEDDED_MODEL and needs_statistics(recipe) else ()


def describe(job: Job) -> PlanResult:
    """The plan of a job."""
    specs = job.encoded
    entropy = job.recipe.entropy
    sizes = {folder: at_most(f) if entropy else f.sizes for folder, f in job.files.items()}
    files = {f"{folder}/{n}" if folder else n: s for folder, own in sizes.items() for n, s in own.items()}
    runtimes = {name: c.runtimes(specs, job.facts) for name, c in job.containers.items()}
    bits = target_bits(next(iter(job.containers.values())), specs)
    if job.recipe.size is not None:  # shared out when the run knows what errors cost
        files = {next(iter(files)): job.recipe.size}
        bits = 8 * (job.recipe.size - kept_bytes(job)) / max(sum(s.target.numel for s in specs), 1)
    return PlanResult(
        files=files,
        weight_bytes=sum(files.values()),
        other_bytes=sum(sidecar_bytes(job.checkpoint.folder, len(job.checkpoint.entries)) for _ in job.containers),
        peak_ram_bytes=_peak_ram(job),
        bits_per_weight=bits,
        runtimes={name: _after_export(name, says) for name, says in runtimes.items()} if entropy else runtimes,
        targets=len(job.specs),
        original_bytes=job.checkpoint.file_bytes,
        at_most=entropy or any(container.coded for container in job.containers.values()),
        notes=job.notes,
        method=method_of(job.recipe, bits),
    )


def method_of(recipe: Recipe, bits: float) -> str:
    """What a recipe does to matrices: method, width, groups, format, calibration."""
    line = method_line(to_dict(recipe), {"bits_per_weight": bits})
    parts = [line, *(f"format {name}" for name in recipe.formats)]
    options = recipe.calibration
    if options is not None and needs_statistics(recipe):
        names = ", ".join(public(name) for name in names_of(options))
        parts.append(f"calibrated on {names}, {options.num_samples} x {options.sequence_length} tokens")
    return "; ".join(parts)


def _after_export(container: str, runtimes: dict[str, str]) -> dict[str, str]:
    """Who loads coded folders, and who loads what `llmc export` makes of them."""
    own = {"llmc.load": "yes, also with weights coded in memory", "transformers": "yes, after `import llmc.hf`"}
    return own | {f"{name}, after llmc export --format {container}": says for name, says in runtimes.items()}


def kept_bytes(job: Job) -> int:
    """About how many bytes the tensors take that no stage compresses."""
    entries = [
        e for name, e in job.checkpoint.entries.items() if name in job.checkpoint.stored and name not in job.specs
    ]
    coded = any(container.coded for container in job.containers.values())
    return int(sum(e.nbytes for e in entries) * (CODED_SHARE if coded else 1))


def _peak_ram(job: Job) -> int:
    return peak_ram(job.recipe, job.checkpoint, [spec.target for spec in job.specs.values()])


def check_memory(job: Job) -> None:
    """Raise MemoryLimitError when the estimate exceeds the recipe's `max_memory`."""
    limit, need = job.recipe.max_memory, _peak_ram(job)
    if limit is not None and need > limit:
        raise MemoryLimitError(
            f"about {need:,} bytes of RAM needed, --max-memory allows {limit:,}",
            where=job.checkpoint.folder.name,
            fix="raise it, or use fewer or shorter samples, or --method rtn" if job.needs_statistics else "raise it",
        )


def _finite(chosen: Chosen, checkpoint: Checkpoint) -> tuple[Chosen, tuple[str, ...]]:
    """The Targets without NaN and Inf, and a note for each of the others."""
    bad = {name: found for name in chosen if (found := nonfinite(checkpoint.tensor(name))) is not None}
    if len(bad) == len(chosen):
        raise UsageError("every targeted matrix holds NaN or Inf", where=checkpoint.folder.name)
    notes = (f"{n} is kept as it is: {count} NaN or Inf, the first at {first}" for n, (count, first) in bad.items())
    return {name: choice for name, choice in chosen.items() if name not in bad}, tuple(notes)


def _scale_dtypes(target: Target, containers: Any) -> tuple[str, ...]:
    """Scales are exact in every container's dtype, and in the model's: readers cast them to it."""
    own = str(target.dtype).removeprefix("torch.")
    return tuple(sorted({own} | {d for c in containers if (d := c.scale_dtype(target)) is not None}))


def fingerprint(job: Job, recipe_text: dict[str, Any], calibration: str | None) -> dict[str, str]:
    """What a resume must agree with, part by part."""
    import hashlib

    import llmc

    text = json.dumps({k: v for k, v in recipe_text.items() if k != "max_memory"}, sort_keys=True)
    return {
        "model": job.checkpoint.fingerprint(),
        "recipe": hashlib.sha256(text.encode()).hexdigest(),
        "data": calibration or "",
        "version": f"llmc {llmc.__version__}, torch {torch.__version__}",
    }
