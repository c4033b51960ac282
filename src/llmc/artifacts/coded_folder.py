"""The weight files of coded tensors being written: each tensor waits in a file of its own until all have their size."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from llmc.artifacts.folder import CHUNK, Folder
from llmc.artifacts.layout import WeightFiles, arrange, coded_files
from llmc.encodings.coding import tensor_coder
from llmc.errors import StorageError
from llmc.files.bytes import raw_bytes
from llmc.files.disk import disk_errors
from llmc.late import torch
from llmc.threads import cores


class CodedFolder(Folder):
    """A Folder whose tensors are coded: `write` takes coded bytes, `keep` codes a tensor without loss.

    `close` lays all of them out and gives `files` their true sizes.
    """

    def __init__(self, path: Path, files: WeightFiles) -> None:
        super().__init__(path, files)
        self.waiting = path.with_name(path.name + ".tensors")
        self._places = {name: self.waiting / f"{index:06}" for index, name in enumerate(sorted(files.slots))}
        self._parts: dict[str, bytearray] = {}

    def prepare(self, fresh: bool) -> None:
        for folder in (self.path, self.waiting):
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, tensor: torch.Tensor) -> str:
        """Write the bytes of a coded tensor; returns their SHA-256."""
        data = raw_bytes(tensor)
        with disk_errors(self.path), open(self._places[name], "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return hashlib.sha256(data).hexdigest()

    def write_part(self, name: str, offset: int, data: memoryview) -> None:
        """Take bytes of a tensor that is kept as it is, in order; with the last ones it is coded and written."""
        slot = self.files.slots[name]
        part = self._parts.setdefault(name, bytearray())
        part += data
        if len(part) < slot.stop - slot.start:
            return
        tensor = torch.frombuffer(part, dtype=torch.uint8) if part else torch.empty(0, dtype=torch.uint8)
        tensor = tensor.view(slot.dtype).view(slot.shape) if part else torch.empty(slot.shape, dtype=slot.dtype)
        coded = tensor_coder.encode(tensor, "small", threads=cores())
        self.write(name, torch.from_numpy(coded.joined()))
        del self._parts[name]

    def size(self, name: str) -> int:
        return self._places[name].stat().st_size

    def digest_of(self, name: str, plain: str) -> str:
        """SHA-256 of the bytes that stand for a tensor whose own bytes have the digest `plain`."""
        return self.digest(name)

    def digest(self, name: str) -> str:
        try:
            return hashlib.sha256(self._places[name].read_bytes()).hexdigest()
        except OSError:
            return ""

    def read(self, name: str) -> torch.Tensor:
        with disk_errors(self.path, "read"):
            return torch.frombuffer(bytearray(self._places[name].read_bytes()), dtype=torch.uint8)

    def close(self) -> None:
        if not self.waiting.exists():  # laid out before
            return
        sizes = {name: place.stat().st_size for name, place in self._places.items() if place.exists()}
        if len(sizes) < len(self._places):
            raise StorageError("a coded tensor was removed while being written", where=self.path.name)
        self.files = coded_files(arrange({name: (torch.uint8, (size,)) for name, size in sizes.items()}))
        with disk_errors(self.path):
            for file, header in self.files.headers.items():
                self._assemble(file, header)
            shutil.rmtree(self.waiting)

    def _assemble(self, file: str, header: bytes) -> None:
        mine = sorted((slot.start, name) for name, slot in self.files.slots.items() if slot.file == file)
        with open(self.path / file, "wb") as out:
            out.write(header)
            for _, name in mine:
                with open(self._places[name], "rb") as part:
                    shutil.copyfileobj(part, out, CHUNK)
            out.flush()
            os.fsync(out.fileno())


def folder_for(path: Path, files: WeightFiles) -> Folder:
    """The Folder that these files need."""
    return CodedFolder(path, files) if files.coded else Folder(path, files)
