"""Models that must be refused, through the command line: one exact line, one exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from spoiled import Command, Tensors, change_config, change_tensors, partial

DOWN = "model.layers.1.mlp.down_proj.weight"
BELONG = "check that config.json belongs to these weights"
DAMAGED = "the file is damaged: download it again"

Spoil = Callable[[Path], object]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("bad") / "model")


@pytest.fixture
def model(intact: Path, tmp_path: Path) -> Path:
    """A copy, to spoil."""
    return Path(shutil.copytree(intact, tmp_path / "model"))


def refused(command: Command, model: Path, line: str, *more: str, code: int = 2, kind: str = "checkpoint") -> None:
    """`quantize` and `plan` end with exactly `line` on stderr, and leave nothing."""
    out = model.parent / "out"
    words = (model, "--method", "rtn", "--group-size", "32", *more)
    outcome = command("quantize", *words, "-o", out, "--json")
    assert (outcome.code, outcome.line) == (code, f"error: {line}")
    error = outcome.error
    where, fix = f"{error['where']}: " if error["where"] else "", f"; {error['fix']}" if error["fix"] else ""
    assert f"{where}{error['message']}{fix}" == line
    assert error["kind"] == kind
    assert not out.exists()
    assert not partial(out).exists()


def config(**changes: Any) -> Spoil:
    return lambda folder: change_config(folder, **changes)


def content(data: bytes) -> Spoil:
    return lambda folder: (folder / "config.json").write_bytes(data)


def fifo(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


RANGE = "expected an integer from 1 to"
CONFIGS: list[tuple[str, Spoil, str]] = [
    ("none", lambda f: (f / "config.json").unlink(), "config.json is missing; give a Hugging Face model folder"),
    ("fifo", fifo, "config.json is missing; give a Hugging Face model folder"),
    ("cut", content(b'{"a":'), "config.json is not JSON: Expecting value: line 1 column 6 (char 5)"),
    ("list", content(b"[1]"), "config.json is not a JSON object"),
    ("big", content(b'{"a": "' + b"x" * 10_000_000 + b'"}'), "config.json has 10000009 bytes, more than 10000000"),
    ("hidden 0", config(hidden_size=0), f"config.json: hidden_size is 0, {RANGE} 134217728"),
    ("hidden text", config(hidden_size="64"), f'config.json: hidden_size is "64", {RANGE} 134217728'),
    ("hidden true", config(hidden_size=True), f"config.json: hidden_size is true, {RANGE} 134217728"),
    ("vocabulary", config(vocab_size=1 << 40), f"config.json: vocab_size is 1099511627776, {RANGE} 134217728"),
    ("layers", config(num_hidden_layers=10**12), f"config.json: num_hidden_layers is 1000000000000, {RANGE} 20"),
    ("no layers", config(num_hidden_layers=-1), f"config.json: num_hidden_layers is -1, {RANGE} 20"),
    (
        "nested",
        config(vision={"num_experts": 10**9}),
        "config.json: num_experts is 1000000000, expected an integer from -1 to 4096",
    ),
    (
        "other layers",
        config(num_decoder_layers=10**9),
        "config.json: num_decoder_layers is 1000000000, expected an integer from -1 to 4096",
    ),
    (
        "architecture",
        config(architectures=["FooForCausalLM"]),
        f"transformers {transformers.__version__} has no model FooForCausalLM; upgrade transformers",
    ),
    (
        "not a model",
        config(architectures=["pipeline"]),
        f"transformers {transformers.__version__} has no model pipeline; upgrade transformers",
    ),
    (
        "number",
        config(architectures=[5]),
        "config.json: architectures[0] is not of its type",
    ),
    (
        "text",
        config(architectures="Llama"),
        "config.json: architectures is not of its type",
    ),
    ("quantization", config(quantization_config=5), "config.json: quantization_config is not of its type"),
    ("unnamed", config(architectures=None), 'config.json names no architecture; add "architectures": ["..."]'),
    ("activation", config(hidden_act="nope"), "config.json does not describe a LlamaForCausalLM: 'nope'"),
    (
        "padding",
        config(pad_token_id=10**6),
        "config.json does not describe a LlamaForCausalLM: Padding_idx must be within num_embeddings",
    ),
    (
        "heads",
        config(num_key_value_heads=0),
        "config.json does not describe a LlamaForCausalLM: integer division or modulo by zero",
    ),
    ("dtype", config(dtype="float99"), "config.json is not usable: module 'torch' has no attribute 'float99'"),
    (
        "width",
        config(hidden_size=128),
        f"tensor model.embed_tokens.weight has shape [256, 64], config.json asks for [256, 128]; {BELONG}",
    ),
]


@pytest.mark.parametrize(("spoil", "line"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS])
def test_configs(command: Command, model: Path, spoil: Spoil, line: str) -> None:
    spoil(model)
    refused(command, model, f"model: {line}")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"])
def test_configs_that_python_cannot_read(command: Command, model: Path, data: bytes) -> None:
    (model / "config.json").write_bytes(data)
    outcome = command("plan", model)
    assert outcome.code == 2
    assert outcome.line.startswith("error: model: config.json is not ")


UNSAFE: list[tuple[dict[str, Any], str]] = [
    (
        {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}, "model_type": "evil"},
        "config.json asks to run code that comes with the model (auto_map), which llmc never does; "
        "use a model whose architecture transformers has",
    ),
    (
        {"quantization_config": {"quant_method": "awq"}},
        "the checkpoint is quantized already (awq); start from the original weights",
    ),
    (
        {"quantization_config": {}},
        "the checkpoint is quantized already (unknown); start from the original weights",
    ),
]


@pytest.mark.parametrize(("changes", "line"), UNSAFE)
def test_what_is_never_compressed(command: Command, model: Path, changes: dict[str, Any], line: str) -> None:
    (model / "modeling.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    change_config(model, **changes)
    refused(command, model, f"model: {line}", kind="unsupported")
    assert not (model / "ran").exists()


def test_an_own_artifact_is_refused_too(command: Command, intact: Path, tmp_path: Path) -> None:
    assert command("quantize", intact, "-o", tmp_path / "one", "--method", "rtn", "--group-size", "32").code == 0
    line = "one: the checkpoint is quantized already (compressed-tensors); start from the original weights, "
    refused(
        command,
        tmp_path / "one",
        f"{line}or turn it into plain ones with llmc export --format dense",
        kind="unsupported",
    )


# Tensors


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def with_(name: str, value: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


TENSORS: list[tuple[Callable[[Tensors], object], str]] = [
    (without(DOWN), f"model: tensor {DOWN} is missing: config.json asks for it; download the model again"),
    (
        with_("model.layers.9.x.weight", torch.zeros(2, 2)),
        f"model: tensor model.layers.9.x.weight has no place in LlamaForCausalLM (1 such); {BELONG}",
    ),
    (
        with_("model.layers.9.\x1b[2J.weight", torch.zeros(2, 2)),
        f"model: tensor model.layers.9.\\x1b[2J.weight has no place in LlamaForCausalLM (1 such); {BELONG}",
    ),
    (
        with_(DOWN, torch.zeros(64, 64)),
        f"model: tensor {DOWN} has shape [64, 64], config.json asks for [64, 128]; {BELONG}",
    ),
    (
        with_("model.norm.weight", torch.zeros(0)),
        f"model: tensor model.norm.weight has shape [0], config.json asks for [64]; {BELONG}",
    ),
]


@pytest.mark.parametrize(("change", "line"), TENSORS, ids=range(len(TENSORS)))
def test_tensors(command: Command, model: Path, change: Callable[[Tensors], object], line: str) -> None:
    change_tensors(model, change)
    refused(command, model, line)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_dtypes_that_no_reader_takes(command: Command, model: Path, dtype: torch.dtype) -> None:
    def change(tensors: Tensors) -> None:
        tensors[DOWN] = tensors[DOWN].to(dtype)

    change_tensors(model, change)
    name = str(dtype).removeprefix("torch.")
    line = f"{DOWN}: stored as {name}; llmc compresses bfloat16, float16, float32; add --ignore {DOWN[:-7]}"
    refused(command, model, line, kind="unsupported")
    words = ("--ignore", DOWN[:-7], "--method", "rtn", "--group-size", "32")
    assert command("quantize", model, "-o", model.parent / "out", *words).code == 0


def test_a_model_without_blocks(command: Command, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "num_filters": 4,
        "hidden_size": 16,
        "num_lstm_layers": 1,
        "codebook_size": 16,
        "codebook_dim": 16,
    }
    config = transformers.EncodecConfig(**sizes, upsampling_ratios=[2])
    transformers.EncodecModel(config).save_pretrained(tmp_path / "model")
    line = "model: no blocks found in EncodecModel: no list of modules that hold matrices"
    refused(command, tmp_path / "model", f"{line}; llmc needs a transformers model with a stack of layers")


def test_blocks_without_matrices(command: Command, tmp_path: Path) -> None:
    config = transformers.RegNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], groups_width=4)
    transformers.RegNetForImageClassification(config).save_pretrained(tmp_path / "model")
    line = (
        "model: the blocks of the model hold no matrix that llmc compresses; name others with --targets: classifier.1"
    )
    refused(command, tmp_path / "model", line, kind="unsupported")


# Files, once each: the rest is in the tests of the reader


def overwrite(data: Callable[[bytes], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(data(file.read_bytes()))

    return spoil


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def index(shard: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        listed = {"weight_map": {"model.norm.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))

    return spoil


FILES: list[tuple[str, Spoil, str]] = [
    (
        "header",
        overwrite(lambda data: (1 << 40).to_bytes(8, "little") + data[8:]),
        f"{{}}/model.safetensors: claims a header of 1099511627776 bytes and is {{size}} bytes long; {DAMAGED}",
    ),
    ("empty", overwrite(lambda data: b""), f"{{}}/model.safetensors: empty file; {DAMAGED}"),
    (
        "cut",
        overwrite(lambda data: data[:-10]),
        "{}/model.safetensors: tensor model.norm.weight: ends at byte {whole} of a file of {size}: "
        f"the file is truncated; {DAMAGED}",
    ),
    (
        "shard",
        index("gone.safetensors"),
        "{}/model.safetensors.index.json: tensor model.norm.weight: its shard gone.safetensors is missing; "
        "finish the download",
    ),
    (
        "outside",
        index("../x.safetensors"),
        "{}/model.safetensors.index.json: tensor model.norm.weight: its shard ../x.safetensors is not the name of a "
        ".safetensors file in the folder; a weight_map must not lead elsewhere: do not trust this model",
    ),
    (
        "nothing",
        lambda f: (f / "model.safetensors").unlink(),
        "{}: no weights: neither model.safetensors nor model.safetensors.index.json; "
        "give a folder that holds one of them",
    ),
]


@pytest.mark.parametrize(("spoil", "line"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_files(command: Command, model: Path, spoil: Spoil, line: str) -> None:
    file = model / "model.safetensors"
    whole = file.stat().st_size
    spoil(model)
    size = file.stat().st_size if file.exists() else 0
    refused(command, model, line.format(model, size=size, whole=whole))


def test_a_pickle_comes_with_the_command_that_converts_it(command: Command, model: Path) -> None:
    pickle_only(model)
    outcome = command("quantize", model, "-o", model.parent / "out")
    assert outcome.code == 2
    start = f"error: {model}: weights are pickled (pytorch_model.bin), which can run code when opened; convert them: "
    assert outcome.line.startswith(f'{start}python -c "import sys,torch;')
    assert outcome.line.endswith(f" {model}/model.safetensors {model}/pytorch_model.bin")


def test_paths_that_are_no_model(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fix = "give a model folder or a Hub id like user/name"
    lines = {
        "nowhere": f"{tmp_path}/nowhere: no such folder; {fix}",
        "empty": "empty: config.json is missing; give a Hugging Face model folder",
    }
    for name, line in lines.items():
        for verb in (("plan",), ("quantize", "-o", tmp_path / "out"), ("inspect",)):
            outcome = command(*verb, tmp_path / name)
            assert outcome.code == 2
            if verb != ("inspect",) or name == "nowhere":
                assert outcome.line == f"error: {line}"
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    outcome = command("quantize", "user/name", "-o", tmp_path / "out", "--json")
    line = "error: user/name: the Hub cannot be reached (ConnectError); check the network and try again"
    assert (outcome.code, outcome.line, outcome.error["kind"]) == (3, line, "network")
    assert not (tmp_path / "out").exists()
