"""What turns written weights into a complete folder: config, tokenizer, kernel, card, manifest, seal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmc import __version__
from llmc.artifacts.card import Made, model_card, source_fields
from llmc.artifacts.folder import Folder
from llmc.artifacts.sidecar import write_sidecar
from llmc.files.manifest import CARD, write_manifest
from llmc.formats.container import Container
from llmc.formats.dense import holder
from llmc.models.config import read_config
from llmc.models.snapshot import hub_id
from llmc.pipeline.execute import Written
from llmc.pipeline.plan import Job
from llmc.recipe.paths import public
from llmc.recipe.recipe import to_dict

Seal = Callable[[Any], None]


def complete_folder(job: Job, container: Container, folder: Folder, written: Written) -> Seal:
    """Write all but card and manifest; the returned function takes the eval report (or None) and writes those."""
    folder.close()
    specs = job.encoded
    write_sidecar(
        folder.path,
        job.checkpoint.folder,
        job.checkpoint.config_dict,
        container,
        specs,
        job.facts,
        folder.files.index(),
    )

    def seal(report: Any) -> None:
        summary = folder_summary(job, container, folder, written)
        evaluation = replace(report, model="this model").to_markdown() if report is not None else None
        made = Made(
            folder.path,
            base_model(job),
            source_fields(job.checkpoint.folder),
            container.name,
            read_config(folder.path),
            container.runtimes(specs, job.facts),
        )
        card = model_card(made, to_dict(job.recipe), summary, limits(written), evaluation)
        (folder.path / CARD).write_text(card, encoding="utf-8")
        write_manifest(folder.path, manifest_body(job, container, folder, written, summary))

    return seal


def manifest_body(
    job: Job, container: Container, folder: Folder, written: Written, summary: dict[str, Any]
) -> dict[str, Any]:
    """The manifest without what `write_manifest` adds."""
    key = job.folder_of(container.name)
    tensors = {
        name: {"file": folder.files.slots[name].file, "sha256": digest}
        for unit in written.units
        for name, digest in unit.tensors.get(key, {}).items()
    }
    rows = []
    for row in written.report:
        spec = job.specs[row["tensor"]]
        stored = sorted(holder(container, spec).layout(spec))
        mine = {key: row[key][container.name] for key in ("decoded", "snr_db", "bond")}
        rows.append({**row, **mine, "stored": stored})
    calibration = written.calibration
    return {
        "llmc": __version__,
        "base_model": base_model(job),
        "format": container.name,
        "recipe": to_dict(job.recipe),
        "seed": job.recipe.seed,
        "versions": {name: _version(name) for name in ("torch", "transformers", "safetensors")},
        "calibration": None
        if calibration is None
        else {
            "source": calibration.source,
            "sha256": calibration.sha256,
            "samples": calibration.token_ids.shape[0],
            "sequence_length": calibration.token_ids.shape[1],
        },
        "sizes": summary,
        "tensors": dict(sorted(tensors.items())),
        "targets": rows,
        "notes": list(written.notes),
    }


def folder_summary(job: Job, container: Container, folder: Folder, written: Written) -> dict[str, Any]:
    """Sizes of one container's folder, and the mean errors of its Targets: of weights, and of outputs where known."""
    files, checkpoint = folder.files, job.checkpoint
    elements = sum(checkpoint.entries[n].numel for n in checkpoint.stored)
    payload = sum(slot.stop - slot.start for slot in files.slots.values())
    noted = (row["notes"].get("relative_error") for row in written.report)
    errors = [error for error in noted if error is not None and math.isfinite(error)]
    ratios = [r for row in written.report if (r := row["snr_db"][container.name]) is not None]
    return {
        "weight_bytes": files.total,
        "original_bytes": checkpoint.file_bytes,
        "bits_per_weight": round(stored_bits(job, container, folder), 6),
        "model_bits_per_weight": round(8 * payload / elements, 6),
        "mean_snr_db": round(sum(ratios) / len(ratios), 4) if ratios else None,
        "mean_output_error": sum(errors) / len(errors) if errors else None,
    }


def stored_bits(job: Job, container: Container, folder: Folder) -> float:
    """Stored bits of the Targets, params and padding included, per element."""
    slots = folder.files.slots
    specs = job.encoded or list(job.specs.values())
    stored = sum(slots[n].stop - slots[n].start for spec in specs for n in holder(container, spec).layout(spec))
    return 8 * stored / max(sum(spec.target.numel for spec in specs), 1)


def base_model(job: Job) -> str:
    """The Hub id of the original where it came from there, else what its folder is called."""
    return hub_id(job.checkpoint.folder) or public(job.recipe.model)


def limits(written: Written) -> list[str]:
    """What a user of the artifact should know, from the run's notes and the Targets' own."""
    out = list(written.notes)
    for key, says in (("fallback", "fell back to rounding"), ("uncalibrated", "was rounded without statistics")):
        names = [row["target"] for row in written.report if key in row["notes"]]
        if names:
            out.append(f"{len(names)} matrices {says}, {names[0]} first")
    return out


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
