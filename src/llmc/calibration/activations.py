"""Activations that wait between blocks or within one: in RAM up to a cap, then on disk."""

from __future__ import annotations

import ctypes
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmc.late import np, torch


class ActivationStore:
    """Empties the storages of waiting activations once more than `memory` bytes wait, and fills them again.

    The tensors themselves stay where the model's own code holds them; only their bytes move. `folder` holds the files
    (a temporary folder when None).
    """

    def __init__(self, memory: int, folder: Path | None = None) -> None:
        self.memory = memory
        self.used = 0
        self.spilled = 0
        self._files = 0
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()

    def put(self, arguments: Any) -> dict[Path, torch.UntypedStorage] | int:
        """Take in what a forward pass waits with; returns a receipt for `take`."""
        storages = [s for s in _storages(arguments) if s.device.type == "cpu"]
        size = sum(s.nbytes() for s in storages)
        with self._lock:
            if self.used + size <= self.memory:
                self.used += size
                return size
            folder = self._place()
            self.spilled += size
            self._files += 1
            number = self._files
        files = {folder / f"{number}-{i}.bin": s for i, s in enumerate(storages)}
        for path, storage in files.items():
            _bytes(storage).clone().numpy().tofile(path)  # torch will not resize what numpy has seen
            storage.resize_(0)
        return files

    def take(self, receipt: dict[Path, torch.UntypedStorage] | int) -> None:
        """Bring everything of a receipt back into memory."""
        if isinstance(receipt, int):
            with self._lock:
                self.used -= receipt
            return
        for path, storage in receipt.items():
            storage.resize_(path.stat().st_size)
            _bytes(storage).copy_(torch.from_numpy(np.fromfile(path, dtype=np.uint8)))
            path.unlink()

    def close(self) -> None:
        """Remove the files."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _place(self) -> Path:
        if self._temporary is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(prefix="activations-", dir=self._folder)
        return Path(self._temporary.name)


def activation_bytes(arguments: Any) -> int:
    """Bytes of the hidden states among the arguments of a block."""
    return sum(s.nbytes() for s in _storages(arguments))


def held_within(hidden: int, widest: int) -> int:
    """Bytes that a pass holds which waits within a block, about: hidden states (as they came in, with what was added to
    them, normalised), the input of a matrix, and gaps between these on the heap (measured: a sixth)."""
    return (3 * hidden + widest) * 5 // 4


def _storages(arguments: Any) -> list[torch.UntypedStorage]:
    found = {s.data_ptr(): s for t in _activations(arguments) if (s := t.untyped_storage()).nbytes()}
    return list(found.values())


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _activations(value: Any) -> Iterator[torch.Tensor]:
    """Hidden states among the arguments of a block: `[batch, tokens, features]`, floating point."""
    if isinstance(value, torch.Tensor):
        if value.ndim == 3 and value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _activations(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _activations(item)


def give_back_freed_memory() -> None:
    """Return the pages of freed memory: otherwise what blocks leave behind in the heap grows with their number."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc alone has it
    if trim is not None:
        trim(0)
