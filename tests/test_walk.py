"""The walk shows every Target its own activations, whatever the architecture, and never depends on the threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from llmc.calibration.inputs import model_inputs
from llmc.checkpoint import Checkpoint
from llmc.structure import InputPoint
from llmc.walk import Walk


def hessians(folder: Path, ids: torch.Tensor, **options: Any) -> dict[InputPoint, torch.Tensor]:
    checkpoint = Checkpoint(folder)
    batches = model_inputs(checkpoint.model, ids, 2, seed=0)
    out: dict[InputPoint, torch.Tensor] = {}
    points: dict[str, list[InputPoint]] = {}
    for target in checkpoint.targets:
        if target.point is not None:
            points.setdefault(target.block or target.point.module, []).append(target.point)
    heads = [p for p in points if p not in checkpoint.skeleton.blocks]
    with Walk(checkpoint, batches, doors=heads, **options) as walk:
        for path in walk.blocks(lambda path: lambda name: None, lambda path: False):
            stats = walk.observe(path, sorted(set(points[path]), key=str))
            out |= {point: stat.mean() for point, stat in stats.items()}
    assert all(p.device.type == "meta" for p in checkpoint.model.parameters()), "weights stayed in memory"
    return out


def oracle(folder: Path, ids: torch.Tensor) -> dict[InputPoint, torch.Tensor]:
    """Float64 means of x x^T from hooks on the whole model, experts by their routing."""
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()
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
    for point, hessian in found.items():
        reference = expected[point]
        scale = reference.diagonal().mean()
        assert torch.allclose(hessian.double(), reference, rtol=1e-4, atol=float(scale) * 1e-4), point


def test_layers_with_one_input_share_one_hessian(tmp_path: Path) -> None:
    folder = tiny_models.build("llama", tmp_path / "m")
    checkpoint = Checkpoint(folder)
    batches = model_inputs(checkpoint.model, token_ids(), 2, seed=0)
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj"]
    points = [InputPoint(f"model.layers.0.self_attn.{leaf}") for leaf in leaves]
    with Walk(checkpoint, batches) as walk:
        for path in walk.blocks(lambda path: lambda name: None, lambda path: False):
            stats = walk.observe(path, points) if path.endswith(".0") else {}
            if stats:
                q, k, v, o = (stats[p] for p in points)
                assert q is k and k is v and o is not q


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 3}, {"workers": 2, "memory": 0}])
@pytest.mark.parametrize("name", ["llama", "t5", "qwen3-moe"])
def test_result_does_not_depend_on_threads_or_spilling(name: str, options: dict[str, int], tmp_path: Path) -> None:
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
        list(walk.blocks(lambda path: lambda name: None, lambda path: False))
