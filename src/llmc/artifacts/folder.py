"""One model folder of a run: weight files whose tensors all have their place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmc.artifacts.layout import WeightFiles
from llmc.errors import StorageError
from llmc.files.bytes import raw_bytes
from llmc.files.disk import disk_errors
from llmc.late import torch

CHUNK = 1 << 24


class Folder:
    """One model folder of a run: the weight files, preallocated, and whatever other files it needs."""

    def __init__(self, path: Path, files: WeightFiles) -> None:
        self.path, self.files = path, files
        self._open: dict[str, int] = {}

    def prepare(self, fresh: bool) -> None:
        """Create the weight files at full size, so that a full disk is known before the work."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name, size in self.files.sizes.items():
            handle = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            self._open[name] = handle
            if fresh or os.fstat(handle).st_size != size:
                os.ftruncate(handle, 0)
                os.posix_fallocate(handle, 0, size)
            header = self.files.headers[name]
            os.pwrite(handle, header, 0)

    def write(self, name: str, tensor: torch.Tensor) -> str:
        """Write a tensor to its place; returns the SHA-256 of its bytes."""
        slot = self.files.slots[name]
        if (tensor.dtype, tuple(tensor.shape)) != (slot.dtype, slot.shape):
            raise ValueError(f"{name}: {tensor.dtype} {list(tensor.shape)} does not fit its place")
        data = raw_bytes(tensor)
        self._write_at(slot.file, slot.start, data)
        return hashlib.sha256(data).hexdigest()

    def write_part(self, name: str, offset: int, data: memoryview) -> None:
        """Write bytes of a tensor at `offset` from its beginning."""
        slot = self.files.slots[name]
        self._write_at(slot.file, slot.start + offset, data)

    def digest_of(self, name: str, plain: str) -> str:
        """The digest to record of a tensor that `write_part` wrote; that of its own bytes is `plain`."""
        return plain

    def digest(self, name: str) -> str:
        """SHA-256 of the bytes that a tensor has on disk."""
        digest = hashlib.sha256()
        for data in self._pieces(name):
            digest.update(data)
        return digest.hexdigest()

    def read(self, name: str) -> torch.Tensor:
        """A tensor written before."""
        slot = self.files.slots[name]
        data = bytearray()
        for piece in self._pieces(name):
            data += piece
        return (
            torch.frombuffer(data, dtype=slot.dtype).view(slot.shape)
            if data
            else torch.empty(slot.shape, dtype=slot.dtype)
        )

    def size(self, name: str) -> int:
        """Bytes that a tensor has on disk."""
        slot = self.files.slots[name]
        return slot.stop - slot.start

    def recall(self, report: list[dict[str, Any]]) -> None:
        """Take in what the journal says of a finished unit. Places are known from the start here."""

    def close(self) -> None:
        """Flush the weight files to disk and close them."""
        for handle in self._open.values():
            os.fsync(handle)
            os.close(handle)
        self._open.clear()

    def _pieces(self, name: str) -> Iterator[bytes]:
        """The bytes that a tensor has on disk. Raises StorageError when the file has become shorter."""
        slot = self.files.slots[name]
        at = slot.start
        while at < slot.stop:
            with disk_errors(self.path, "read"):
                data = os.pread(self._open[slot.file], min(CHUNK, slot.stop - at), at)
            if not data:
                raise StorageError(f"{slot.file} was cut while being written", where=self.path.name)
            at += len(data)
            yield data

    def _write_at(self, file: str, offset: int, data: memoryview) -> None:
        with disk_errors(self.path / file):
            while data:
                written = os.pwrite(self._open[file], data[: 1 << 30], offset)
                data, offset = data[written:], offset + written
