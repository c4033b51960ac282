"""The walk shows every Target its own activations, whatever the architecture, and never depends on the threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import tiny_models
import torch

from llmc.calibration.inputs import model_inputs
from llmc.calibration.walk import Walk
from llmc.models.checkpoint import Checkpoint
from llmc.targets import InputPoint

Change = Callable[[Any], None]


def original(name: str) -> None:
    """No other values than the file's."""


def hessians(
    folder: Path, ids: torch.Tensor, change: Change = lambda model: None, halved: Sequence[str] = (), **options: Any
) -> dict[InputPoint, torch.Tensor]:
    """What the walk finds; layers whose names are in `halved` get half their weights once they were seen."""
    checkpoint = Checkpoint(folder)
    change(checkpoint.model)
    batches = model_inputs(checkpoint.model, ids, 2, seed=0)
    out: dict[InputPoint, torch.Tensor] = {}
    points: dict[str, list[InputPoint]] = {}
    for target in checkpoint.targets:
        if target.point is not None:
            points.setdefault(target.block or target.point.module, []).append(target.point)

    def half(name: str) -> torch.Tensor | None:
        return checkpoint.tensor(name) / 2 if any(part in name for part in halved) else None

    heads = [p for p in points if p not in checkpoint.skeleton.blocks]
    with Walk(checkpoint, batches, doors=heads, **options) as walk:
        for path in walk.blocks(lambda path: original):
            for stats in walk.observe(path, sorted(set(points[path]), key=str)):
                assert not out.keys() & stats.keys()
                out |= {point: each["hessian"].mean() for point, each in stats.items()}
                walk.refill({p.module for p in stats}, half)
    assert all(p.device.type == "meta" for p in checkpoint.model.parameters()), "weights stayed in memory"
    return out


def oracle(folder: Path, ids: torch.Tensor, change: Change = lambda model: None) -> dict[InputPoint, torch.Tensor]:
    """Float64 means of x x^T from hooks on the whole model, experts by their routing."""
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()
    change(model)
    seen: dict[InputPoint, list[torch.Tensor]] = {}

    def keep(point: InputPoint, x: torch.Tensor) -> None:
        seen.setdefault(point, []).append(x.detach().reshape(-1, x.shape[-1]).double())

    def experts_hook(path: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, index = (*args, *kwargs.values())[:2]
            for expert in range(module.num_experts):
                x = hidden[(index == expert).any(-1)]
                gate, up = (x @ module.gate_up_proj[expert].T).chunk(2, -1)
                keep(InputPoint(path, expert, "gate_up_proj"), x)
                keep(InputPoint(path, expert, "down_proj"), module.act_fn(gate) * up)

        return hook

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_pre_hook(lambda m, a, p=path: keep(InputPoint(p), a[0]))
        elif type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(experts_hook(path), with_kwargs=True)
    with torch.no_grad():
        for batch in model_inputs(model, ids, 2, seed=0):
            model(**batch)
    return {p: torch.cat(x).T @ torch.cat(x) / len(torch.cat(x)) for p, x in seen.items() if len(torch.cat(x))}


def token_ids(rows: int = 6, columns: int = 24) -> torch.Tensor:
    return torch.randint(3, tiny_models.VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(tiny_models.SPECS))
def test_every_target_sees_its_own_inputs(name: str, tmp_path: Path) -> None:
    folder = tiny_models.build(name, tmp_path / name)
    found, expected = hessians(folder, token_ids()), oracle(folder, token_ids())
    checkpoint = Checkpoint(folder)
    wanted = {t.point for t in checkpoint.targets if t.point is not None}
    assert set(found) == {p for p in wanted if p in expected}
    same(found, expected)


def same(found: dict[InputPoint, torch.Tensor], expected: dict[InputPoint, torch.Tensor]) -> None:
    for point, hessian in found.items():
        reference = expected[point]
        scale = reference.diagonal().mean()
        assert torch.allclose(hessian.double(), reference, rtol=1e-4, atol=float(scale) * 1e-4), point


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"memory": 0}])
@pytest.mark.parametrize("name", ["llama", "phi", "qwen3-moe", "t5", "whisper"])
def test_inputs_have_come_through_layers_as_they_will_be(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Some layers are halved when they were seen: what others see is what they see in a model where these are half."""
    folder = tiny_models.build(name, tmp_path / "m")
    halved = ("q_proj", "v_proj", "gate_proj", "up_proj", "fc1", "SelfAttention.v", "wi")

    def change(model: Any) -> None:
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if any(part in path for part in halved):
                    parameter.div_(2)

    found = hessians(folder, token_ids(), halved=halved, **options)
    same(found, oracle(folder, token_ids(), change))


def twice(self: Any, x: torch.Tensor) -> torch.Tensor:
    """An MLP whose last layer is run twice."""
    inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(inner) + self.down_proj(inner / 3)


def seldom(self: Any, x: torch.Tensor) -> torch.Tensor:
    """An MLP some of whose layers are run for some batches only."""
    inner = self.act_fn(self.gate_proj(x))
    if x[0, 0, 0] > 0:
        inner = inner * self.up_proj(x + 1)
    return self.down_proj(inner)


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"memory": 0}])
@pytest.mark.parametrize("forward", [twice, seldom])
def test_blocks_that_are_not_a_plain_row_of_layers(forward: Any, options: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path / "m")

    def change(model: Any) -> None:
        for path, module in model.named_modules():
            if path.endswith("mlp"):
                module.forward = MethodType(forward, module)

    for shift in range(3):  # so that batches differ in which of them comes first
        ids = token_ids().roll(shift, 0)
        found, expected = hessians(folder, ids, change, **options), oracle(folder, ids, change)
        assert found.keys() == {p for p in expected if p.module != "lm_head"}
        same(found, expected)


def test_layers_with_one_input_share_one_hessian(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path / "m")
    checkpoint = Checkpoint(folder)
    batches = model_inputs(checkpoint.model, token_ids(), 2, seed=0)
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj"]
    points = [InputPoint(f"model.layers.0.self_attn.{leaf}") for leaf in leaves]
    with Walk(checkpoint, batches) as walk:
        for path in walk.blocks(lambda path: original):
            if path.endswith(".0"):
                (q, k, v), (o,) = (stats.values() for stats in walk.observe(path, points))
                assert q is k and k is v and o is not q


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 3}, {"workers": 2, "memory": 0}])
@pytest.mark.parametrize("name", ["llama", "t5", "qwen3-moe"])
def test_result_does_not_depend_on_threads_or_spilling(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_models.build(name, tmp_path / "m")
    one = hessians(folder, token_ids(), workers=1)
    other = hessians(folder, token_ids(), **options)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[p], other[p]) for p in one)


def test_a_failing_forward_is_reported_and_stops_the_others(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path / "m")
    checkpoint = Checkpoint(folder)
    bad = [{"input_ids": torch.full((1, 4), 3)}, {"input_ids": torch.full((1, 4), tiny_models.VOCABULARY)}]
    with pytest.raises(IndexError), Walk(checkpoint, bad, workers=2) as walk:
        list(walk.blocks(lambda path: original))
