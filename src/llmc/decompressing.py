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

import torch

from llmc.artifact import Artifact, Folder, check_apart, check_out
from llmc.coded_files import SUFFIX, CodedTensors, cores, is_coded, overlapped, plain_name
from llmc.errors import CheckpointError, InputError
from llmc.formats.coded_head import TRELLIS, Head
from llmc.layout import Slot, WeightFiles
from llmc.loading import located
from llmc.manifest import dump_json, read_manifest
from llmc.originals import restore
from llmc.safetensors_file import read_file, write_header
from llmc.safetensors_header import HEADER_LIMIT
from llmc.sidecar import carried_files, plain_files
from llmc.structure import Progress, Table, silent

AGAIN = "write or download the folder again"


@dataclass(frozen=True)
class Decompressed:
    """What `decompress` wrote."""

    out: Path
    files: tuple[str, ...]
    tensors: int
    weight_bytes: int
    exact: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "out": str(self.out), "files": list(self.files)}

    def tables(self) -> list[Table]:
        rate = f"{self.weight_bytes:,} bytes, {self.weight_bytes / max(self.seconds, 1e-9) / 1e6:,.0f} MB/s"
        same = "byte for byte as they were" if self.exact else "the tensors bit for bit as they were"
        rows = (("weight files", rate), ("tensors", f"{self.tensors:,}"), ("files", same))
        return [Table(f"Written to {self.out}", ("what", ""), rows)]


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
    check_apart(out, source)
    check_out(out, force)
    coded = CodedTensors(source)
    heads = {name: coded.head(name) for name in coded.entries}
    if any(head.kind == TRELLIS for head in heads.values()):
        message = "its matrices were quantized: there is no original in it"
        raise InputError(message, where=source.name, fix="llmc export --format dense gives a plain model")
    files, exact = _plan(coded, heads)
    artifact = Artifact(out, {"": files}, {"decompress": str(source.resolve())})
    artifact.open(fresh=True, force=force)
    try:
        place = artifact.folders[""]
        manifest = (read_manifest(source) if source.is_dir() else None) or {}
        _write(coded, place, manifest, threads or cores(), progress or silent)
        place.close()
        _restore(source, place.path, place.files, manifest)
        restore(source, place.path, manifest)
        _check_files(place.path, manifest)
        artifact.finish()
    finally:
        artifact.abandon()
    names = tuple(sorted(files.sizes))
    return Decompressed(out, names, len(heads), files.total, exact, time.monotonic() - begin)


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


def _write(coded: CodedTensors, place: Folder, manifest: dict[str, Any], threads: int, progress: Progress) -> None:
    total, done = place.files.total / 1e6, 0.0
    known = {name: record.get("decoded") for name, record in manifest.get("tensors", {}).items()}
    decoded = coded.tensors(threads=threads)
    for (name, _), digest in overlapped(lambda pair: place.write(*pair), decoded):
        slot = place.files.slots[name]
        if known.get(name, digest) != digest:
            raise CheckpointError(
                f"tensor {name} did not become what it was", where=str(coded.entries[name].file), fix=AGAIN
            )
        done += (slot.stop - slot.start) / 1e6
        progress("decode MB", done, total)


def _restore(source: Path, folder: Path, files: WeightFiles, manifest: dict[str, Any]) -> None:
    """The files beside the weights: those that were edited as they were, without llmc's own."""
    if not source.is_dir():
        return
    kept = manifest.get("original_files", {})
    for path in plain_files(source):
        if path.name != "README.md" and path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
    for path in carried_files(source):  # those of sentence-transformers' modules are in folders
        place = folder / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    if "config.json" not in kept and (source / "config.json").is_file():
        config = json.loads((source / "config.json").read_bytes())
        config.pop("quantization_config", None)
        (folder / "config.json").write_bytes(dump_json(config))
    for name, text in kept.items():
        if isinstance(text, str) and name in ("config.json", "README.md", "model.safetensors.index.json"):
            (folder / name).write_bytes(text.encode())
    index = folder / "model.safetensors.index.json"
    if len(files.sizes) > 1 and not index.exists() and "model.safetensors" not in files.sizes:
        total = sum(slot.stop - slot.start for slot in files.slots.values())
        weight_map = {name: slot.file for name, slot in sorted(files.slots.items())}
        index.write_bytes(dump_json({"metadata": {"total_size": total}, "weight_map": weight_map}))


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Headers whose digests were kept must have them; the tensors were checked when they were written."""
    for name, about in manifest.get("originals", {}).items():
        known = about.get("header") if isinstance(about, dict) else None
        if known is None or not (folder / name).is_file():
            continue
        with open(folder / name, "rb") as file:
            header = file.read(read_file(folder / name).header_size)
        if hashlib.sha256(header).hexdigest() != known:
            raise CheckpointError(f"the header of {name} did not become what it was", where=folder.name, fix=AGAIN)
