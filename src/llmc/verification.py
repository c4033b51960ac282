"""`verify`: every byte and every decoded value of an artifact against its manifest, and against the original.

Files are checked against SHA256SUMS; what differs is named down to the tensor or the field. Values are decoded by the
reference kernels, which share no code with the writers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmc.artifact import raw_bytes
from llmc.checkpoint import Checkpoint
from llmc.encoding import decibels
from llmc.errors import CheckpointError, InputError, LlmcError, VerifyError
from llmc.hub import resolve_model
from llmc.manifest import MANIFEST, SUMS, digest_file, field_digests, read_manifest
from llmc.packed import find_packed
from llmc.safetensors_file import TensorEntry, load, read_file
from llmc.structure import Progress, Table, silent

TOLERANCE_DB = 1e-3


@dataclass(frozen=True)
class Verification:
    """The outcome: `problems` is empty when everything is as recorded."""

    name: str
    files: int
    tensors: int
    decoded: int
    against: str | None
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def failure(self) -> VerifyError | None:
        """The error that the problems amount to."""
        if self.ok:
            return None
        more = f" and {len(self.problems) - 1} more" if len(self.problems) > 1 else ""
        return VerifyError(self.problems[0] + more, where=self.name, fix="write or download the artifact again")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "files": self.files,
            "tensors": self.tensors,
            "decoded": self.decoded,
            "against": self.against,
            "problems": list(self.problems),
        }

    def tables(self) -> list[Table]:
        if self.problems:
            return [Table(f"{self.name}: differs", ("problem",), tuple((p,) for p in self.problems))]
        rows = [("files as sealed", str(self.files)), ("tensors as recorded", str(self.tensors))]
        rows.append(("matrices decoded by the reference kernel to the recorded values", str(self.decoded)))
        if self.against:
            rows.append(("errors reproduced against", self.against))
        return [Table(f"{self.name}: verified", ("checked", "count"), tuple(rows))]


def verify(folder: str | Path, against: str | Path | None = None, *, progress: Progress | None = None) -> Verification:
    """Check an artifact of llmc.

    Args:
        folder: the artifact.
        against: the original model: the reported errors are measured again and the other tensors compared.

    Raises:
        InputError: the folder is no artifact of llmc.
    """
    path = resolve_model(str(folder))
    if not (path / SUMS).is_file() and not (path / MANIFEST).is_file():
        raise InputError(f"no {MANIFEST} and no {SUMS}", where=path.name, fix="llmc verify checks what llmc wrote")
    report = progress or silent
    damaged, problems = _check_sums(path, report)
    manifest = read_manifest(path)
    if manifest is None:
        return Verification(path.name, len(damaged), 0, 0, None, tuple(problems or [f"{MANIFEST}: unreadable"]))
    tensors = manifest.get("tensors", {})
    for name in damaged:
        problems += _explain(path, name, manifest)
    decoded = 0
    if not any(name.endswith(".safetensors") for name in damaged):
        found, decoded = _check_values(path, manifest, report)
        problems += found
        if against is not None and not found:
            problems += _check_against(path, Path(resolve_model(str(against))), manifest)
    files = len(manifest.get("files", {}))
    name = None if against is None else Path(against).name
    return Verification(path.name, files, len(tensors), decoded, name, tuple(dict.fromkeys(problems)))


def require_verified(folder: Path) -> None:
    """Raise VerifyError naming the first problem of an artifact."""
    failure = verify(folder).failure
    if failure is not None:
        raise failure


def _check_sums(path: Path, progress: Progress) -> tuple[list[str], list[str]]:
    """Names of listed files whose bytes differ, and problems with the list itself."""
    problems: list[str] = []
    listed: dict[str, str] = {}
    try:
        lines = (path / SUMS).read_bytes().decode("ascii").split("\n")
    except (OSError, UnicodeDecodeError):
        return [], [f"{SUMS}: missing or not text"]
    for number, line in enumerate(lines, 1):
        parts = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if parts:
            listed[parts[2]] = parts[1]
        elif line or number != len(lines):
            problems.append(f"{SUMS}: line {number} is damaged")
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {SUMS}
    present = {name for name in present if "__pycache__" not in name}  # of a kernel that was imported from here
    problems += [f"{name}: not listed in {SUMS}" for name in sorted(present - listed.keys())]
    problems += [f"{name}: missing" for name in sorted(listed.keys() - present)]
    damaged = []
    here = sorted(present & listed.keys())
    for done, name in enumerate(here):
        progress("files", done, len(here))
        if digest_file(path / name) != listed[name]:
            damaged.append(name)
    return damaged, problems


def _explain(path: Path, name: str, manifest: dict[str, Any]) -> list[str]:
    """What differs in a damaged file: tensors, header, or fields."""
    if name.endswith(".safetensors"):
        return [f"{name}: {what}" for what in _damaged_tensors(path / name, manifest)]
    recorded = manifest.get("fields", {}).get(name)
    if recorded is None:
        return [f"{name}: content differs from {SUMS}"]
    try:
        document = json.loads((path / name).read_bytes())
        now = field_digests(document)
    except (ValueError, RecursionError, AttributeError) as error:
        return [f"{name}: {error}"]
    if name == MANIFEST:
        now.pop("fields", None)
    fields = sorted(k for k in now.keys() | recorded.keys() if now.get(k) != recorded.get(k))
    if name == MANIFEST and not fields:
        fields = ["fields"]
    return [f"{name}: field {field!r} differs" for field in fields] or [f"{name}: spelling differs, values are the same"]


def _damaged_tensors(file: Path, manifest: dict[str, Any]) -> Iterator[str]:
    try:
        entries = read_file(file).entries
    except LlmcError as error:
        yield f"header: {error.message}"
        return
    recorded = {n: t["sha256"] for n, t in manifest.get("tensors", {}).items() if t["file"] == file.name}
    found = False
    for name in sorted(recorded.keys() | entries.keys()):
        if name not in entries or name not in recorded:
            found = True
            yield f"header: tensor {name!r} is {'missing' if name in recorded else 'not recorded'}"
        elif _digest(entries[name]) != recorded[name]:
            found = True
            yield f"tensor {name} differs"
    if not found:
        yield "header differs, tensors are the same"


def _digest(entry: TensorEntry) -> str:
    return hashlib.sha256(raw_bytes(load(entry))).hexdigest()


def _check_values(path: Path, manifest: dict[str, Any], progress: Progress) -> tuple[list[str], int]:
    """Decode every Target by its reference kernel and compare hashes."""
    problems = []
    entries = _entries(path)
    packed = find_packed(entries)
    rows = manifest.get("targets", [])
    for done, row in enumerate(rows):
        progress("decode", done, len(rows))
        try:
            values = _decoded(row, entries, packed)
        except (CheckpointError, KeyError) as error:
            problems.append(f"target {row['target']}: {error}")
            continue
        if hashlib.sha256(raw_bytes(values)).hexdigest() != row["decoded"]:
            problems.append(f"target {row['target']}: decodes to other values than recorded")
    return problems, len(rows) - len(problems)


def _entries(path: Path) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in sorted(path.glob("*.safetensors")):
        entries |= read_file(file).entries
    return entries


def _decoded(row: dict[str, Any], entries: dict[str, TensorEntry], packed: dict[str, Any]) -> torch.Tensor:
    if row["target"] in packed:
        values: torch.Tensor = packed[row["target"]].decode()
        return values
    stored = load(entries[row["tensor"]])
    return stored.t().contiguous() if row["transposed"] else stored


def _check_against(path: Path, original: Path, manifest: dict[str, Any]) -> list[str]:
    checkpoint = Checkpoint(original)
    targets = {t.tensor: t for t in checkpoint.targets}
    entries = _entries(path)
    packed = find_packed(entries)
    problems = []
    for row in manifest.get("targets", []):
        if row["tensor"] not in targets:
            problems.append(f"target {row['target']}: not in {original.name}")
            continue
        snr = signal_to_noise(checkpoint.matrix(targets[row["tensor"]]), _decoded(row, entries, packed))
        if "snr_db" in row and not _close(snr, row["snr_db"]):
            problems.append(f"target {row['target']}: SNR {snr} dB, reported {row['snr_db']}")
    encoded = {row["tensor"] for row in manifest.get("targets", [])}
    for name in checkpoint.stored:
        same = name in encoded or (name in entries and _digest(entries[name]) == _digest(checkpoint.entries[name]))
        if not same:
            problems.append(f"tensor {name}: differs from {original.name}")
    return problems


def signal_to_noise(original: torch.Tensor, decoded: torch.Tensor) -> float | None:
    """10 log10(sum w^2 / sum (w - w')^2) in dB, in float64; None when there is no error."""
    reference = original.double()
    noise = float((decoded.double() - reference).square().sum())
    signal = float(reference.square().sum())
    return decibels(signal, noise)


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE_DB
