"""`lossless`: a bit-exact smaller copy of any folder or file of safetensors, tensor by tensor.

Every source file gets a coded twin with the same tensors in the same order (`coded_files`). A tensor's place is known
once those before it are coded, so files grow; the journal holds where each one lies, and a run that is killed goes on
after the last one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.artifacts.artifact import Artifact, Unit
from llmc.artifacts.lossless.growing import GrowingFolder, _in_order
from llmc.artifacts.lossless.seal import Lossless, beside, seal
from llmc.artifacts.workfolder import check_place
from llmc.encodings.coding import tensor_coder
from llmc.encodings.coding.tensor_coder import MODES
from llmc.errors import CheckpointError, UsageError
from llmc.files.bytes import raw_bytes
from llmc.files.header import TensorEntry
from llmc.files.safetensors import SafetensorsFile, load, read_file, read_folder
from llmc.formats.coded_files import SUFFIX, coded_name, together
from llmc.late import torch
from llmc.models.hub import located
from llmc.public import public
from llmc.registry import suggest
from llmc.results import Progress, silent
from llmc.threads import cores, overlapped

UNIT = 32 << 20  # source bytes between two entries of the journal


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


def _fingerprint(files: Sequence[SafetensorsFile]) -> str:
    """What a resume checks: names, sizes, times and headers of the sources."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(repr((file.path.name, file.size, file.mtime_ns, sorted(file.metadata.items()))).encode())
        entries = sorted((e.name, str(e.dtype), e.shape, e.start) for e in file.entries.values())
        digest.update(repr(entries).encode())
    return digest.hexdigest()
