"""Weights out of the ordinary: NaN and Inf, extremes, ties stored in odd ways, sizes that nothing divides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file
from spoiled import Command, Tensors, change_tensors, copy, partial

from llmc.models.checkpoint import Checkpoint

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
RTN = ("--method", "rtn", "--group-size", "32")
KEEP = "--allow-nonfinite keeps that tensor as it is"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny_models.corpus(folder)
    return tiny_models.build("llama", folder / "model")


@pytest.fixture
def model(intact: Path, tmp_path: Path) -> Path:
    return copy(intact, tmp_path / "model")


def gptq(intact: Path) -> tuple[str, ...]:
    text = str(intact.parent / "corpus.txt")
    sizes = ("--num-samples", "2", "--sequence-length", "32")
    return ("--method", "gptq", "--group-size", "32", "--calibration", text, *sizes)


def manifest(out: Path) -> Any:
    return json.loads((out / "llmc.json").read_text())


def spoil_target(tensors: Tensors) -> None:
    tensors[DOWN][3, 5] = float("nan")
    tensors[DOWN][7, 0] = float("inf")


def spoil_raw(tensors: Tensors) -> None:
    tensors["model.norm.weight"][5] = float("-inf")


def spoil_embedding(tensors: Tensors) -> None:
    tensors[EMBED][255, 63] = float("nan")


NONFINITE = [
    (spoil_target, f"{DOWN}: 2 of 8192 values are NaN or Inf, the first at [3, 5]; {KEEP}"),
    (spoil_raw, f"model.norm.weight: 1 of 64 values are NaN or Inf, the first at [5]; {KEEP}"),
    (spoil_embedding, f"{EMBED}: 1 of 16384 values are NaN or Inf, the first at [255, 63]; {KEEP}"),
]


@pytest.mark.parametrize(("change", "line"), NONFINITE, ids=["target", "raw", "embedding"])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_nan_and_inf_are_refused(
    command: Command, model: Path, intact: Path, change: Any, line: str, method: str
) -> None:
    change_tensors(model, change)
    out = model.parent / "out"
    outcome = command("quantize", model, "-o", out, *(RTN if method == "rtn" else gptq(intact)), "--json")
    assert (outcome.code, outcome.line, outcome.error["kind"]) == (2, f"error: {line}", "checkpoint")
    assert not out.exists()
    assert not partial(out).exists()


@pytest.mark.parametrize("change", [c for c, _ in NONFINITE], ids=["target", "raw", "embedding"])
def test_nan_and_inf_are_kept_on_request(command: Command, model: Path, change: Any) -> None:
    change_tensors(model, change)
    before = load_file(model / "model.safetensors")
    out = model.parent / "out"
    outcome = command("quantize", model, "-o", out, *RTN, "--allow-nonfinite", "--json")
    assert outcome.code == 0
    after = load_file(out / "model.safetensors")
    kept = [n for n in after if after[n].is_floating_point() and not bool(torch.isfinite(after[n]).all())]
    assert kept == [n for n, t in before.items() if not bool(torch.isfinite(t).all())]
    assert all(after[n].view(torch.int16).equal(before[n].view(torch.int16)) for n in kept)
    notes = [f"{DOWN} is kept as it is: 2 NaN or Inf, the first at [3, 5]"] if kept == [DOWN] else []
    assert json.loads(outcome.out)["notes"] == manifest(out)["notes"] == notes
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert (DOWN.removesuffix(".weight") in ignored) == (kept == [DOWN])
    assert command("verify", out, "--against", model).code == 0


def test_nothing_to_keep(command: Command, model: Path) -> None:
    change_tensors(model, spoil_target)
    words = ("--targets", DOWN, "--allow-nonfinite")
    outcome = command("quantize", model, "-o", model.parent / "out", *RTN, *words)
    assert (outcome.code, outcome.line) == (2, "error: model: every targeted matrix holds NaN or Inf")


def zeros(tensors: Tensors) -> None:
    tensors[DOWN].zero_()
    tensors[UP][3].zero_()


def subnormal(tensors: Tensors) -> None:
    tensors[DOWN].fill_(9e-41)
    tensors[UP][3] = -9e-41


def largest(tensors: Tensors) -> None:
    most = torch.finfo(torch.bfloat16).max
    tensors[DOWN].fill_(most)
    tensors[UP][3] = -most
    tensors[UP][4] = torch.tensor([most, -most] * 32)


VARIANTS = [RTN, (*RTN, "--asymmetric"), (*RTN, "--bits", "8"), (*RTN, "--format", "gptq"), (*RTN, "-O", "grid=nf4")]


@pytest.mark.parametrize("words", VARIANTS, ids=lambda words: " ".join(words[4:]) or "default")
@pytest.mark.parametrize("change", [zeros, subnormal, largest])
def test_extremes_give_finite_values(command: Command, model: Path, change: Any, words: tuple[str, ...]) -> None:
    change_tensors(model, change)
    out, dense = model.parent / "out", model.parent / "dense"
    if change is largest and "gptq" in words:
        outcome = command("quantize", model, "-o", out, *words)
        line = "error: model.layers.0.mlp.up_proj: its values do not fit float16, in which its readers decode; "
        assert (outcome.code, outcome.line) == (2, f"{line}use another --format, or --ignore it")
        return
    if "grid=nf4" in words:
        words = (*words, "--format", "bitsandbytes")
    assert command("quantize", model, "-o", out, *words).code == 0
    assert command("verify", out, "--against", model).code == 0
    assert command("export", out, "--format", "dense", "-o", dense).code == 0
    for file in (out, dense):
        tensors = load_file(file / "model.safetensors")
        assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
    if change is zeros:
        assert not load_file(dense / "model.safetensors")[DOWN].any()


@pytest.mark.parametrize("change", [zeros, subnormal])
def test_extremes_through_gptq(command: Command, model: Path, intact: Path, change: Any) -> None:
    change_tensors(model, change)
    out = model.parent / "out"
    assert command("quantize", model, "-o", out, *gptq(intact)).code == 0
    assert command("verify", out, "--against", model).code == 0
    tensors = load_file(out / "model.safetensors")
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


# Ties


def twice(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBED].clone()


def under_the_other_name(tensors: Tensors) -> None:
    tensors[HEAD] = tensors.pop(EMBED)


def different(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBED] + 1


TIES = [(twice, [EMBED]), (under_the_other_name, [HEAD]), (different, [HEAD, EMBED])]


@pytest.mark.parametrize(("change", "names"), TIES, ids=["twice", "other name", "different"])
def test_ties(command: Command, model: Path, intact: Path, change: Any, names: list[str]) -> None:
    """A tied tensor is written once, under the name it has; two different ones are no tie, as for transformers."""
    change_tensors(model, change)
    out = model.parent / "out"
    assert command("quantize", model, "-o", out, *gptq(intact)).code == 0
    stored = load_file(out / "model.safetensors")
    assert [name for name in stored if name in (HEAD, EMBED)] == names
    before = load_file(model / "model.safetensors")
    assert all(torch.equal(stored[name], before[name]) for name in names)
    assert command("verify", out, "--against", model).code == 0
    planned = json.loads(command("plan", model, *gptq(intact), "--json").out)
    assert planned["files"] == {"model.safetensors": (out / "model.safetensors").stat().st_size}


@pytest.mark.parametrize(("change", "names"), TIES, ids=["twice", "other name", "different"])
def test_tied_parameters_are_loaded_as_transformers_loads_them(model: Path, change: Any, names: list[str]) -> None:
    change_tensors(model, change)
    checkpoint = Checkpoint(model)
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for key in (EMBED, HEAD):
        checkpoint.fill([key], torch.float32, "cpu", lambda name: None)
        assert torch.equal(checkpoint.model.get_parameter(key), reference.get_parameter(key))
    assert bool(checkpoint.skeleton.ties) == (change is not different)


# Sizes


def test_odd_sizes_per_channel(command: Command, tmp_path: Path) -> None:
    """A channel may have any number of columns; words are padded, and the public reader drops the padding."""
    sizes: dict[str, Any] = {
        "hidden_size": 62,
        "intermediate_size": 37,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = tiny_models.build("llama", tmp_path / "odd", **sizes, head_dim=10)
    for bits in ("3", "4"):
        out, dense = tmp_path / f"out{bits}", tmp_path / f"dense{bits}"
        words = ("--method", "rtn", "--bits", bits, "--group-size", "channel")
        assert command("quantize", model, "-o", out, *words).code == 0
        assert command("verify", out, "--against", model).code == 0
        assert command("export", out, "--format", "dense", "-o", dense).code == 0
        read_alike(transformers.AutoModelForCausalLM, out, dense)


def read_alike(kind: Any, packed: Path, dense: Path) -> None:
    """The official reader decompresses `packed` to what the plain model `dense` holds."""
    pytest.importorskip("compressed_tensors")
    config = transformers.CompressedTensorsConfig(dequantize=True)
    one = kind.from_pretrained(packed, quantization_config=config).state_dict()
    other = kind.from_pretrained(dense).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("rows", [1, 3])
def test_matrices_of_few_rows(command: Command, intact: Path, tmp_path: Path, rows: int) -> None:
    model = classifier(intact, tmp_path / "model", rows)
    targets = ("--targets", "score", "--targets", "*_proj")
    out, dense = tmp_path / "out", tmp_path / "dense"
    assert command("quantize", model, "-o", out, *RTN, *targets).code == 0
    assert load_file(out / "model.safetensors")["score.weight_packed"].shape == (rows, 8)
    assert command("verify", out, "--against", model).code == 0
    assert command("export", out, "--format", "dense", "-o", dense).code == 0
    read_alike(transformers.AutoModelForSequenceClassification, out, dense)
    assert command("quantize", model, "-o", out, *gptq(intact), *targets, "--asymmetric", "--force").code == 0
    assert command("verify", out).code == 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_tensor_without_elements_is_kept(command: Command, intact: Path, tmp_path: Path) -> None:
    model = classifier(intact, tmp_path / "model", 0)
    out = tmp_path / "out"
    assert command("quantize", model, "-o", out, *RTN).code == 0
    assert load_file(out / "model.safetensors")["score.weight"].shape == (0, 64)
    assert command("verify", out, "--against", model).code == 0
    assert "no matrix is named 'score'" in command("plan", model, *RTN, "--targets", "score").line


def classifier(intact: Path, folder: Path, labels: int) -> Path:
    config = transformers.AutoConfig.from_pretrained(intact, num_labels=labels)
    model: Any = transformers.LlamaForSequenceClassification(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_models.byte_tokenizer().save_pretrained(folder)
    return folder
