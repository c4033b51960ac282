"""What errors cost a model, against the KL divergence of small errors of one matrix at a time, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from reading import model_class

from llmc.calibration.inputs import model_inputs
from llmc.calibration.sensitivity import kl_losses
from llmc.models.checkpoint import Checkpoint
from llmc.targets import Target

BATCHES, SIZE, LENGTH = 96, 1, 24
EXPERTS = ("mixtral", "qwen3-moe")
CASES = {
    "llama": ("q_proj", "down_proj", "embed_tokens"),
    "llama-untied": ("lm_head", "embed_tokens", "up_proj"),
    "gpt2": ("h.0.attn.c_attn", "h.1.attn.c_proj", "h.1.mlp.c_fc", "wte"),
    "qwen3-moe": ("layers.0.self_attn.o_proj", "layers.0.mlp.experts.1.gate_proj", "layers.1.mlp.experts.2.down_proj"),
    "mixtral": ("layers.1.self_attn.v_proj", "layers.0.block_sparse_moe.experts.3.w2"),
    "t5": ("encoder.block.0.layer.1.DenseReluDense.wo", "decoder.block.1.layer.2.DenseReluDense.wo"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("models")

    def build(name: str) -> Path:
        changes = {"num_experts_per_tok": 4} if name in EXPERTS else {}  # all: which ones were chosen would be a jump
        if not (place / name).exists():
            tiny_models.build(name, place / name, dtype=torch.float32, **changes)
        return place / name

    return build


def batches_of(checkpoint: Checkpoint, count: int = BATCHES) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 200, (count * SIZE, LENGTH), generator=torch.Generator().manual_seed(5))
    return model_inputs(checkpoint.model, ids, SIZE, seed=0)


def picked(checkpoint: Checkpoint, endings: tuple[str, ...]) -> list[Target]:
    """The first Target of each ending."""
    return [next(t for t in checkpoint.targets if t.name.endswith(ending)) for ending in endings]


def changed(checkpoint: Checkpoint, targets: list[Target], size: float = 3e-3) -> dict[str, torch.Tensor]:
    """Each Target's tensor with random errors, `size` of what its weights are."""
    draw, out = torch.Generator().manual_seed(1), {}
    for target in targets:
        tensor = checkpoint.tensor(target.tensor)
        out[target.tensor] = tensor + size * tensor.std() * torch.randn(tensor.shape, generator=draw)
    return out


def whole(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], place: Path) -> Any:
    """transformers' own model in float64, with these tensors instead of its own."""
    from safetensors.torch import load_file, save_file

    source = checkpoint.folder
    for file in source.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (place / file.name).write_bytes(file.read_bytes())
    held = load_file(source / "model.safetensors")
    save_file({**held, **tensors}, place / "model.safetensors", {"format": "pt"})
    return model_class(place).from_pretrained(place, dtype=torch.float64, experts_implementation="eager").eval()


@torch.no_grad()
def true_kl(model: Any, other: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Nats per token of KL(model || other), the mean over all batches."""
    sums, tokens = 0.0, 0
    for batch in batches:
        p, q = (m(**batch).logits.log_softmax(-1) for m in (model, other))
        sums += float((p.exp() * (p - q)).sum())
        tokens += p.shape[:-1].numel()
    return sums / tokens


@pytest.mark.parametrize("name", CASES)
def test_estimates_the_divergence_of_small_errors(name: str, folder: Any, tmp_path: Path) -> None:
    """Each matrix by itself; an embedding that is tied counts as both."""
    checkpoint = Checkpoint(folder(name))
    batches, targets = batches_of(checkpoint), picked(checkpoint, CASES[name])
    errors = changed(checkpoint, targets)
    losses = kl_losses(checkpoint, targets, errors.get, batches)
    assert list(losses) == [t.tensor for t in targets]
    for where in ("original", "changed"):
        (tmp_path / where).mkdir()
    model = whole(checkpoint, {}, tmp_path / "original")
    for target in targets:
        other = whole(checkpoint, {target.tensor: errors[target.tensor]}, tmp_path / "changed")
        expected = true_kl(model, other, batches[:32])
        assert losses[target.tensor] == pytest.approx(expected, rel=0.4), target.name
        assert expected > 1e-9


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "weightedmean_tokens"])
def test_a_model_without_logits_is_judged_by_its_vector(pooling: str, tmp_path: Path) -> None:
    """Unit noise on every number: the divergence is half of the squared difference. What is not known is the mean."""
    from transformers import BertModel

    place = tmp_path / "bert"
    tiny_models.build("bert", place, dtype=torch.float32)
    BertModel.from_pretrained(place).save_pretrained(place)
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    checkpoint = Checkpoint(place)
    batches = batches_of(checkpoint)
    targets = picked(checkpoint, ("layer.0.attention.self.query", "layer.1.output.dense", "word_embeddings"))
    errors = changed(checkpoint, targets)
    losses = kl_losses(checkpoint, targets, errors.get, batches)
    for where in ("original", "changed"):
        (tmp_path / where).mkdir()
    model = whole(checkpoint, {}, tmp_path / "original")
    for target in targets:
        other = whole(checkpoint, {target.tensor: errors[target.tensor]}, tmp_path / "changed")
        with torch.no_grad():
            pairs = [[m(**batch).last_hidden_state for m in (model, other)] for batch in batches]
        moved = [(a - b)[:, 0] if pooling == "cls_token" else (a - b).mean(1) for a, b in pairs]
        expected = sum(float(each.square().sum()) / 2 / len(each) for each in moved) / len(moved)
        assert losses[target.tensor] == pytest.approx(expected, rel=0.4), target.name


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "whisper", "mixtral"])
def test_every_matrix_has_a_loss_and_nothing_stays(name: str, folder: Any) -> None:
    """All parameters are given up, and blocks run as they did."""
    checkpoint = Checkpoint(folder(name))
    targets = [t for t in checkpoint.targets if not t.name.endswith(("relative_attention_bias", "embed_positions"))]
    before = {n: m.forward for n, m in checkpoint.model.named_modules()}
    losses = kl_losses(checkpoint, targets, changed(checkpoint, targets).get, batches_of(checkpoint, 4))
    silent = [n for n, loss in losses.items() if not loss > 0]
    assert not silent and len(losses) == len(targets)
    assert all(p.device.type == "meta" and p.grad is None for p in checkpoint.model.parameters())
    assert all(m.forward == before[n] for n, m in checkpoint.model.named_modules())


def test_no_more_than_a_block_is_loaded(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(folder("llama"))
    blocks, most = checkpoint.skeleton.blocks, []
    fill = checkpoint.fill

    def counting(*args: Any, **options: Any) -> Any:
        fill(*args, **options)
        loaded = {n for n, p in checkpoint.model.named_parameters() if p.device.type != "meta"}
        most.append(sum(any(n.startswith(path + ".") for n in loaded) for path in blocks))

    monkeypatch.setattr(checkpoint, "fill", counting)
    kl_losses(checkpoint, checkpoint.targets, changed(checkpoint, checkpoint.targets).get, batches_of(checkpoint, 2))
    assert max(most) == 1 and most.count(1) == 2 * (2 * len(blocks))


def test_no_error_no_loss_and_four_times_for_twice_the_error(folder: Any) -> None:
    checkpoint = Checkpoint(folder("llama"))
    batches, targets = batches_of(checkpoint, 4), picked(checkpoint, CASES["llama"])
    size = {n: kl_losses(checkpoint, targets, changed(checkpoint, targets, n).get, batches) for n in (0.0, 1e-3, 2e-3)}
    assert set(size[0.0].values()) == {0.0}
    assert kl_losses(checkpoint, targets, lambda name: None, batches) == size[0.0]
    for name, loss in size[1e-3].items():
        assert size[2e-3][name] == pytest.approx(4 * loss, rel=1e-3)


def test_the_seed_decides(folder: Any) -> None:
    checkpoint = Checkpoint(folder("gpt2"))
    batches, targets = batches_of(checkpoint, 3), picked(checkpoint, CASES["gpt2"])
    errors = changed(checkpoint, targets)
    one, same, other = (kl_losses(checkpoint, targets, errors.get, batches, seed=s) for s in (1, 1, 2))
    assert one == same and one != other


def test_a_model_that_fails_is_put_back(folder: Any) -> None:
    checkpoint = Checkpoint(folder("llama"))

    def broken(name: str) -> torch.Tensor:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        kl_losses(checkpoint, checkpoint.targets, broken, batches_of(checkpoint, 1))
    assert all(p.device.type == "meta" for p in checkpoint.model.parameters())
    assert not any("forward" in vars(module) for module in checkpoint.model.modules())
