"""What `verify` does with a lossless folder: every tensor decoded, its bits compared with those of the source.

The digests in the manifest were taken from the source before anything was coded: they are a witness of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmc.encodings.coding import rans
from llmc.errors import InputError, LlmcError
from llmc.files.bytes import raw_bytes
from llmc.files.safetensors import load
from llmc.formats.coded_files import CodedTensors
from llmc.late import torch
from llmc.results import Progress
from llmc.threads import cores, overlapped


def check_values(path: Path, manifest: dict[str, Any], progress: Progress) -> tuple[list[str], int]:
    """Problems, and how many tensors were compared, as stored and as decoded."""
    try:
        coded = CodedTensors(path)
    except InputError as error:
        return [str(error)], 0
    recorded = manifest.get("tensors", {})
    problems = [f"tensor {name} is {word}" for name, word in _differing(coded.entries, recorded, "not recorded")]
    names = [name for name in coded.entries if name in recorded]
    total, done = sum(coded.entries[name].nbytes for name in names) / 1e6, 0.0
    for name, stored in overlapped(lambda n: load(coded.entries[n]), names):
        problems += _check(coded, name, stored, recorded[name])
        done += coded.entries[name].nbytes / 1e6
        progress("decode MB", done, total)
    return problems, len(names)


def crc_of(stored: torch.Tensor) -> str:
    """The sum of a tensor's stored bytes, as the manifest has it."""
    return f"{rans.crc32c(stored):08x}"


def _differing(one: Iterable[str], other: Iterable[str], absent: str) -> list[tuple[str, str]]:
    here, there = set(one), set(other)
    return [(name, absent) for name in sorted(here - there)] + [(name, "missing") for name in sorted(there - here)]


def _check(coded: CodedTensors, name: str, stored: torch.Tensor, recorded: dict[str, Any]) -> list[str]:
    if "crc32c" in recorded:
        intact = crc_of(stored) == recorded["crc32c"]
    else:
        intact = hashlib.sha256(raw_bytes(stored)).hexdigest() == recorded.get("sha256")
    if not intact:
        return [f"tensor {name} differs"]
    try:
        tensor = coded.decode(name, stored, threads=cores())
    except LlmcError as error:
        return [error.message]
    if "decoded" not in recorded:  # its matrix has a digest of its values
        return []
    about = (str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw_bytes(tensor)).hexdigest())
    if about != (recorded.get("dtype"), recorded.get("shape"), recorded.get("decoded")):
        return [f"tensor {name}: decodes to other bits than recorded"]
    return []
