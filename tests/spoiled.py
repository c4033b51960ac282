"""Models with one thing wrong, and the command line run on them in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmc.cli import execute

Tensors = dict[str, torch.Tensor]


def copy(model: Path, folder: Path) -> Path:
    """A copy of a model folder, to spoil."""
    shutil.copytree(model, folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Set fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Load model.safetensors, let `change` edit the dict, and write it again."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@dataclass(frozen=True)
class Outcome:
    """What a command line left behind: exit code, the last line of stderr, all of both streams."""

    code: int
    line: str
    err: str
    out: str

    @property
    def error(self) -> dict[str, str]:
        """The error document of `--json`."""
        return json.loads(self.out)["error"]


class Command:
    """`llmc` in this process, on paths of one folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str | Path) -> Outcome:
        self.capsys.readouterr()
        code = execute([str(word) for word in words])
        printed = self.capsys.readouterr()
        lines = printed.err.splitlines()
        return Outcome(code, lines[-1] if lines else "", printed.err, printed.out)


def partial(out: Path) -> Path:
    """Where a run into `out` works."""
    return out.with_name(out.name + ".llmc-partial")
