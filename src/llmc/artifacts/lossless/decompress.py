"""`decompress`: the plain safetensors files of a lossless folder or file, as they were."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Artifact
from llmc.artifacts.folder import Folder
from llmc.artifacts.layout import Slot, WeightFiles
from llmc.artifacts.lossless.originals import restore
from llmc.artifacts.lossless.seal import EDITED, MOST_KEPT
from llmc.artifacts.sidecar import INDEX, carried_files, plain_files
from llmc.artifacts.workfolder import check_place
from llmc.encodings.coding.coded_head import TRELLIS, Head
from llmc.errors import CheckpointError, InputError
from llmc.files.header import HEADER_LIMIT
from llmc.files.manifest import digest_file, dump_json, read_manifest
from llmc.files.safetensors import read_file, write_header
from llmc.files.travel import distinct, left_out_note, note, survey
from llmc.formats.coded_files import SUFFIX, CodedTensors, is_coded, plain_name
from llmc.late import torch
from llmc.models.config import read_config
from llmc.models.hub import located
from llmc.public import public
from llmc.results import Progress, Table, silent
from llmc.threads import cores, overlapped

AGAIN = "write or download the folder again"


@dataclass(frozen=True)
class Decompressed:
    """What `decompress` wrote.

    Attributes:
        exact: the files are byte for byte what the record says that they were.
        checked: tensors that are bit for bit what the record says.
        notes: what has no record, and what stayed behind.
    """

    out: Path
    files: tuple[str, ...]
    tensors: int
    weight_bytes: int
    exact: bool
    seconds: float
    checked: int = 0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "out": str(self.out), "files": list(self.files), "notes": list(self.notes)}

    def tables(self) -> list[Table]:
        rate = f"{self.weight_bytes:,} bytes, {self.weight_bytes / max(self.seconds, 1e-9) / 1e6:,.0f} MB/s"
        same = "byte for byte as they were" if self.exact else "the tensors bit for bit as they were"
        if self.checked < self.tensors:
            same = f"{self.checked:,} tensors bit for bit as they were, of the others there is no record"
        rows = [("weight files", rate), ("tensors", f"{self.tensors:,}"), ("files", same)]
        rows += [("note", line) for line in self.notes]
        return [Table(f"Written to {self.out}", ("what", ""), tuple(rows))]


@public()
def decompress(
    folder: str | Path,
    out: str | Path,
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Decompressed:
    """Write the plain safetensors files of a folder or file that `llmc lossless` wrote.

    Args:
        folder: the folder, a `.llmc.safetensors` file, or a Hub id.
        threads: how many decode; None: all cores.

    Raises:
        CheckpointError: it is no such folder, or is damaged.
        OutputError, StorageError: the output cannot be written.
    """
    begin = time.monotonic()
    source, out = located(folder), Path(out)
    if not is_coded(source):
        raise CheckpointError(f"no *{SUFFIX} file in it", where=str(source), fix="give what llmc lossless wrote")
    check_place(out, force, source)
    coded = CodedTensors(source)
    heads = {name: coded.head(name) for name in coded.entries}
    if any(head.kind == TRELLIS for head in heads.values()):
        message = "its matrices were quantized: there is no original in it"
        raise InputError(message, where=source.name, fix="llmc export --format dense gives a plain model")
    files, exact = _plan(coded, heads)
    artifact = Artifact(out, {"": files}, {"decompress": str(source.resolve())}, inputs=[source])
    artifact.open(fresh=True, force=force)
    try:
        place = artifact.folders[""]
        manifest = (read_manifest(source) if source.is_dir() else None) or {}
        checked = _write(coded, place, manifest, threads or cores(), progress or silent)
        place.close()
        notes = _restore(source, place.path, place.files, manifest)
        notes += restore(source, place.path, manifest)
        _check_index(place.path, place.files)
        exact = exact and _check_files(place.path, files, manifest) and checked == len(heads)
        artifact.finish()
    finally:
        artifact.abandon()
    names = tuple(sorted(files.sizes))
    seconds = time.monotonic() - begin
    return Decompressed(out, names, len(heads), files.total, exact, seconds, checked, tuple(notes))


def _plan(coded: CodedTensors, heads: dict[str, Head]) -> tuple[WeightFiles, bool]:
    """Where every tensor goes, and whether all files will be byte for byte what they were."""
    files = WeightFiles({}, {}, {})
    exact = True
    for path in sorted({entry.file for entry in coded.entries.values()}):
        file = read_file(path)
        order = sorted(file.entries.values(), key=lambda e: e.start)
        described = {e.name: (getattr(torch, heads[e.name].dtype), heads[e.name].shape) for e in order}
        header, spans, same = _header(file.metadata, described, path)
        name = plain_name(path.name)
        exact = exact and same
        files.headers[name] = header
        for tensor, (start, stop) in spans.items():
            files.slots[tensor] = Slot(name, *described[tensor], start, stop)
        files.sizes[name] = max([len(header), *(stop for _, stop in spans.values())])
    for name, reason in distinct(files.sizes)[1]:
        raise CheckpointError(f"{name} {reason}", where=coded.path.name, fix=AGAIN)
    return files, exact


def _header(
    metadata: dict[str, str], described: dict[str, tuple[torch.dtype, tuple[int, ...]]], path: Path
) -> tuple[bytes, dict[str, tuple[int, int]], bool]:
    """The header of a plain file, the places of its tensors, and whether it is the original one."""
    header, spans = write_header([(n, *d) for n, d in described.items()], _original(metadata, path))
    if "header" not in metadata:
        return header, spans, False
    try:
        unpack = zlib.decompressobj()
        kept = unpack.decompress(base64.b64decode(metadata["header"], validate=True), HEADER_LIMIT + 8)
    except (binascii.Error, zlib.error) as error:
        raise CheckpointError(f"the original header in it is damaged: {error}", where=str(path)) from None
    shift = len(kept) - len(header)
    return kept, {name: (a + shift, b + shift) for name, (a, b) in spans.items()}, True


def _original(metadata: dict[str, str], path: Path) -> dict[str, str]:
    try:
        found = json.loads(metadata.get("original", "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError("the original metadata in it is damaged", where=str(path))
    return found


def _write(coded: CodedTensors, place: Folder, manifest: dict[str, Any], threads: int, progress: Progress) -> int:
    """Write all tensors; how many have the digest that is recorded of them. Raises CheckpointError when one differs."""
    total, done, checked = place.files.total / 1e6, 0.0, 0
    known = {name: record.get("decoded") for name, record in manifest.get("tensors", {}).items()}
    decoded = coded.tensors(threads=threads)
    for (name, _), digest in overlapped(lambda pair: place.write(*pair), decoded):
        slot = place.files.slots[name]
        if known.get(name, digest) != digest:
            raise CheckpointError(
                f"tensor {name} did not become what it was", where=str(coded.entries[name].file), fix=AGAIN
            )
        checked += name in known
        done += (slot.stop - slot.start) / 1e6
        progress("decode MB", done, total)
    return checked


def _restore(source: Path, folder: Path, files: WeightFiles, manifest: dict[str, Any]) -> list[str]:
    """The files beside the weights: those that were edited as they were, without llmc's own. Returns notes.

    Raises CheckpointError when one is not as it was sealed.
    """
    if not source.is_dir():
        return []
    kept, sealed = _texts(source, manifest), manifest.get("files", {})
    unknown: list[str] = []
    for path in dict.fromkeys([*plain_files(source), *carried_files(source)]):
        name = path.relative_to(source).as_posix()
        if name in ("README.md", "config.json"):
            continue
        (folder / name).parent.mkdir(exist_ok=True)  # settings of sentence-transformers' modules are in folders
        shutil.copyfile(path, folder / name)
        if name not in sealed:
            unknown.append(name)
        elif sealed[name]["sha256"] != digest_file(folder / name):
            raise CheckpointError(f"{name} is not as it was sealed", where=source.name, fix=AGAIN)
    if "config.json" not in kept and (source / "config.json").is_file():
        config = read_config(source)
        config.pop("quantization_config", None)
        (folder / "config.json").write_bytes(dump_json(config))
        unknown.append("config.json")
    for name, text in kept.items():
        (folder / name).write_bytes(text.encode())
    if len(files.sizes) > 1 and not (folder / INDEX).exists() and "model.safetensors" not in files.sizes:
        total = sum(slot.stop - slot.start for slot in files.slots.values())
        weight_map = {name: slot.file for name, slot in sorted(files.slots.items())}
        (folder / INDEX).write_bytes(dump_json({"metadata": {"total_size": total}, "weight_map": weight_map}))
    stays = survey(source, deep=False).left_out
    return [*note("not checked, for lack of a record", [(name, "") for name in unknown]), *left_out_note(stays)]


def _texts(source: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """The text of files that were edited. Raises CheckpointError when it is of other files, or too much."""
    kept = manifest.get("original_files", {})
    fine = isinstance(kept, dict) and kept.keys() <= {*EDITED}
    if not fine or not all(isinstance(text, str) and len(text) <= MOST_KEPT for text in kept.values()):
        message = f"its original_files are not the text of {', '.join(EDITED)}"
        raise CheckpointError(message, where=source.name, fix=AGAIN)
    return kept


def _check_index(folder: Path, files: WeightFiles) -> None:
    """An index must lead to the tensors that were decoded, and nowhere else."""
    if not (folder / INDEX).is_file():
        return
    try:
        listed = json.loads((folder / INDEX).read_bytes())["weight_map"]
        wrong = [name for name, file in listed.items() if name not in files.slots or files.slots[name].file != file]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        wrong = ["?"]
    if wrong:
        raise CheckpointError(f"{INDEX} leads to other tensors than were decoded", where=folder.name, fix=AGAIN)


def _check_files(folder: Path, files: WeightFiles, manifest: dict[str, Any]) -> bool:
    """Whether every weight file has the size and the header that were recorded; the tensors were checked before.

    Raises CheckpointError when one has another header, or one that calls the tensors otherwise.
    """
    recorded, checked = manifest.get("originals", {}), 0
    for name, size in files.sizes.items():
        placed = {n: (s.dtype, s.shape, s.start, s.stop) for n, s in files.slots.items() if s.file == name}
        entries = read_file(folder / name).entries
        if {n: (e.dtype, tuple(e.shape), e.start, e.stop) for n, e in entries.items()} != placed:
            raise CheckpointError(f"the kept header of {name} is not of its tensors", where=folder.name, fix=AGAIN)
        about = recorded.get(name) if isinstance(recorded, dict) else None
        if not isinstance(about, dict) or about.get("header") is None:
            continue
        with open(folder / name, "rb") as file:
            header = file.read(read_file(folder / name).header_size)
        if hashlib.sha256(header).hexdigest() != about["header"] or about.get("bytes", size) != size:
            raise CheckpointError(f"the header of {name} did not become what it was", where=folder.name, fix=AGAIN)
        checked += 1
    return checked == len(files.sizes)
