"""Everything in a lossless folder besides its weights: config, index, the other files, kernel, card, manifest.

What had to be edited is kept in the manifest as it was (`original_files`), so that `decompress` gives it back.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Unit
from llmc.artifacts.card import Made, lossless_card, source_fields
from llmc.artifacts.folder import Folder
from llmc.artifacts.kernel_folder import kernel_files
from llmc.artifacts.lossless.originals import HELD, keep, sealed
from llmc.artifacts.sidecar import OWN, carried_files, plain_files
from llmc.files.manifest import CARD, dump_json, write_manifest
from llmc.files.safetensors import SafetensorsFile
from llmc.files.travel import left_out_note, refuse_secrets, survey
from llmc.formats.coded_files import INDEX, SINGLE
from llmc.formats.read import MARKS, READABLE
from llmc.models.config import read_config
from llmc.models.snapshot import hub_id
from llmc.results import Table, size

EDITED = ("config.json", "model.safetensors.index.json", "README.md")
MOST_KEPT = 16 << 20
"""Bytes of one of them whose text is kept."""
KERNEL = "coded_tensor"
BIG = 1_000_000
"""Elements from which on a tensor counts as large in the report."""


@dataclass(frozen=True)
class Lossless:
    """What `lossless` wrote: bytes of the weight files before and after, and a row for every tensor."""

    out: Path
    mode: str
    original_bytes: int
    weight_bytes: int
    elements: int
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    seconds: float | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.weight_bytes / max(1, self.elements)

    def timed(self, seconds: float) -> Lossless:
        return replace(self, seconds=seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "out": str(self.out),
            "ratio": self.weight_bytes / max(1, self.original_bytes),
            "bits_per_weight": self.bits_per_weight,
            "excess": excess(self.rows),
            "notes": list(self.notes),
            "rows": list(self.rows),
        }

    def tables(self) -> list[Table]:
        rate = "" if not self.seconds else f", {self.original_bytes / self.seconds / 1e6:,.0f} MB/s"
        above = excess(self.rows)
        head = [
            ("mode", self.mode),
            ("weight files", f"{size(self.weight_bytes)}, were {size(self.original_bytes)}{rate}"),
            ("share", f"{self.weight_bytes / max(1, self.original_bytes):.2%}"),
            ("bits/weight", f"{self.bits_per_weight:.3f}"),
        ]
        if above is not None:
            head.append((f"above the entropy, tensors of {BIG:,} weights and more", f"{above:+.3%}"))
        head += [("note", note) for note in self.notes]
        columns = ("dtype", "coded as", "tensors", "elements", "bytes", "bits/weight", "limit")
        return [
            Table(f"Written to {self.out}", ("what", ""), tuple(head)),
            Table("Tensors", columns, _groups(self.rows)),
        ]


def excess(rows: Sequence[dict[str, Any]]) -> float | None:
    """Bytes of the large tensors over what their entropy is, everything counted; None when there is none."""
    large = [row for row in rows if row["limit_bits"] is not None and row["elements"] >= BIG]
    limit = sum(row["limit_bits"] * row["elements"] / 8 for row in large)
    return sum(row["stop"] - row["start"] for row in large) / limit - 1 if limit else None


def seal(
    source: Path,
    place: Folder,
    files: Sequence[SafetensorsFile],
    units: Sequence[Unit],
    how: dict[str, Any],
    out: Path,
) -> Lossless:
    """Write all that belongs beside the weights, the manifest last."""
    rows = [row for unit in units for row in unit.report]
    digests = {name: digest for unit in units for name, digest in unit.tensors[""].items()}
    folder = place.path
    along = beside(source, files)
    before, kept = along.before, along.kept
    base = before.get("base_model") or hub_id(source) or source.name.removesuffix(".safetensors")
    notes = _copy_files(source, folder, along, how, [row["name"] for row in rows])
    if source.is_dir() and _weights(source) == INDEX:
        weight_map = {row["name"]: row["file"] for row in sorted(rows, key=lambda row: str(row["name"]))}
        total = sum(row["stop"] - row["start"] for row in rows)
        (folder / INDEX).write_bytes(dump_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
    for name, data in kernel_files([KERNEL]).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    digests_before: dict[str, str] = {}
    if before:
        weights = [file.path.name for file in files] if how["exact_files"] else []
        digests_before, more = keep(source, folder, [*along.copied, *kept, *weights], before)
        notes += more
    result = Lossless(
        out=out,
        mode=how["mode"],
        original_bytes=sum(file.size for file in files),
        weight_bytes=place.files.total,
        elements=_weights_in(rows, before),
        rows=tuple(rows),
        notes=tuple(notes),
    )
    body = _manifest(result, base, files, digests, how, kept)
    if before:
        body |= {**_of_artifact(before, result), "original_digests": digests_before}
    fields = source_fields(source, artifact=bool(before)) if source.is_dir() else {}
    config = read_config(folder) if "config.json" in kept else {}
    held = before.get("format")
    made = Made(folder, base, fields, "llmc", config, tag=held or "lossless")
    card = lossless_card(made, result.to_json(), held, kept)
    (folder / CARD).write_text(card, encoding="utf-8")
    write_manifest(folder, body)
    return result


def _of_artifact(before: dict[str, Any], result: Lossless) -> dict[str, Any]:
    """What the manifest of an artifact said, with the sizes that its matrices have now."""
    coded = {row["name"]: row["stop"] - row["start"] for row in result.rows}
    rows = []
    for row in before["targets"]:
        size, elements = sum(coded.get(name, 0) for name in row.get("stored", [])), math.prod(row.get("shape", [1]))
        rows.append({**row, "bits_per_weight": 8 * size / max(1, elements)})
    held = {name for row in before["targets"] for name in row.get("stored", [])}
    weights = sum(math.prod(row.get("shape", [1])) for row in before["targets"])
    old = before.get("sizes", {})
    sizes = {
        **old,
        "weight_bytes": result.weight_bytes,
        "held_bytes": result.original_bytes,
        "bits_per_weight": round(8 * sum(coded.get(name, 0) for name in held) / max(1, weights), 6),
        "model_bits_per_weight": round(8 * sum(coded.values()) / max(1, result.elements), 6),
    }
    kept: dict[str, Any] = {key: before[key] for key in ("llmc", "seed", "versions", "calibration") if key in before}
    recipe = {**before.get("recipe", {}), "entropy": True}
    notes = [*before.get("notes", []), *result.notes]
    return {**kept, "recipe": recipe, "holds": before.get("format"), "sizes": sizes, "targets": rows, "notes": notes}


def _weights_in(rows: Sequence[dict[str, Any]], before: dict[str, Any]) -> int:
    """Weights of the model: of a matrix of an artifact those that its codes stand for, not the numbers stored."""
    targets = before.get("targets", [])
    held = {name for row in targets for name in row.get("stored", [])}
    others = sum(row["elements"] for row in rows if row["name"] not in held)
    return others + sum(math.prod(row.get("shape", [1])) for row in targets)


def _manifest(
    result: Lossless,
    base: str,
    files: Sequence[SafetensorsFile],
    digests: dict[str, str],
    how: dict[str, Any],
    kept: dict[str, str],
) -> dict[str, Any]:
    from llmc import __version__

    left_out = ("name", "start", "stop")
    tensors = {
        row["name"]: {
            "crc32c": digests[row["name"]],
            "bytes": row["stop"] - row["start"],
            **{key: value for key, value in row.items() if key not in left_out},
        }
        for row in result.rows
    }
    sizes = {
        "weight_bytes": result.weight_bytes,
        "original_bytes": result.original_bytes,
        "bits_per_weight": round(result.bits_per_weight, 6),
        "model_bits_per_weight": round(result.bits_per_weight, 6),
    }
    return {
        "llmc": __version__,
        "base_model": base,
        "format": "llmc",
        "recipe": {"lossless": how},
        "sizes": sizes,
        "originals": originals(files, how["exact_files"]),
        "original_files": kept,
        "tensors": dict(sorted(tensors.items())),
        "notes": list(result.notes),
    }


def originals(files: Sequence[SafetensorsFile], exact: bool) -> dict[str, dict[str, Any]]:
    """What is recorded of the files that were coded; of their headers where those come back too."""
    return {file.path.name: {"bytes": file.size, "header": _header_digest(file) if exact else None} for file in files}


def _header_digest(file: SafetensorsFile) -> str:
    """SHA-256 of the header: with those of the tensors it says what every byte of the file was."""
    with open(file.path, "rb") as source:
        return hashlib.sha256(source.read(file.header_size)).hexdigest()


@dataclass(frozen=True)
class Beside:
    """What a folder holds beside its weights.

    Attributes:
        copied: files that go along as they are, relative to the folder.
        kept: text of those that are written anew.
        notes: what stays behind.
        before: the manifest where the folder is an artifact of llmc.
    """

    copied: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    before: dict[str, Any] = field(default_factory=dict)


def beside(source: Path, files: Sequence[SafetensorsFile]) -> Beside:
    """What goes along with the weights of `source`, which are in `files`; nothing where it is a file.

    Raises CheckpointError when something there is a secret, or its config.json cannot be read.
    """
    if not source.is_dir():
        return Beside()
    before, kept, notes = sealed(source), dict[str, str](), []
    plain = [path.relative_to(source).as_posix() for path in plain_files(source)]
    carried = [path.relative_to(source).as_posix() for path in carried_files(source)]
    refuse_secrets(source, dict.fromkeys([*plain, *carried, *(HELD if before else ())]))
    for name in (name for name in plain if name in EDITED):
        problem = _keep_text(source / name, kept)
        notes += [f"{name} {problem} and was left out"] if problem else []
    if "config.json" in kept:
        read_config(source)
    copied = tuple(dict.fromkeys(name for name in [*plain, *carried] if name not in EDITED))
    notes += left_out_note(_stays(source, {*copied, *EDITED, *(file.path.name for file in files)}, before))
    return Beside(copied, kept, tuple(notes), before)


def _keep_text(path: Path, kept: dict[str, str]) -> str:
    """Take in the text of a file; what is wrong with one that has none, or too much."""
    if path.stat().st_size > MOST_KEPT:
        return f"is larger than {MOST_KEPT >> 20} MiB"
    try:
        kept[path.name] = path.read_bytes().decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    return ""


def _stays(source: Path, taken: set[str], before: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and reason of all at the top of `source` that is neither weights nor `taken`."""
    hidden = survey(source, deep=False).left_out
    known = {name.split("/")[0] for name in taken} | {name.rstrip("/") for name, _ in hidden}
    known |= set(OWN) if before else set()  # they are written again
    others = [p for p in sorted(source.iterdir()) if p.name not in known]
    return sorted([*hidden, *((p.name + "/" * p.is_dir(), "") for p in others)])


def _copy_files(source: Path, folder: Path, files: Beside, how: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Copy what is not weights, and write config.json. Returns notes.

    Args:
        names: of the tensors.
    """
    for name in files.copied:
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, place)
    notes = list(files.notes)
    if "config.json" in files.kept:
        config = read_config(source)
        method = quantization_of(source, config, files.before, how["mode"])
        quantized = config.get("quantization_config")
        if quantized is not None:
            method_known = isinstance(quantized, dict) and quantized.get("quant_method") in READABLE
            if not method_known or not any(name.endswith("." + mark) for name in names for mark in MARKS):
                notes.append("its weights were quantized before: transformers loads it after llmc decompress only")
        (folder / "config.json").write_bytes(dump_json({**config, "quantization_config": method}))
    return notes


def quantization_of(source: Path, config: dict[str, Any], before: dict[str, Any], mode: str) -> dict[str, Any]:
    """`quantization_config` of the coded twin of a folder.

    Args:
        config: its config.json.
        before: its manifest, where it is an artifact.
    """
    method = {"quant_method": "llmc", "mode": mode, "weights": _weights(source), "dequantize": True}
    quantized = config.get("quantization_config")
    return method if quantized is None else method | _quantized(quantized, before)


def _quantized(original: Any, before: dict[str, Any]) -> dict[str, Any]:
    """What a loader must know to decode the encoded matrices of a coded folder."""
    turned = sorted(row["tensor"] for row in before.get("targets", []) if row.get("transposed"))
    return {"original": original, **({"transposed": turned} if turned else {})}


def _weights(source: Path) -> str:
    """The file of a coded folder that loading begins with."""
    return INDEX if (source / "model.safetensors.index.json").is_file() else SINGLE


def _groups(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """One row for each dtype and way to code."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        narrower = "" if row["held"] == row["dtype"].removeprefix("torch.") else f" as {row['held']}"
        bits = f" {row['coded_bits']}" if row["coded_bits"] else ""
        groups.setdefault((row["dtype"].removeprefix("torch."), row["kind"] + bits + narrower), []).append(row)
    out = []
    for (dtype, kind), members in groups.items():
        size, elements = sum(m["stop"] - m["start"] for m in members), sum(m["elements"] for m in members)
        limits = [m["limit_bits"] * m["elements"] for m in members if m["limit_bits"] is not None]
        limit = f"{sum(limits) / elements:.3f}" if len(limits) == len(members) and elements else ""
        out.append(
            (dtype, kind, str(len(members)), f"{elements:,}", f"{size:,}", f"{8 * size / max(1, elements):.3f}", limit)
        )
    return tuple(out)
