"""Folders of every origin open with exactly their weights, or with one line that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build

from llmc.errors import LlmcError
from llmc.eval.measures.sizes import folder_sizes
from llmc.models.open import open_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path) -> str:
    with pytest.raises(LlmcError) as caught:
        open_model(folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def weights(bits: int, group_size: int, symmetric: bool = True) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group_size}


def compress(source: Path, out: Path, groups: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Write a pack-quantized folder with the official compressor; returns the decoded weights by module."""
    from compressed_tensors.compressors import BaseCompressor, ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    fields = {"config_groups": groups, "ignore": ["lm_head"], "format": "pack-quantized"}
    config = QuantizationConfig(**fields, quantization_status=QuantizationStatus.INITIALIZED)
    apply_quantization_config(model, config)
    decoded: dict[str, torch.Tensor] = {}
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        grouped = module.weight.data.unflatten(1, (-1, scheme.weights.group_size))
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
        module.weight_scale.data = scale.to(torch.bfloat16)
        if not scheme.weights.symmetric:
            module.weight_zero_point.data = zero.to(torch.int8)
        compressor: Any = BaseCompressor.get_value_from_registry("pack-quantized")
        state = {key: value.detach().clone() for key, value in module.state_dict().items()}
        decoded[name] = compressor.decompress(compressor.compress(state, scheme), scheme)["weight"]
    writer = ModelCompressor(quantization_config=config)
    writer.compress_model(model)
    model.save_pretrained(out)
    writer.update_config(str(out))
    for file in source.glob("tokenizer*"):
        shutil.copy(file, out)
    return decoded


GROUPS = {
    "one": {"group_0": {"targets": ["Linear"], "weights": weights(4, 32), "format": "pack-quantized"}},
    "zero points": {"group_0": {"targets": ["Linear"], "weights": weights(4, 32, False), "format": "pack-quantized"}},
    "mixed": {
        "group_0": {"targets": ["re:.*attn.*"], "weights": weights(8, 32), "format": "pack-quantized"},
        "group_1": {"targets": ["re:.*mlp.*"], "weights": weights(3, 64), "format": "pack-quantized"},
    },
}


@pytest.mark.parametrize("kind", GROUPS)
def test_compressed_tensors_open_with_the_official_values(
    llama: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    decoded = compress(llama, tmp_path / "ct", GROUPS[kind])
    capfd.readouterr()
    model, _ = open_model(tmp_path / "ct")
    assert capfd.readouterr() == ("", "")
    assert len(decoded) == 14
    for name, value in decoded.items():
        weight = model.get_submodule(name).weight
        assert weight.dtype == torch.float32
        assert torch.equal(weight, value.float()), name
        assert value.unique().numel() > 8
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(torch.arange(10)[None]).logits.dtype == torch.float32


def test_bits_per_weight_of_a_packed_folder(llama: Path, tmp_path: Path) -> None:
    compress(llama, tmp_path / "ct", GROUPS["one"])
    dense, packed = folder_sizes(llama), folder_sizes(tmp_path / "ct")
    linears = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128)
    rest = 256 * 64 + 5 * 64  # tied embedding once, norms
    assert dense.elements == packed.elements == linears + rest
    assert dense.bits_per_weight == 16
    # 4-bit codes, a bf16 scale for 32 weights, two int64 of shape for each of 14 matrices
    assert packed.stored_bits == linears * 4 + linears // 32 * 16 + 14 * 128 + rest * 16
    assert packed.weight_bytes == (tmp_path / "ct" / "model.safetensors").stat().st_size > packed.stored_bits / 8


def test_nf4_opens_with_the_values_of_bitsandbytes(llama: Path, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantized = AutoModelForCausalLM.from_pretrained(llama, quantization_config=settings, dtype=torch.bfloat16)
    quantized.save_pretrained(tmp_path / "nf4")
    shutil.copy(llama / "tokenizer.json", tmp_path / "nf4")
    shutil.copy(llama / "tokenizer_config.json", tmp_path / "nf4")
    model, _ = open_model(tmp_path / "nf4")
    for layer, other in zip(model.model.layers, quantized.model.layers, strict=True):
        packed = other.mlp.up_proj.weight
        decoded = functional.dequantize_4bit(packed.data, packed.quant_state)
        assert torch.equal(layer.mlp.up_proj.weight, decoded.float())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["llama-untied", "gpt2", "opt", "gpt-neox", "gemma", "mixtral"])
def test_dense_folders_open_in_float32_with_their_own_weights(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    build(name, tmp_path / "m")
    capfd.readouterr()
    model, tokenizer = open_model(tmp_path / "m")
    assert capfd.readouterr() == ("", "")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    stored = sum(t.double().abs().sum().item() for t in load_file(tmp_path / "m" / "model.safetensors").values())
    assert sum(p.double().abs().sum().item() for p in model.parameters()) == pytest.approx(stored, rel=1e-12)
    assert tokenizer("ab").input_ids
    assert folder_sizes(tmp_path / "m").elements == sum(p.numel() for p in model.parameters())


def test_dtype_is_that_of_the_computation(llama: Path) -> None:
    model, _ = open_model(llama, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_missing_and_misshapen_tensors_are_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(63, dtype=torch.bfloat16)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert refusal(copy) == (
        "copy: its weights are not those its config.json describes (missing: model.layers.0.mlp.up_proj.weight, "
        "wrong shape: model.norm.weight [63] instead of [64]); random numbers would stand in for them"
    )


def test_a_packed_folder_with_a_missing_tensor(llama: Path, tmp_path: Path) -> None:
    compress(llama, tmp_path / "ct", GROUPS["one"])
    tensors = load_file(tmp_path / "ct" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_packed"]
    save_file(tensors, tmp_path / "ct" / "model.safetensors", metadata={"format": "pt"})
    message = refusal(tmp_path / "ct")
    assert message.startswith("ct: ")
    assert "random" in message or "cannot load it" in message


def test_many_missing_tensors_are_counted(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=3)
    message = refusal(copy)
    assert "missing: model.layers.2.input_layernorm.weight, " in message and " and 5 more)" in message


def test_code_in_a_folder_is_never_run(copy: Path, llama: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (copy / "modeling_own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    edit_config(copy, auto_map={"AutoModelForCausalLM": "modeling_own.Own"}, model_type="own")
    assert refusal(copy) == (
        "copy: config.json asks to run code that comes with the model (auto_map), which llmc never does; "
        "use a model whose architecture transformers has"
    )
    shutil.copy(llama / "config.json", copy)
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text(f"open({str(mark)!r}, 'w')\n")
    open_model(copy)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"vision": {"trust_remote_code": True}},
            "copy: config.json asks to run code that comes with the model (trust_remote_code), which llmc never does; "
            "use a model whose architecture transformers has",
        ),
        (
            {"attn_implementation": "someone/attention"},
            "copy: config.json asks for 'someone/attention' (attn_implementation), which may be fetched as code; "
            "take attn_implementation out of config.json, or set it to eager or sdpa",
        ),
        (
            {"quantization_config": {"quant_method": "own"}},
            "copy: no installed reader for quant_method 'own'; decode it first: llmc export --format dense",
        ),
        (
            {"architectures": ["LlamaModel"]},
            "copy: 'LlamaModel' has no language-model head; perplexity and KL need a decoder with its head "
            "(a ...ForCausalLM); inspect and verify take any model",
        ),
        (
            {"model_type": "own", "architectures": None},
            "copy: model type 'own' is not one that transformers has a language model for; perplexity and KL need a "
            "decoder with its head (a ...ForCausalLM); inspect and verify take any model",
        ),
    ],
)
def test_configs_that_cannot_be_opened(copy: Path, changes: dict[str, Any], line: str) -> None:
    edit_config(copy, **changes)
    assert refusal(copy) == line


def test_quantized_activations_are_refused(copy: Path) -> None:
    group = {"targets": ["Linear"], "weights": weights(8, 32), "input_activations": {"num_bits": 8}}
    edit_config(copy, quantization_config={"quant_method": "compressed-tensors", "config_groups": {"g": group}})
    assert refusal(copy) == "copy: its activations are quantized too, and only quantized weights can be evaluated"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("bert", "it predicts no next token"),
        ("t5", "it predicts no next token"),
        ("whisper", "'whisper' is an encoder-decoder model, but not one of text"),
    ],
)
def test_models_that_do_not_continue_text(tmp_path: Path, name: str, problem: str) -> None:
    assert refusal(build(name, tmp_path / "m")) == (
        f"m: {problem}; perplexity and KL need a decoder with its head (a ...ForCausalLM); "
        "inspect and verify take any model"
    )


def test_no_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    message = refusal(copy)
    assert message.startswith("copy: no tokenizer that transformers can read: ")
    assert message.endswith("; copy tokenizer.json and tokenizer_config.json of the original into it")


def test_an_adapter_is_not_a_model(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    assert refusal(copy) == (
        "copy: an adapter lies in it (adapter_config.json), which is not merged into a model; "
        "merge it into its base model first, or move its files away to take the base model alone"
    )


def test_an_index_that_leaves_the_folder(copy: Path, llama: Path) -> None:
    names = dict.fromkeys(load_file(copy / "model.safetensors"), "../llama/model.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "../llama/model.safetensors" in refusal(copy)
