"""The state that bitsandbytes keeps as text beside its codes may say anything: one line, never a fault of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from spoiled import Command, change_tensors

STATE = "weight.quant_state.bitsandbytes__nf4"
ODD: list[Any] = [
    {"dtype": "bfloat06"},
    {"dtype": "load"},
    {"dtype": "int8"},
    {"dtype": None},
    {"blocksize": 0},
    {"blocksize": "32"},
    {"blocksize": 1.5},
    {"shape": [64]},
    {"shape": [64, "64"]},
    {"shape": {"0": 64}},
    {"shape": [1 << 70, 1]},
    [],
    7,
]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmc import quantize

    place = tmp_path_factory.mktemp("state")
    model = tiny_models.build("llama", place / "model")
    sizes: dict[str, Any] = {"group_size": 32, "options": {"grid": "nf4"}}
    quantize(str(model), place / "out", formats=["bitsandbytes"], **sizes)
    return place / "out"


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_states(command: Command, quantized: Path, tmp_path: Path, odd: Any) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "out"))
    name = ""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        nonlocal name
        name = next(n for n in sorted(tensors) if n.endswith(STATE))
        state = json.loads(bytes(tensors[name].tolist()))
        text = json.dumps({**state, **odd} if isinstance(odd, dict) else odd).encode()
        tensors[name] = torch.tensor(list(text), dtype=torch.uint8)

    change_tensors(folder, spoil)
    for words in (("inspect", folder), ("export", folder, "--format", "dense", "-o", tmp_path / "dense")):
        outcome = command(*words)
        assert outcome.code == 2
        assert name.removesuffix(f".{STATE}") in outcome.line
    assert command("verify", folder).code == 1
    assert not (tmp_path / "dense").exists()
