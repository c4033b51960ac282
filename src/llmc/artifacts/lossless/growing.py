"""The folder of a lossless run: files that grow tensor by tensor."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc.artifacts.folder import Folder
from llmc.artifacts.layout import OVERHEAD, Slot, WeightFiles
from llmc.encodings.coding import rans
from llmc.encodings.coding.tensor_coder import Coded
from llmc.errors import InputError
from llmc.files.disk import disk_errors
from llmc.files.header import TensorEntry
from llmc.files.safetensors import SafetensorsFile, write_header
from llmc.formats.coded_files import coded_name
from llmc.late import torch

FORMAT = "llmc lossless 1"
HEADER_LIMIT = 8 << 20  # of an original header, compressed
LEAST_SHARE = 0.5  # of the source that the output takes for sure: what the disk must have free


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
