"""Folders compared by their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch


def digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    files = sorted(p for p in folder.rglob(pattern) if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        return tensor.dtype, tensor.shape, data

    return one.keys() == other.keys() and all(bits(one[k]) == bits(other[k]) for k in one)
