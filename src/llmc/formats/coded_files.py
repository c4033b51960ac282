"""Folders and files of coded tensors: `*.llmc.safetensors`, read lazily and decoded bit for bit.

Such a file is a safetensors file whose tensors are bytes (U8): each is a coded tensor (docs/formats/lossless.md) under
the name of the tensor that it holds. The name of the file keeps loaders away that would take the bytes for weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmc.encodings.coding import coded_head, coded_tensor
from llmc.encodings.coding.coded_head import SAME, Head
from llmc.errors import CheckpointError, InputError, MemoryLimitError
from llmc.files.bytes import as_bytes
from llmc.files.safetensors import KIND_OF, TensorEntry, load, load_rows, read_file, read_folder
from llmc.late import torch
from llmc.threads import cores, memory, overlapped

SUFFIX = ".llmc.safetensors"
SINGLE = "model.llmc.safetensors"
INDEX = "model.llmc.safetensors.index.json"
HEAD_BYTES = 512  # enough for nearly all heads
SMALL = 1 << 23  # stored bytes; of less, threads have too little to share
BESIDE = 4  # small tensors at a time


def coded_name(file: str) -> str:
    """The name of the coded twin of a .safetensors file."""
    return file.removesuffix(".safetensors") + SUFFIX


def plain_name(file: str) -> str:
    """The name of the file whose coded twin `file` is."""
    return file.removesuffix(SUFFIX) + ".safetensors"


def is_coded(path: Path) -> bool:
    """Whether a folder or file holds coded tensors."""
    if path.is_dir():
        return any(path.glob(f"*{SUFFIX}"))
    return path.name.endswith(SUFFIX)


def held_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as it was before its folder was coded, as far as quantization goes; any other as it is."""
    own = config.get("quantization_config")
    if not isinstance(own, dict) or own.get("quant_method") != "llmc":
        return dict(config)
    return {**config, "quantization_config": own.get("original") or {}}


class CodedTensors:
    """The coded tensors of a folder or of one file.

    Raises CheckpointError for what cannot be read as it should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = _entries(path)
        self.held: dict[str, torch.Tensor] = {}
        for name, entry in self.entries.items():
            if entry.kind != "U8" or len(entry.shape) != 1:
                raise CheckpointError(f"tensor {name}: is not a coded tensor", where=str(entry.file))

    def head(self, name: str) -> Head:
        """What a coded tensor says of itself."""
        entry = self.entries[name]
        with self._named(name):
            data = as_bytes(load_rows(entry, 0, min(HEAD_BYTES, entry.nbytes)))
            try:
                return coded_head.parse_head(data, entry.nbytes)
            except InputError:
                return coded_head.parse_head(as_bytes(load(entry)))

    def load(self, name: str, *, threads: int = 1) -> torch.Tensor:
        """The tensor `name`, decoded. Raises CheckpointError when it is damaged, MemoryLimitError without room."""
        return self.decode(name, self._stored(name), threads=threads)

    def read(self, entry: TensorEntry) -> torch.Tensor:
        """The tensor of one of `dense_entries`. Raises as `load`."""
        return self.load(entry.name, threads=cores())

    def hold(self) -> int:
        """Read all stored bytes into memory, where they stay; how many they are."""
        self.held = {name: load(entry) for name, entry in self.entries.items()}
        return sum(entry.nbytes for entry in self.entries.values())

    def dense_entries(self) -> dict[str, TensorEntry]:
        """The entries that the decoded tensors would have in a plain file; offsets are not those of bytes on disk."""
        heads = {name: self.head(name) for name in self.entries}
        return {
            name: TensorEntry(name, KIND_OF[head.dtype], head.shape, self.entries[name].file, 0, head.nbytes)
            for name, head in heads.items()
        }

    def decode(self, name: str, stored: torch.Tensor, *, threads: int = 1) -> torch.Tensor:
        """The tensor `name` from its stored bytes. Raises as `load`."""
        with self._named(name):
            data = as_bytes(stored)
            head = coded_head.parse_head(data)
            if head.nbytes > memory():
                raise MemoryError(f"claims {head.nbytes} bytes, more than the {memory()} of this machine")
            if head.kind != SAME:
                return coded_tensor.decode(data, head, threads=threads)
            return self._repeated(name, head, coded_tensor.same_as(data), threads)

    def tensors(self, names: Iterable[str] | None = None, *, threads: int = 1) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors in the order of the files, the next ones being read and decoded while one is used.

        Small tensors are decoded side by side, large ones one after the other by all threads.
        """
        beside = min(threads, BESIDE)

        def work(name: str) -> tuple[torch.Tensor, bool]:
            stored = self._stored(name)
            small = stored.numel() < SMALL
            return (self.decode(name, stored, threads=threads // beside) if small else stored), small

        for name, (tensor, decoded) in overlapped(work, self.entries if names is None else names, beside):
            yield name, tensor if decoded else self.decode(name, tensor, threads=threads)

    def _stored(self, name: str) -> torch.Tensor:
        return self.held[name] if name in self.held else load(self.entries[name])

    def _repeated(self, name: str, head: Head, other: str, threads: int) -> torch.Tensor:
        if other not in self.entries or self.head(other).kind == SAME:
            raise InputError(
                f"repeats {other!r}, which is not there" if other not in self.entries else "repeats itself"
            )
        tensor = self.load(other, threads=threads)
        if (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) != (head.dtype, head.shape):
            raise InputError(f"repeats {other!r}, which has another dtype or shape")
        return tensor

    def _named(self, name: str) -> _Named:
        return _Named(self.entries[name], name)


class _Named:
    """Errors inside say which tensor of which file they are about."""

    def __init__(self, entry: TensorEntry, name: str) -> None:
        self.entry, self.name = entry, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CheckpointError):
            return
        where = str(self.entry.file)
        if isinstance(error, InputError):
            raise CheckpointError(f"tensor {self.name}: {error.message}", where=where, fix=error.fix) from error
        if isinstance(error, MemoryError):
            raise MemoryLimitError(f"tensor {self.name}: {error}", where=where) from error


def _entries(path: Path) -> dict[str, TensorEntry]:
    if not path.is_dir():
        return read_file(path).entries
    if (path / INDEX).is_file() or (path / SINGLE).is_file():
        return read_folder(path, single=SINGLE, index=INDEX)
    files = sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise CheckpointError(f"no *{SUFFIX} file in it", where=str(path), fix="give what llmc lossless wrote")
    return together([read_file(file).entries for file in files])


def together(files: list[dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    """The tensors of several files. Raises CheckpointError when two have one of the same name."""
    out: dict[str, TensorEntry] = {}
    for entries in files:
        for name, entry in entries.items():
            if name in out:
                message = f"tensor {name}: in {out[name].file.name} too"
                raise CheckpointError(message, where=str(entry.file), fix="give each file by itself")
            out[name] = entry
    return out
