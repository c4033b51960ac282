"""What evaluations keep of originals, so that the next candidate costs no pass of the original.

An entry is a folder named by the SHA-256 of everything its content depends on. It holds a safetensors file, and
`entry.json` with what it is, its size and the SHA-256 of the file. It is written beside its place, locked by whoever
writes it, and renamed. What cannot be trusted any more (damage, another version of the format) is removed and measured
again, and a note says so. What a killed process left is not locked, and removed by the next one that writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.artifacts.layout import Shapes, WeightFiles, arrange
from llmc.artifacts.sidecar import plain_files
from llmc.errors import LlmcError, StorageError
from llmc.files.header import TensorEntry
from llmc.files.safetensors import read_file
from llmc.late import torch
from llmc.results import Table

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
DATA, ABOUT = "model.safetensors", "entry.json"
HEX = "[0-9a-f]"
ENTRIES, PARTIALS = f"{HEX * 64}/{ABOUT}", f"{HEX * 12}.partial-*"
"""Patterns of what a cache writes: nothing else in its folder is ever removed."""


@dataclass(frozen=True)
class Kept:
    """An entry: what it says of itself, the bytes and SHA-256 of its data, when it was used (seconds since 1970)."""

    folder: Path
    about: Mapping[str, Any]
    version: int
    bytes: int
    sha256: str
    used: float

    def tensors(self) -> dict[str, TensorEntry]:
        return read_file(self.folder / DATA).entries


class Writer:
    """A new entry being filled."""

    def __init__(self, folder: Path, files: WeightFiles) -> None:
        self.folder = folder
        self._slots = files.slots
        self._file = os.open(folder / DATA, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        os.pwrite(self._file, files.headers[DATA], 0)
        os.ftruncate(self._file, files.total)

    def write(self, name: str, value: Tensor, row: int = 0) -> None:
        """Put rows of tensor `name` from `row` on."""
        slot = self._slots[name]
        stride = (slot.stop - slot.start) // max(1, slot.shape[0])
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data.cast("B")
        at = slot.start + row * stride
        while data:
            done = os.pwrite(self._file, data, at)
            data, at = data[done:], at + done

    def close(self) -> None:
        os.close(self._file)


@dataclass
class Cache:
    """A folder of entries, together at most `limit` bytes; the ones longest unused make room.

    Attributes:
        notes: what a user should know of what happened, a line each.
    """

    folder: Path
    limit: int
    notes: list[str] = field(default_factory=list)

    def entries(self) -> list[Kept]:
        """All readable entries, the last used one first."""
        found = [self._read(path) for path in self._matching(ENTRIES)]
        return sorted((kept for kept in found if kept is not None), key=lambda kept: -kept.used)

    def find(self, facts: Mapping[str, Any], *, check: bool = True) -> Kept | None:
        """The entry that was made under `facts`, and unless told otherwise checked against its SHA-256; else None."""
        place = self.folder / key_of(facts)
        if not os.path.exists(place / ABOUT):
            return None
        kept = self._read(place / ABOUT)
        problem = "not readable" if kept is None else _problem(kept) if check else ""
        if problem or kept is None:
            shutil.rmtree(place, ignore_errors=True)
            self.notes.append(f"cache: the entry {place.name[:12]} is {problem}: removed, and measured again")
            return None
        with suppress(OSError):  # of another user
            os.utime(place / ABOUT)
        return kept

    @contextmanager
    def writing(self, facts: Mapping[str, Any], about: Mapping[str, Any], shapes: Shapes) -> Iterator[Writer]:
        """Fill a new entry; it is in place once the block has ended without an error.

        Raises StorageError when it does not fit under the limit, or on the disk.
        """
        files = arrange(shapes, shard_bytes=1 << 62)
        self._make_room(files.total)
        key = key_of(facts)
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{key[:12]}.partial-", dir=self.folder))
        try:
            with _disk(self.folder):
                writer = Writer(partial, files)
                try:
                    yield writer
                    self._seal(partial, about)
                    _place(partial, self.folder / key)
                finally:
                    writer.close()
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def fits(self, shapes: Shapes) -> bool:
        """Whether an entry of these tensors is below the limit."""
        return arrange(shapes, shard_bytes=1 << 62).total <= self.limit

    def clear(self) -> int:
        """Remove all entries; returns how many there were. What another process is writing stays."""
        found = self._matching(ENTRIES)
        for path in found:
            shutil.rmtree(path.parent, ignore_errors=True)
        self._remove_abandoned()
        return sum(not path.exists() for path in found)

    def _remove_abandoned(self) -> None:
        """Remove what killed processes were writing."""
        for partial in self._matching(PARTIALS):
            if not _is_locked(partial / DATA):
                shutil.rmtree(partial, ignore_errors=True)

    def _matching(self, pattern: str) -> list[Path]:
        return list(self.folder.glob(pattern)) if self.folder.is_dir() else []

    def _seal(self, partial: Path, about: Mapping[str, Any]) -> None:
        data = partial / DATA
        mark = {"format_version": FORMAT_VERSION, "bytes": data.stat().st_size, "sha256": _sha256(data)}
        (partial / ABOUT).write_text(json.dumps({**mark, "about": about}, indent=2), encoding="utf-8")

    def _make_room(self, needed: int) -> None:
        if needed > self.limit:
            raise StorageError(f"an entry of {needed:,} bytes exceeds the cache's limit of {self.limit:,}")
        self._remove_abandoned()
        entries = self.entries()
        held = sum(kept.bytes for kept in entries)
        while entries and held + needed > self.limit:
            oldest = entries.pop()
            shutil.rmtree(oldest.folder, ignore_errors=True)
            held -= oldest.bytes

    def _read(self, path: Path) -> Kept | None:
        """What stands in an entry.json; None where it is not one."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            size, used = int(found["bytes"]), path.stat().st_mtime
            return Kept(path.parent, dict(found["about"]), found["format_version"], size, found["sha256"], used)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _place(partial: Path, place: Path) -> None:
    """Give a finished entry its name; where another process was first, its entry is as good."""
    if not (place / ABOUT).exists():
        shutil.rmtree(place, ignore_errors=True)  # what a removal that was stopped left
    try:
        partial.replace(place)
    except OSError:
        if not (place / ABOUT).exists():
            raise


def _is_locked(path: Path) -> bool:
    """Whether a process may be writing the file, or about to make it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _problem(kept: Kept) -> str:
    """Why an entry cannot be used; empty where it can."""
    if kept.version != FORMAT_VERSION:
        return f"of format version {kept.version}, not {FORMAT_VERSION}"
    try:
        read_file(kept.folder / DATA)
        return "" if _sha256(kept.folder / DATA) == kept.sha256 else "damaged (its SHA-256 is another)"
    except (OSError, LlmcError):
        return "damaged"


@dataclass(frozen=True)
class Contents:
    """What a cache holds, the last used entry first; `removed` of them are gone."""

    folder: Path
    entries: tuple[Kept, ...]
    removed: int = 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        held = [
            {"key": kept.folder.name, "bytes": kept.bytes, "used": kept.used, **kept.about} for kept in self.entries
        ]
        total = sum(kept.bytes for kept in self.entries)
        return {"folder": str(self.folder), "bytes": total, "removed": self.removed, "entries": held}

    def tables(self) -> list[Table]:
        """A row per entry."""
        rows = []
        for kept in self.entries:
            what = f"{kept.about['tokens']:,} tokens" if "tokens" in kept.about else str(kept.about.get("task", ""))
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.used))
            rows.append(
                (str(kept.about.get("model", "")), str(kept.about.get("kind", "")), what, f"{kept.bytes:,}", used)
            )
        total = f"{sum(kept.bytes for kept in self.entries):,}"
        rows.append(
            (f"{len(self.entries)} entries" + (f", {self.removed} removed" if self.removed else ""), "", "", total, "")
        )
        return [Table(str(self.folder), ("original", "kind", "of", "bytes", "last used"), tuple(rows))]


def contents(folder: Path, *, clear: bool = False) -> Contents:
    """What the cache in `folder` holds; with `clear`, after removing it."""
    cache = Cache(folder, 0)
    removed = cache.clear() if clear else 0
    return Contents(folder, tuple(cache.entries()), removed)


def key_of(facts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of facts that JSON can say."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def model_sha256(folder: Path) -> str:
    """SHA-256 of what a model's figures depend on: the names and contents of its files, tokenizer and generation
    settings among them."""
    whole = hashlib.sha256()
    for path in sorted({*plain_files(folder), *folder.glob("*.safetensors")}):
        whole.update(f"{path.name}\0{_sha256(path)}\0".encode())
    return whole.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "free space there, or name another folder with --cache"
        raise StorageError(f"the cache cannot be written: {error.strerror}", where=str(folder), fix=fix) from error
