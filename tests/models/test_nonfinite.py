"""The first place where a model's numbers are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build

from llmc.eval.measures.nonfinite import first_nonfinite


@pytest.fixture
def model(tmp_path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(build("llama", tmp_path), dtype=torch.float32).eval()


TOKENS = torch.arange(10)


def test_a_healthy_model_has_none(model: Any) -> None:
    assert first_nonfinite(model, TOKENS) == ""


def test_a_broken_weight_is_named(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    assert first_nonfinite(model, TOKENS) == "model.layers.1.mlp.up_proj (weight is not finite)"


def test_an_overflow_of_finite_weights_is_named_by_its_module(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(3e38)
    assert first_nonfinite(model, TOKENS) == "model.layers.0.mlp.down_proj"
