"""Drifts against float64 means over both models, run whole; and the weights that make up for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from llmc.calibration.drift import DAMPING, Drift, aimed
from llmc.calibration.inputs import model_inputs
from llmc.calibration.statistics import Hessian
from llmc.calibration.walk import Walk, original
from llmc.models.checkpoint import Checkpoint
from llmc.targets import InputPoint

HALVED = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "fc1", "dense", "c_fc", "c_attn", "wi", "out_proj")


def token_ids() -> torch.Tensor:
    return torch.randint(3, tiny_models.VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(1))


def found(folder: Path, **options: Any) -> dict[InputPoint, tuple[Hessian, Drift]]:
    """What the walk finds; layers in HALVED get half their weights once they were seen."""
    checkpoint = Checkpoint(folder)
    batches = model_inputs(checkpoint.model, token_ids(), 2, seed=0)
    points: dict[str, list[InputPoint]] = {}
    for target in checkpoint.targets:
        if target.point is not None:
            points.setdefault(target.block or target.point.module, []).append(target.point)

    def half(name: str) -> torch.Tensor | None:
        return checkpoint.tensor(name) / 2 if any(part in name for part in HALVED) else None

    out = {}
    heads = [p for p in points if p not in checkpoint.skeleton.blocks]
    with Walk(checkpoint, batches, doors=heads, aiming=True, **options) as walk:
        for path in walk.blocks(lambda path: half):
            for stats in walk.observe(path, sorted(set(points[path]), key=str)):
                out |= {point: (each["hessian"], each["drift"]) for point, each in stats.items()}
                walk.refill({p.module for p in stats}, half)
    assert all(p.device.type == "meta" for p in checkpoint.model.parameters()), "weights stayed in memory"
    return out


def whole(folder: Path, change: Callable[[Any], None]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any]:
    """Inputs and outputs of all layers of the whole model by their path, `[tokens, features]` float64."""
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").double().eval()
    change(model)
    seen: dict[str, list[torch.Tensor]] = {}
    gave: dict[str, list[torch.Tensor]] = {}

    def hook(path: str) -> Any:
        def keep(module: Any, args: Any, out: Any) -> None:
            first = out if isinstance(out, torch.Tensor) else out[0]
            if args and isinstance(args[0], torch.Tensor):
                seen.setdefault(path, []).append(args[0].reshape(-1, args[0].shape[-1]))
            gave.setdefault(path, []).append(first.reshape(-1, first.shape[-1]))

        return keep

    for path, module in model.named_modules():
        module.register_forward_hook(hook(path))
    with torch.no_grad():
        for batch in model_inputs(model, token_ids(), 2, seed=0):
            model(**batch)
    return {p: torch.cat(x) for p, x in seen.items()}, {p: torch.cat(x) for p, x in gave.items()}, model


def halve(model: Any) -> None:
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("weight") and any(part in path for part in HALVED) and parameter.ndim == 2:
                parameter.div_(2)


# Layer -> modules whose inputs ("<") or outputs (">") add up to the residual stream that it writes to.
RESIDUAL = {
    "llama": {"self_attn.o_proj": "<input_layernorm", "mlp.down_proj": "<post_attention_layernorm"},
    "gpt2": {"attn.c_proj": "<ln_1", "mlp.c_proj": "<ln_2"},
    "phi": {"self_attn.dense": "<input_layernorm", "mlp.fc2": "<input_layernorm >self_attn.dense"},
    "bert": {"attention.output.dense": "<attention.self.query", "output.dense": "<intermediate.dense"},
}


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"memory": 0}])
@pytest.mark.parametrize("name", list(RESIDUAL))
def test_drifts_are_those_of_both_models(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_models.build(name, tmp_path / "m")
    mine = found(folder, **options)
    x_o, y_o, model = whole(folder, lambda model: None)
    x, y, _ = whole(folder, halve)
    assert any(drift.of_outputs for _, drift in mine.values())
    written = set()
    for point, (hessian, drift) in mine.items():
        path = point.module
        lost, rows = x_o[path] - x[path], x[path]
        _, block, own = re.split(r"^(.*?\.\d+)\.", path) if re.search(r"\.\d+\.", path) else ("", "", path)
        parts = RESIDUAL[name].get(own, "").split()
        expected = lost.T @ rows / len(rows)
        if drift.of_outputs:
            weight = model.get_submodule(path).weight
            wide = weight if isinstance(model.get_submodule(path), torch.nn.Linear) else weight.T
            lacking = lost @ wide.detach().T
            for part in parts:
                where = f"{block}.{part[1:]}"
                lacking += (x_o[where] - x[where]) if part[0] == "<" else (y_o[where] - y[where])
            expected = lacking.T @ rows / len(rows)
        assert drift.residual == bool(parts), path
        written |= {own} if parts else set()
        assert drift.sum is not None and drift.tokens == len(rows) == hessian.tokens
        scale = float(rows.square().mean()) ** 0.5 * float(x_o[path].square().mean()) ** 0.5
        assert torch.allclose(drift.sum.double() / drift.tokens, expected, atol=1e-4 * max(scale, 1e-3)), path
    assert written == set(RESIDUAL[name])


@pytest.mark.parametrize("name", ["qwen3-moe", "t5", "whisper", "bert", "mixtral", "gpt-neox"])
def test_every_architecture_has_drifts_that_do_not_depend_on_how_it_is_walked(name: str, tmp_path: Path) -> None:
    folder = tiny_models.build(name, tmp_path / "m")
    first = found(folder)
    for options in ({"workers": 3}, {"memory": 0}):
        again: dict[InputPoint, tuple[Hessian, Drift]] = found(folder, **options)
        assert first.keys() == again.keys()
        for point, (_, drift) in first.items():
            other = again[point][1]
            assert drift.residual == other.residual and drift.tokens == other.tokens
            assert drift.sum is not None and other.sum is not None and torch.equal(drift.sum, other.sum), point


def test_aimed_weights_are_least_squares() -> None:
    draw = torch.Generator().manual_seed(0)
    x, x_o = (torch.randn(400, 12, generator=draw, dtype=torch.float64) for _ in range(2))
    x_o = x + 0.3 * x_o
    W, stream = torch.randn(5, 12, generator=draw), torch.randn(400, 5, generator=draw, dtype=torch.float64)
    hessian = Hessian(12)
    hessian.update(x.float())
    H = x.T @ x / 400
    ridge = H + DAMPING * H.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    for of_outputs in (False, True):
        drift = Drift(of_outputs, of_outputs)
        lacking = (x_o - x) @ W.double().T + stream if of_outputs else x_o - x
        drift.add(Drift.partial(lacking.float(), x.float()), 400)
        goal = (x_o @ W.double().T + stream if of_outputs else x_o @ W.double().T) - x @ W.double().T
        best = W.double() + torch.linalg.solve(ridge, x.T @ goal / 400).T
        assert torch.allclose(aimed(W, hessian, drift, 1.0).double(), best, atol=1e-4)
        half = W + 0.5 * (best - W.double()).float()
        assert torch.allclose(aimed(W, hessian, drift, 0.5), half, atol=1e-4)


def test_nothing_lost_is_nothing_to_make_up_for(tmp_path: Path) -> None:
    assert original("anything") is None
    folder = tiny_models.build("llama", tmp_path / "m")
    checkpoint = Checkpoint(folder)
    batches = model_inputs(checkpoint.model, token_ids(), 2, seed=0)
    points = sorted({t.point for t in checkpoint.targets if t.point is not None and t.block}, key=str)
    with Walk(checkpoint, batches, aiming=True) as walk:
        for path in walk.blocks(lambda path: original):
            for stats in walk.observe(path, [p for p in points if p.module.startswith(path + ".")]):
                for each in stats.values():
                    assert not each["drift"].sum.any()
                    drift = each["drift"]
                    rows = drift.sum.shape[0] if drift.of_outputs else 3
                    weight = torch.randn(rows, each["hessian"].features)
                    assert torch.equal(aimed(weight, each["hessian"], each["drift"], 1.0), weight)
