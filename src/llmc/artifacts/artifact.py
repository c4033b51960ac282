"""Write side: model folders built next to OUT and put into place only when complete.

The work folder (`workfolder`) holds the folders being written and a journal with one line per finished unit of work (a
block, usually): the hashes of its tensors and its rows of the report. Every tensor has its place from the start, so a
run that is killed goes on after the last journalled unit and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.artifacts.folder import Folder
from llmc.artifacts.layout import WeightFiles
from llmc.artifacts.workfolder import JOURNAL, WorkFolder, check_place
from llmc.errors import OutputError, StorageError
from llmc.files.disk import disk_errors


@dataclass(frozen=True)
class Unit:
    """One finished piece of work, as journalled.

    Attributes:
        name: the block's path, or the tensor's name.
        tensors: folder -> tensor name -> SHA-256 of its stored bytes.
        report: rows for the manifest, one per Target.
    """

    name: str
    tensors: dict[str, dict[str, str]]
    report: list[dict[str, Any]]


class Artifact:
    """The output of a run: one folder per container.

    Args:
        out: where the result will be.
        files: folder name -> weight files; the name is "" when OUT itself is the only folder.
        fingerprint: digest of everything the result depends on; a resume must agree with it.
        folder: makes a Folder of its path and its weight files.
        inputs: folders and files that the run reads.
    """

    def __init__(
        self,
        out: Path,
        files: dict[str, WeightFiles],
        fingerprint: dict[str, str],
        folder: Callable[[Path, WeightFiles], Folder] = Folder,
        inputs: Sequence[Path] = (),
    ) -> None:
        self.out, self.inputs = out, inputs
        self.work = WorkFolder(out)
        self.fingerprint = fingerprint
        self.folders = {name: folder(self.partial / "model" / name, f) for name, f in files.items()}
        self.done: dict[str, Unit] = {}
        self._force = False
        self._others = False  # what lies there is an earlier run's

    @property
    def partial(self) -> Path:
        """Where the work is done."""
        return self.work.path

    def open(self, *, fresh: bool, force: bool) -> None:
        """Start or go on. Raises OutputError when OUT exists, is in use, or belongs to another run."""
        check_place(self.out, force, *self.inputs)
        self._force = force
        try:
            self.work.open()
            self._start([] if fresh else self._read_journal())
        except BaseException:
            self.abandon()
            raise
        self._others = False

    def _start(self, journal: list[dict[str, Any]]) -> None:
        """Make the weight files, or take over those of an earlier run with the same fingerprint."""
        self._others = bool(journal)
        if not journal:
            self.work.clear()
        elif journal[0]["fingerprint"] != self.fingerprint:
            before = journal[0]["fingerprint"]
            changed = sorted(k for k in self.fingerprint if before.get(k) != self.fingerprint[k]) or ["version"]
            raise OutputError(
                f"an unfinished run with another {' and '.join(changed)} lies in {self.partial.name}",
                where=self.out.name,
                fix="add --fresh to discard it",
            )
        missing = sum(f.files.total for f in self.folders.values())
        self._check_space(missing if not journal else 0)
        with disk_errors(self.out):
            for folder in self.folders.values():
                folder.prepare(fresh=not journal)
        if not journal:
            self._append({"fingerprint": self.fingerprint})
        self.done = {u.name: u for line in journal[1:] if (u := self._intact(line)) is not None}

    def record(self, unit: Unit) -> None:
        """Journal a finished unit."""
        self.done[unit.name] = unit
        self._append({"unit": unit.name, "tensors": unit.tensors, "report": unit.report})

    def finish(self, made: str = "model") -> None:
        """Put the complete folders in place under OUT, in one step: those in `made`, beside the journal."""
        with disk_errors(self.out):
            for folder in self.folders.values():
                folder.close()
            self.work.publish(made, force=self._force)
        self.work.release()

    def abandon(self) -> None:
        """Close everything after a failure. The journal stays when it holds finished work, else nothing does."""
        for folder in self.folders.values():
            for handle in folder._open.values():
                os.close(handle)
            folder._open.clear()
        if self.work.is_open and not self.done and not self._others:
            self.work.remove()
        self.work.release()

    def _read_journal(self) -> list[dict[str, Any]]:
        """The journal's lines up to the first damaged one: a kill cuts the last line."""
        path = self.partial / JOURNAL
        lines: list[dict[str, Any]] = []
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                document = json.loads(line)
            except ValueError:
                break
            kind = document.get("unit" if lines else "fingerprint") if isinstance(document, dict) else None
            if not isinstance(kind, str if lines else dict):
                break
            lines.append(document)
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if lines and text != path.read_bytes():
            path.write_bytes(text)
        return lines

    def _append(self, line: dict[str, Any]) -> None:
        with disk_errors(self.out), open(self.partial / JOURNAL, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _intact(self, line: dict[str, Any]) -> Unit | None:
        """The journalled unit if its tensors are on disk as recorded."""
        try:
            unit = Unit(line["unit"], line["tensors"], line["report"])
            for name, tensors in unit.tensors.items():
                self.folders[name].recall(unit.report)
                if any(self.folders[name].digest(tensor) != digest for tensor, digest in tensors.items()):
                    return None
        except (KeyError, AttributeError):  # JSON, but nothing that a run writes
            return None
        return unit

    def _check_space(self, need: int) -> None:
        free = shutil.disk_usage(self.partial).free
        if need > free:
            raise StorageError(
                f"not enough disk: {need} bytes needed, {free} free",
                where=self.out.name,
                fix="free some, or choose another -o",
            )
