"""`verify`: every byte and every decoded value of an artifact against its manifest, and against the original.

Files are checked against SHA256SUMS; what differs is named down to the tensor or the field. Values are decoded by the
reference kernels, which share no code with the writers.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.artifacts.against_files import Findings
from llmc.artifacts.lossless import check
from llmc.artifacts.lossless.originals import archive_problems
from llmc.errors import InputError, LlmcError, VerifyError, printable
from llmc.files.bytes import raw_bytes
from llmc.files.manifest import CARD, MANIFEST, SUMS, digest_file, dump_json, field_digests, malformed, salvaged
from llmc.files.safetensors import TensorEntry, load, read_file
from llmc.files.travel import of_cache
from llmc.formats.coded_files import is_coded
from llmc.models.config import read_config
from llmc.models.hub import located, resolve_model
from llmc.models.tensors import stored
from llmc.public import public
from llmc.results import Progress, Table, silent

DECODED = "matrices decoded by the reference kernel to the recorded values"


@dataclass(frozen=True)
class Verification:
    """The outcome: `problems` is empty when everything is as recorded.

    Attributes:
        decoded: tensors of a lossless folder, matrices of any other, that decode to what is recorded.
        matrices: encoded matrices that do.
        measured: against the original, errors were measured again; otherwise bits were compared.
        compared: with the original: what, and how many.
        not_compared: what was not, and why.
        worst: the matrix with the largest error, and its signal-to-noise ratio in dB.
    """

    name: str
    files: int
    tensors: int
    decoded: int
    against: str | None
    problems: tuple[str, ...]
    matrices: int = 0
    lossless: bool = False
    measured: bool = True
    compared: dict[str, int] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)
    worst: tuple[str, float] | None = None

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def failure(self) -> VerifyError | None:
        """The error that the problems amount to."""
        if not self.problems:
            return None
        first, *others = self.problems
        more = f" and {len(others)} more" if others else ""
        return VerifyError(first + more, where=self.name, fix="write or download the artifact again")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "files": self.files,
            "tensors": self.tensors,
            "decoded": self.decoded,
            "matrices": self.matrices,
            "against": self.against,
            "problems": list(self.problems),
            "compared": self.compared,
            "not_compared": self.not_compared,
            "worst": None if self.worst is None else {"matrix": self.worst[0], "snr_db": self.worst[1]},
        }

    def tables(self) -> list[Table]:
        if self.problems:
            return [Table(f"{self.name}: differs", ("problem",), tuple((p,) for p in self.problems))]
        rows = [("files as sealed", str(self.files)), ("tensors as recorded", str(self.tensors))]
        if self.lossless:
            rows.append(("tensors decoded to the recorded bits", str(self.decoded)))
        if self.matrices or not self.lossless:
            rows.append((DECODED, str(self.matrices)))
        if self.against:
            rows.append(("errors reproduced against" if self.measured else "same bits as", self.against))
            rows += [(what, str(count)) for what, count in self.compared.items()]
            if self.worst is not None:
                rows.append((f"largest error: {self.worst[0]}", f"{self.worst[1]:.2f} dB"))
        tables = [Table(f"{self.name}: verified", ("checked", "count"), tuple(rows))]
        if self.not_compared:
            tables.append(Table("Not compared", ("what", "why"), tuple(self.not_compared.items())))
        return tables


@public()
def verify(folder: str | Path, against: str | Path | None = None, *, progress: Progress | None = None) -> Verification:
    """Check an artifact of llmc.

    Args:
        folder: the artifact.
        against: the original model: the reported errors are measured again and the other tensors compared; of a
            lossless folder all tensors are compared, unless it holds encoded matrices and this is the model that
            they were made from.

    Raises:
        InputError: the folder is no artifact of llmc.
    """
    path = resolve_model(str(folder))
    if not (path / SUMS).is_file() and not (path / MANIFEST).is_file():
        raise InputError(f"no {MANIFEST} and no {SUMS}", where=path.name, fix="llmc verify checks what llmc wrote")
    report = progress or silent
    damaged, problems = _check_sums(path, report)
    manifest, wrong = _manifest(path)
    problems += [f"{MANIFEST}: {what}" for what in wrong]
    for name in damaged:
        problems += _explain(path, name, manifest)
    problems += archive_problems(path, manifest)
    tensors, matrices = 0, 0
    if not problems:
        problems, tensors, matrices = _check_values(path, manifest, report)
    measured = against is None or not is_coded(path) or _made_from(located(against), manifest)
    found = Findings()
    if not problems and against is not None:
        from llmc.artifacts.against import lossless_against, quantized_against

        hold = quantized_against if measured else lossless_against
        found = hold(path, located(against), manifest)
        problems = found.problems
    original = None if against is None else Path(against).name
    lines = tuple(dict.fromkeys(map(printable, problems)))
    count = len(manifest.get("files", {}))
    decoded = tensors if is_coded(path) else matrices
    unseen = {printable(what): printable(why) for what, why in found.unseen.items()}
    seen = (found.compared, unseen, found.worst) if original else ({}, {}, None)
    return Verification(path.name, count, tensors, decoded, original, lines, matrices, is_coded(path), measured, *seen)


def _made_from(original: Path, manifest: dict[str, Any]) -> bool:
    """Whether a coded folder holds matrices that were encoded, and `original` is a model that was not."""
    if not manifest.get("targets") or not (original / "config.json").is_file():
        return False
    return "quantization_config" not in read_config(original)


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
        lines = (path / SUMS).read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError):
        return [], [f"{SUMS}: missing or not text"]
    for number, line in enumerate(lines, 1):
        parts = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if parts:
            listed[parts[2]] = parts[1]
        elif line or number != len(lines):
            problems.append(f"{SUMS}: line {number} is damaged")
    inside = {p.relative_to(path).as_posix(): p for p in path.rglob("*")}
    odd = sorted(n for n, p in inside.items() if not (of_cache(p) if p.is_symlink() else p.is_file() or p.is_dir()))
    problems += [f"{name}: neither a file nor a folder: delete it" for name in odd]
    present = {name for name, p in inside.items() if p.is_file() and name not in odd} - {SUMS}
    problems += [f"{name}: not listed in {SUMS}{_advice(name)}" for name in sorted(present - listed.keys())]
    problems += [f"{name}: listed in {SUMS}, and missing" for name in sorted(listed.keys() - present)]
    damaged = []
    here = sorted(present & listed.keys())
    for done, name in enumerate(here):
        progress("files", done, len(here))
        if digest_file(path / name) != listed[name]:
            damaged.append(name)
    return damaged, problems


def _advice(name: str) -> str:
    return ": delete it" + (", it may run in place of the source beside it" if name.endswith(".pyc") else "")


def _manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest, empty when it cannot be used, and what is wrong with it."""
    file = path / MANIFEST
    if not file.is_file():
        return {}, ["missing"]
    document, reason = _object(file)
    if reason is not None:
        data = file.read_bytes()
        recorded = salvaged(data).get("fields", {})
        own = recorded.get(MANIFEST) if isinstance(recorded, dict) else None
        found = _broken(file, own if isinstance(own, dict) else {}, reason)
        inside = data.startswith(b"{\n") and data.endswith(b"\n}\n")  # then in the one field without a digest
        return {}, [f"field 'fields' is damaged: {reason}"] if found == [reason] and inside else found
    wrong = malformed(document)
    return (document, []) if wrong is None else ({}, [f"field {wrong!r} is not what llmc writes there"])


def _object(file: Path) -> tuple[dict[str, Any], str | None]:
    """The object in a JSON file, or an empty one and why there is none."""
    try:
        document = json.loads(file.read_bytes().decode())
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    return (document, None) if isinstance(document, dict) else ({}, "not a JSON object")


def _broken(file: Path, recorded: dict[str, Any], reason: str) -> list[str]:
    """The fields of a JSON file that no longer parses whose text is not as recorded, or only `reason`."""
    fields = _differing(field_digests(salvaged(file.read_bytes())), recorded)
    return [f"field {field!r} is damaged: {reason}" for field in fields if field in recorded] or [reason]


def _explain(path: Path, name: str, manifest: dict[str, Any]) -> list[str]:
    """What differs in a file whose digest is not the listed one: tensors, header, fields, or the list."""
    recorded = manifest.get("files", {}).get(name)
    if recorded is not None and recorded["sha256"] == digest_file(path / name):
        return [f"{SUMS}: its digest of {name} is damaged: {MANIFEST} has the right one"]
    if name.endswith(".safetensors"):
        return [f"{name}: {what}" for what in _damaged_file(path / name, manifest)]
    fields = manifest.get("fields", {}).get(name)
    if name == MANIFEST:
        return _explain_manifest(path, manifest)
    if fields is None:
        edited = "; if you edited it: llmc card OUT" if name == CARD else ""
        return [f"{name}: content differs from {SUMS}{edited}"]
    document, reason = _object(path / name)
    if reason is not None:
        return [f"{name}: {what}" for what in _broken(path / name, fields, reason)]
    differing = _differing(field_digests(document), fields)
    return [f"{name}: field {field!r} differs" for field in differing] or [f"{name}: spelling differs, values do not"]


def _explain_manifest(path: Path, manifest: dict[str, Any]) -> list[str]:
    """What differs in the manifest: a field or the digest of one, a digest of another file's, or only the list."""
    if not manifest:
        return []  # said already why it cannot be used
    now = {k: d for k, d in field_digests(manifest).items() if k != "fields"}
    fields = _differing(now, manifest.get("fields", {}).get(MANIFEST, {}))
    if fields:
        return [f"{MANIFEST}: field {field!r} differs from its digest in 'fields'" for field in fields]
    for name, recorded in manifest.get("fields", {}).items():
        file = path / name
        if name != MANIFEST and not (file.is_file() and field_digests(_object(file)[0]) == recorded):
            return [f"{MANIFEST}: field 'fields' differs: its digests of {name}"]
    if dump_json(manifest) == (path / MANIFEST).read_bytes():
        return [f"{SUMS}: its digest of {MANIFEST} is damaged"]
    return [f"{MANIFEST}: spelling differs, values do not"]


def _differing(now: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    return sorted(k for k in now.keys() | recorded.keys() if now.get(k) != recorded.get(k))


def _damaged_file(file: Path, manifest: dict[str, Any]) -> list[str]:
    try:
        entries = read_file(file).entries
    except LlmcError as error:
        return [f"header: {error.message}"]
    recorded = {n: t for n, t in manifest.get("tensors", {}).items() if t["file"] == file.name}
    return _damaged_tensors(entries, recorded) or ["header differs, tensors do not"]


def _damaged_tensors(entries: dict[str, TensorEntry], recorded: dict[str, Any]) -> list[str]:
    """What differs between the tensors on disk and those recorded, by their stored bytes."""
    out = []
    for name in sorted(recorded.keys() | entries.keys()):
        if name not in entries or name not in recorded:
            out.append(f"header: tensor {name!r} is {'missing' if name in recorded else 'not recorded'}")
        elif not _as_recorded(entries[name], recorded[name]):
            out.append(f"tensor {name} differs")
    return out


def _as_recorded(entry: TensorEntry, record: dict[str, Any]) -> bool:
    """Whether a tensor has the stored bytes that the manifest says: a SHA-256, or a CRC-32C of a coded tensor."""
    if "crc32c" in record:
        return check.crc_of(load(entry)) == record["crc32c"]
    return _digest(entry) == record.get("sha256")


def _digest(entry: TensorEntry) -> str:
    return hashlib.sha256(raw_bytes(load(entry))).hexdigest()


def _check_values(path: Path, manifest: dict[str, Any], progress: Progress) -> tuple[list[str], int, int]:
    """Compare every tensor's bytes, and every Target's values by its reference kernel, with what is recorded.

    Returns the problems, and how many tensors and how many Targets were compared.
    """
    rows = manifest.get("targets", [])
    problems: list[str] = []
    tensors = 0
    if is_coded(path):
        problems, tensors = check.check_values(path, manifest, progress)
    if is_coded(path) and (problems or not rows):
        return problems, tensors, 0
    try:
        held = stored(path, read_config(path))
    except InputError as error:
        return [str(error)], 0, 0
    if not held.coded:
        problems, tensors = _damaged_tensors(held.entries, manifest.get("tensors", {})), len(held.entries)
    for done, row in enumerate(rows):
        progress("decode", done, len(rows))
        try:
            values = held.decode(row)
        except KeyError:
            problems.append(f"target {row['target']}: {row['tensor']} is not stored as config.json says")
            continue
        except (InputError, RuntimeError) as error:
            problems.append(f"target {row['target']}: {error}")
            continue
        if hashlib.sha256(raw_bytes(values)).hexdigest() != row["decoded"]:
            problems.append(f"target {row['target']}: decodes to other values than recorded")
    return problems, tensors, len(rows)
