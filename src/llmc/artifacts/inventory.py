"""What a folder that is to be replaced holds: llmc deletes what is known to be of a model, and nothing else.

Known are the files that an artifact's own SHA256SUMS lists and, in a model folder of another maker, files that are
called as those of models are. A user's file among them is named, and the folder stays.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from llmc.artifacts.sidecar import CARRIED, MODULE, TEMPLATES
from llmc.errors import OutputError
from llmc.files.manifest import MANIFEST, SUMS

MODEL_FILES = (
    *CARRIED,
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "README.md",
    ".gitattributes",
)
MODEL_FOLDERS = (MODULE, TEMPLATES)
MOST_CONFIG = 10_000_000
NAMED = 3
"""Strange files that a refusal names."""

Files = dict[str, list[int]]
"""Path below the folder -> bytes, and time of the last change in nanoseconds."""
Known = Callable[[str], bool]


def inventory(folder: Path) -> Files:
    """All files of a folder that may be replaced. Raises OutputError when it holds anything that is no model's."""
    files: Files = {}
    strange: list[str] = []
    _look(folder, "", None, files, strange)
    if strange:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        raise OutputError(
            f"it holds what no model does: {', '.join(strange[:NAMED])}{more}",
            where=folder.name,
            fix="move that away, or choose another -o",
        )
    return files


def remove(folder: Path, files: Files) -> bool:
    """Delete `files`, as far as they are unchanged, and the folders that are empty then; whether nothing is left."""
    for name, (size, changed) in files.items():
        path = folder / name
        try:
            now = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(now.st_mode) and (now.st_size, now.st_mtime_ns) == (size, changed):
            path.unlink()
    for place, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(place):
            os.rmdir(place)
    return not folder.exists()


def _look(folder: Path, prefix: str, outer: Known | None, files: Files, strange: list[str]) -> None:
    known = _known(folder) or outer
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            _look(Path(entry), f"{name}/", _below(known, entry.name), files, strange)
        elif entry.is_file(follow_symlinks=False) and known is not None and known(entry.name):
            about = entry.stat(follow_symlinks=False)
            files[name] = [about.st_size, about.st_mtime_ns]
        else:
            strange.append(name)


def _below(known: Known | None, folder: str) -> Known | None:
    return None if known is None else lambda name: known(f"{folder}/{name}")


def _known(folder: Path) -> Known | None:
    """Which paths below a folder are a model's, where it is an artifact or a model folder itself."""
    sealed = _sealed(folder)
    if sealed is not None:
        return lambda name: name in sealed or _is_bytecode(name)
    return _is_of_model if _is_model(folder) else None


def _sealed(folder: Path) -> set[str] | None:
    """What an artifact's SHA256SUMS lists, with llmc's own two files; None where there is no artifact."""
    if not ((folder / SUMS).is_file() and (folder / MANIFEST).is_file()):
        return None
    lines = (folder / SUMS).read_bytes().decode(errors="replace").split("\n")
    names = {match[1] for line in lines if (match := re.fullmatch(r"[0-9a-f]{64}  (\S.*)", line))}
    return {*names, SUMS} if MANIFEST in names else None


def _is_model(folder: Path) -> bool:
    """Whether it has the config of a model, or safetensors, which `decompress` writes without one too."""
    path = folder / "config.json"
    try:
        if not path.exists():
            return any(folder.glob("*.safetensors"))
        return path.stat().st_size <= MOST_CONFIG and isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _is_of_model(name: str) -> bool:
    *folders, own = name.split("/")
    inside = not folders or (len(folders) == 1 and any(fnmatch.fnmatchcase(folders[0], p) for p in MODEL_FOLDERS))
    return (inside and any(fnmatch.fnmatchcase(own, p) for p in MODEL_FILES)) or _is_bytecode(name)


def _is_bytecode(name: str) -> bool:
    """What Python leaves beside a decoder that it imported."""
    return name.split("/")[-2:-1] == ["__pycache__"] and name.endswith(".pyc")
