"""Stages that go on from each other: each segment of a recipe is a walk, and the last one writes containers.

What an earlier segment makes of its Targets lies in a work folder beside OUT until the result is complete, so that a
run that was killed, or is run again with another last stage, goes on from it. The model that the next segment reads is
the original with these values in their places.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Artifact
from llmc.artifacts.layout import arrange
from llmc.artifacts.workfolder import discard
from llmc.encodings.values import Values
from llmc.errors import OutputError
from llmc.files.safetensors import TensorEntry, read_file
from llmc.formats.container import Spec
from llmc.formats.dense import Dense
from llmc.models.checkpoint import Checkpoint
from llmc.pipeline.execute import Written, execute
from llmc.pipeline.plan import Job
from llmc.results import Progress


def earlier(job: Job) -> list[Job]:
    """The jobs of the segments before the last one, all on the original model."""
    return [_segment(job, index) for index in range(job.segment)]


def after_earlier(job: Job, out: Path, *, fresh: bool, progress: Progress | None) -> Job:
    """Carry out the earlier segments of a job; returns it on the model that they make.

    Args:
        fresh: do those again whose recipe, model or data have changed; the others are kept.
    """
    checkpoint = job.checkpoint
    for part in earlier(job):
        place = place_of(out, part.segment)
        checkpoint = _carried_out(replace(part, checkpoint=checkpoint), place, fresh=fresh, progress=progress)
    return replace(job, checkpoint=checkpoint)


def place_of(out: Path, segment: int) -> Path:
    """Where a segment works."""
    return out.with_name(f"{out.name}.llmc-stage-{segment}")


def forget_earlier(job: Job, out: Path) -> None:
    """Remove what the earlier segments left."""
    for index in range(job.segment):
        discard(place_of(out, index))


def _segment(job: Job, index: int) -> Job:
    """One of the earlier segments as a job of its own: values of its Targets, and nothing else."""
    stage_of = {
        tensor: stage for tensor, chain in job.chains.items() for stage in chain if job.segments[stage] == index
    }
    specs = {tensor: Spec(job.specs[tensor].target, Values()) for tensor in stage_of}
    files = arrange({name: shape for spec in specs.values() for name, shape in Dense().layout(spec).items()})
    containers = {"dense": Dense()}
    own: dict[str, Any] = {
        "stage_of": stage_of,
        "specs": specs,
        "files": {"": files},
        "containers": containers,
        "notes": (),
    }
    return replace(job, **own, segment=index, partial=True, rates={})


def _carried_out(job: Job, place: Path, *, fresh: bool, progress: Progress | None) -> Checkpoint:
    found: list[Checkpoint] = []

    def finish(artifact: Artifact, written: Written) -> None:
        (folder,) = artifact.folders.values()
        folder.close()
        entries: dict[str, TensorEntry] = {}
        for name in folder.files.sizes:
            entries |= read_file(folder.path / name).entries
        found.append(job.checkpoint.edited(entries, json.dumps(artifact.fingerprint, sort_keys=True)))

    try:
        execute(job, place, fresh=False, force=True, progress=progress, finish=finish)
    except OutputError:
        if not fresh:
            raise
        execute(job, place, fresh=True, force=True, progress=progress, finish=finish)
    return found[0]
