"""`lossless`: a bit-exact smaller copy of any folder or file of safetensors, tensor by tensor.

Every source file gets a coded twin with the same tensors in the same order (`coded_files`). A tensor's place is known
once those before it are coded, so files grow; the journal holds where each one lies, and a run that is killed goes on
after the last one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Artifact, Folder, Unit, raw_bytes
from llmc.artifacts.layout import Slot, WeightFiles
from llmc.artifacts.lossless.seal import Lossless, beside, seal
from llmc.artifacts.workfolder import check_place
from llmc.encodings.coding import rans, tensor_coder
from llmc.encodings.coding.tensor_coder import MODES, Coded
from llmc.errors import CheckpointError, InputError, UsageError
from llmc.files.disk import disk_errors
from llmc.files.header import TensorEntry
from llmc.files.safetensors import SafetensorsFile, load, read_file, read_folder, write_header
from llmc.formats.coded_files import SUFFIX, coded_name, cores, overlapped, together
from llmc.late import torch
from llmc.models.load import located
from llmc.public import public
from llmc.registry import suggest
from llmc.results import Progress, silent

UNIT = 32 << 20  # source bytes between two entries of the journal
FORMAT = "llmc lossless 1"
HEADER_LIMIT = 8 << 20  # of an original header, compressed
OVERHEAD = 64  # more than the head of a tensor that was not made smaller, its shape left out
LEAST_SHARE = 0.5  # of the source that the output takes for sure: what the disk must have free


@public()
def lossless(
    model: str | Path,
    out: str | Path,
    *,
    mode: str = "balanced",
    exact_files: bool = False,
    threads: int | None = None,
    fresh: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Lossless:
    """Write a bit-exact, smaller copy of a model, or of any folder or file of safetensors.

    Args:
        model: a folder, a .safetensors file, or a Hub id.
        mode: `balanced`, `small` (fewest bytes) or `fast` (fixed length).
        exact_files: keep what it takes to restore the safetensors files byte for byte, not just their tensors.
        threads: how many code; None: all cores. The bytes do not depend on it.
        fresh: discard what an interrupted run left.
        force: replace `out`.

    Raises:
        UsageError: there is no such mode.
        CheckpointError: the source cannot be read.
        OutputError, StorageError: the output cannot be written.
    """
    if mode not in MODES:
        raise UsageError(f"no mode {mode!r}", where="mode", fix=suggest(mode, list(MODES)))
    source, how = located(model), {"mode": mode, "exact_files": exact_files}
    return code(source, Path(out), how, threads=threads, fresh=fresh, force=force, progress=progress)


def code(
    source: Path,
    out: Path,
    how: dict[str, Any],
    *,
    threads: int | None = None,
    fresh: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Lossless:
    """`lossless` of a local folder or file, with `how` as its fields `mode` and `exact_files`."""
    begin, mode, exact_files = time.monotonic(), how["mode"], how["exact_files"]
    check_place(out, force, source)
    files = sources(source)
    beside(source, files)  # says what must not travel before the work, not after it
    mark = {"model": _fingerprint(files), "mode": mode, "exact_files": str(exact_files)}
    place = GrowingFolder(files, exact_files)
    artifact = Artifact(out, {"": place.files}, mark, place.at, inputs=[source])
    artifact.open(fresh=fresh, force=force)
    try:
        Run(files, artifact, place, mode, threads or cores(), progress or silent).write()
        place.close()
        units = list(artifact.done.values())
        result = seal(source, place, files, units, how, out)
        artifact.finish()
    finally:
        artifact.abandon()
    return result.timed(time.monotonic() - begin)


def at_most(files: WeightFiles) -> dict[str, int]:
    """Coded file -> bytes that the coding of plain files cannot exceed."""
    heads = dict.fromkeys(files.sizes, 512)
    for slot in files.slots.values():
        heads[slot.file] += OVERHEAD + 10 * len(slot.shape)
    return {coded_name(name): size + 3 * len(files.headers[name]) + heads[name] for name, size in files.sizes.items()}


def sources(source: Path) -> list[SafetensorsFile]:
    """The safetensors files of a folder: those of its model, or all that lie in it.

    Raises CheckpointError when there is none, or when one holds coded tensors already.
    """
    if not source.is_dir():
        found = [source]
        read_folder(source)  # says what is wrong with a path that is no such file
    else:
        found = sorted(p for p in source.glob("*.safetensors"))
        coded = next((p for p in found if p.name.endswith(SUFFIX)), None)
        if coded is not None:
            raise CheckpointError(f"{coded.name} is coded already", where=source.name, fix="see llmc decompress")
        names = {p.name for p in found}
        if not found or "model.safetensors" in names or (source / "model.safetensors.index.json").exists():
            entries = read_folder(source)
            found = sorted({entry.file for entry in entries.values()} or {source / "model.safetensors"})
    files = [read_file(path) for path in found]
    together([file.entries for file in files])
    return files


class GrowingFolder(Folder):
    """Weight files whose tensors have no size until they are written.

    Headers come first in a file and are known last: room for the longest is reserved.
    """

    def __init__(self, files: Sequence[SafetensorsFile], exact: bool) -> None:
        super().__init__(Path(), WeightFiles({}, {}, {}))
        self.metadata = {coded_name(f.path.name): metadata_of(f, exact) for f in files}
        self.end: dict[str, int] = {}
        for file in files:
            name = coded_name(file.path.name)
            longest = max((len(n.encode()) for f in files for n in f.entries), default=0)  # a twin's name is its part
            most = [
                (e.name, torch.uint8, (max(e.nbytes, longest) + OVERHEAD + 10 * len(e.shape),)) for e in _in_order(file)
            ]
            self.end[name] = len(write_header(most, self.metadata[name])[0])
            self.files.sizes[name] = int(LEAST_SHARE * file.size)

    def at(self, path: Path, files: WeightFiles) -> Folder:
        """This folder, now that its place is known."""
        self.path = path
        return self

    def prepare(self, fresh: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for name in self.end:
            flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0)
            self._open[name] = os.open(self.path / name, flags, 0o644)

    def recall(self, report: list[dict[str, Any]]) -> None:
        for row in report:
            self.files.slots[row["name"]] = _slot(row)

    def follows(self, report: list[dict[str, Any]], entries: list[TensorEntry]) -> bool:
        """Take a finished unit as the next one, if it holds these tensors and lies where the next one has to."""
        slots = [_slot(row) for row in report]
        if [row["name"] for row in report] != [e.name for e in entries] or slots[0].start != self.end[slots[0].file]:
            return False
        self.end[slots[-1].file] = slots[-1].stop
        return True

    def append(self, file: str, name: str, coded: Coded) -> tuple[dict[str, Any], str]:
        """Write a tensor at the end of a file; its place, and the sum of its bytes."""
        start = at = self.end[file]
        crc = 0
        for piece in coded.pieces:
            self._write_at(file, at, piece.data)
            crc = rans.crc32c(piece, crc)
            at += piece.size
        self.end[file] = at
        row = {"name": name, "file": file, "start": start, "stop": at}
        self.files.slots[name] = _slot(row)
        return row, f"{crc:08x}"

    def digest(self, name: str) -> str:
        """CRC-32C of the bytes that a tensor has on disk: its decoded bits have a SHA-256, and so has the file."""
        crc = 0
        for data in self._pieces(name):
            crc = rans.crc32c(data, crc)
        return f"{crc:08x}"

    def complete(self, file: str) -> None:
        """Write the header of a file whose tensors are all there."""
        slots = {name: slot for name, slot in self.files.slots.items() if slot.file == file}
        order = sorted(slots, key=lambda name: slots[name].start)
        room = min([slots[name].start for name in order], default=self.end[file])
        header, _ = write_header([(n, torch.uint8, slots[n].shape) for n in order], self.metadata[file])
        if len(header) > room:
            raise RuntimeError(f"the header of {file} needs {len(header)} bytes and has {room}")
        text = header[8:] + b" " * (room - len(header))
        with disk_errors(self.path / file):
            os.pwrite(self._open[file], len(text).to_bytes(8, "little") + text, 0)
            os.ftruncate(self._open[file], self.end[file])
        self.files.sizes[file] = self.end[file]


@dataclass
class Run:
    """The coding of all tensors that the journal does not hold yet."""

    files: list[SafetensorsFile]
    artifact: Artifact
    place: GrowingFolder
    mode: str
    threads: int
    progress: Progress

    def write(self) -> None:
        total, done = sum(f.size for f in self.files) / 1e6, 0.0
        first: dict[str, str] = {}  # dtype, shape and digest -> the tensor that was the first to have them
        for file in self.files:
            units = [(f"{file.path.name} {number}", entries) for number, entries in enumerate(_units(file))]
            for (unit, entries), tensors in overlapped(self._read, units):
                before = self.artifact.done.get(unit)
                if before is None or not self.place.follows(before.report, entries):
                    before = self._code(unit, entries, tensors, first)
                for row in before.report:
                    first.setdefault(_key(row), row["name"])
                done += sum(entry.nbytes for entry in entries) / 1e6
                self.progress("code MB", done, total)
            self.place.complete(coded_name(file.path.name))

    def _read(self, unit: tuple[str, list[TensorEntry]]) -> list[tuple[torch.Tensor, str]]:
        """The tensors of a unit and the SHA-256 of their bits; none of one that is done already."""
        return [] if unit[0] in self.artifact.done else [_read(entry) for entry in unit[1]]

    def _code(
        self, unit: str, entries: list[TensorEntry], tensors: list[tuple[torch.Tensor, str]], first: dict[str, str]
    ) -> Unit:
        rows, digests = [], {}
        known = dict(first)
        for entry, (tensor, decoded) in zip(entries, tensors or map(_read, entries), strict=True):
            name, file = entry.name, coded_name(entry.file.name)
            about = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "decoded": decoded}
            twin = known.setdefault(_key(about), name)
            same = twin != name and tensor.nbytes > 256
            coded = (
                tensor_coder.repeat(tensor, twin)
                if same
                else tensor_coder.encode(tensor, self.mode, threads=self.threads)
            )
            row, digests[name] = self.place.append(file, name, coded)
            rows.append({**row, **about, "elements": tensor.numel(), **coded.row()})
        made = Unit(unit, {"": digests}, rows)
        self.artifact.record(made)
        return made


def _read(entry: TensorEntry) -> tuple[torch.Tensor, str]:
    tensor = load(entry)
    return tensor, hashlib.sha256(raw_bytes(tensor)).hexdigest()


def _key(row: dict[str, Any]) -> str:
    return f"{row['dtype']} {row['shape']} {row['decoded']}"


def _units(file: SafetensorsFile) -> Iterator[list[TensorEntry]]:
    """A file's tensors in the order of their bytes, in pieces that are worth a line of the journal."""
    entries: list[TensorEntry] = []
    size = 0
    for entry in _in_order(file):
        entries.append(entry)
        size += entry.nbytes
        if size >= UNIT:
            yield entries
            entries, size = [], 0
    if entries:
        yield entries


def _in_order(file: SafetensorsFile) -> list[TensorEntry]:
    """A file's tensors in the order of their bytes, which is that of the coded file too."""
    return sorted(file.entries.values(), key=lambda e: (e.start, e.stop))


def _slot(row: dict[str, Any]) -> Slot:
    return Slot(row["file"], torch.uint8, (row["stop"] - row["start"],), row["start"], row["stop"])


def metadata_of(file: SafetensorsFile, exact: bool) -> dict[str, str]:
    """Of a coded file: what its source had, and with `exact` the source's whole header."""
    if not exact:
        return metadata_for(file.metadata, None)
    with open(file.path, "rb") as source:
        metadata = metadata_for(file.metadata, source.read(file.header_size))
    if len(metadata["header"]) > 4 * HEADER_LIMIT // 3:
        raise InputError("its header is too large to be kept", where=str(file.path), fix="leave --exact-files out")
    return metadata


def metadata_for(source: dict[str, str], header: bytes | None) -> dict[str, str]:
    """Metadata of the coded twin of a file with this metadata, and this header where that is kept."""
    metadata = {"format": FORMAT, "original": json.dumps(source, ensure_ascii=False)}
    kept = {} if header is None else {"header": base64.b64encode(zlib.compress(header, 9)).decode()}
    return metadata | kept


def _fingerprint(files: Sequence[SafetensorsFile]) -> str:
    """What a resume checks: names, sizes, times and headers of the sources."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(repr((file.path.name, file.size, file.mtime_ns, sorted(file.metadata.items()))).encode())
        entries = sorted((e.name, str(e.dtype), e.shape, e.start) for e in file.entries.values())
        digest.update(repr(entries).encode())
    return digest.hexdigest()
