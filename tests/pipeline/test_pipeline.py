"""Whole models through the pipeline: every architecture, every container, plan, verify, export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import llmc
from llmc.files.safetensors import load, read_folder
from llmc.formats.read import find_packed
from llmc.models.checkpoint import Checkpoint

FAST: dict[str, Any] = {"num_samples": 8, "sequence_length": 48}
CONV1D = ("gpt2",)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.corpus(tmp_path_factory.mktemp("text"))


def formats_of(name: str) -> list[str]:
    return ["gptq", "dense"] if name in CONV1D else ["compressed-tensors", "gptq", "dense"]


def weight_bytes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*.safetensors"))}


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(folder, encoded=True)
    return {name: checkpoint.tensor(name) for name in checkpoint.stored}


@pytest.mark.parametrize("name", list(tiny_models.SPECS))
def test_every_architecture_with_gptq(name: str, tmp_path: Path, text: Path) -> None:
    model = tiny_models.build(name, tmp_path / "model")
    options: dict[str, Any] = {"method": "gptq", "group_size": 32, "calibration": str(text), **FAST}
    options["formats"] = formats_of(name)
    expected = llmc.plan(str(model), **options)
    result = llmc.quantize(str(model), tmp_path / "out", **options)
    assert weight_bytes(tmp_path / "out") == expected.files
    values = [decoded(tmp_path / "out" / form) for form in formats_of(name)]
    originals = Checkpoint(model)
    wanted = {t.tensor for t in originals.targets if t.block is not None and t.kind != "embedding"}
    for stored in values:
        assert stored.keys() == set(originals.stored)
        for tensor in stored:
            same = torch.equal(stored[tensor], originals.tensor(tensor))
            assert same == (tensor not in wanted), tensor
    for form in formats_of(name):
        check = llmc.verify(tmp_path / "out" / form, against=model)
        assert check.problems == () and check.decoded == len(wanted)
    uncalibrated = [n for n in result.notes if "never reached" in n]
    assert not uncalibrated


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt2", "t5"])
def test_rounding_needs_no_data(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name, tmp_path / "model")
    llmc.quantize(str(model), tmp_path / "out", group_size="channel", bits=8, formats=["dense"])
    stored, originals = decoded(tmp_path / "out"), Checkpoint(model)
    for target in originals.targets:
        if target.block is not None and target.kind != "embedding":
            original = originals.tensor(target.tensor).float()
            error = (stored[target.tensor].float() - original).square().mean() / original.square().mean()
            assert 0 < error < 3e-4, target.name


def test_a_tied_head_is_written_once_and_a_targeted_embedding_serves_both(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    options: dict[str, Any] = {"targets": ["*embed_tokens"], "formats": ["dense"], "group_size": 32}
    llmc.quantize(str(model), tmp_path / "out", **options)
    names = read_folder(tmp_path / "out")
    assert "lm_head.weight" not in names
    rows = json.loads((tmp_path / "out" / "llmc.json").read_text())["targets"]
    assert [row["target"] for row in rows] == ["model.embed_tokens"]


def test_an_untied_head_is_calibrated(tmp_path: Path, text: Path) -> None:
    model = tiny_models.build("llama-untied", tmp_path / "model")
    options: dict[str, Any] = {"method": "gptq", "group_size": 32, "calibration": str(text), **FAST}
    llmc.quantize(str(model), tmp_path / "out", targets=["lm_head", "*_proj"], **options)
    rows = {r["target"]: r for r in json.loads((tmp_path / "out" / "llmc.json").read_text())["targets"]}
    assert len(rows) == 15
    assert "uncalibrated" not in rows["lm_head"]["notes"] and rows["lm_head"]["notes"]["relative_error"] > 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "lm_head" not in config["quantization_config"]["ignore"]


def test_experts_are_targets_under_their_names_on_disk(tmp_path: Path, text: Path) -> None:
    model = tiny_models.build("mixtral", tmp_path / "model")
    llmc.quantize(str(model), tmp_path / "out", method="gptq", group_size=32, calibration=str(text), **FAST)
    packed = find_packed(read_folder(tmp_path / "out"))
    assert "model.layers.1.block_sparse_moe.experts.3.w2" in packed
    assert len(packed) == 2 * (4 + 4 * 3)


def test_propagate_original_differs_only_after_the_first_layers(tmp_path: Path, text: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    options: dict[str, Any] = {"method": "gptq", "bits": 2, "group_size": 32, "calibration": str(text), **FAST}
    for mode in ("quantized", "original"):
        llmc.quantize(str(model), tmp_path / mode, options={"propagate": mode}, **options)
    one, other = decoded(tmp_path / "quantized"), decoded(tmp_path / "original")
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    first = {name for name in one if name.startswith("model.layers.0.self_attn.") and "o_proj" not in name}
    assert changed and len(first) == 3 and not changed & first


def test_two_stages_of_different_bits(tmp_path: Path, text: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        f"""
model: {model}
calibration: {{source: {text}, num_samples: 8, sequence_length: 48}}
stages:
  - {{method: gptq, bits: 8, group_size: 32, targets: ["*self_attn*"]}}
  - {{method: gptq, bits: 3, group_size: 16, targets: ["*mlp*"]}}
formats: [compressed-tensors]
"""
    )
    llmc.run(str(recipe), tmp_path / "out")
    widths = {name: (p.bits, p.group_size) for name, p in find_packed(read_folder(tmp_path / "out")).items()}
    assert set(widths.values()) == {(8, 32), (3, 16)}
    assert all(("self_attn" in name) == (width == (8, 32)) for name, width in widths.items())
    assert llmc.verify(tmp_path / "out", against=model).ok


@pytest.mark.parametrize("target", ["gptq", "dense"])
def test_export_equals_writing_directly(target: str, tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    llmc.quantize(str(model), tmp_path / "out", group_size=32, formats=["compressed-tensors", "gptq", "dense"])
    llmc.export(tmp_path / "out" / "compressed-tensors", tmp_path / "again", format=target)
    one, other = (f / "model.safetensors" for f in (tmp_path / "again", tmp_path / "out" / target))
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
    assert llmc.verify(tmp_path / "again", against=model).ok


def test_shards_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.artifacts.layout.arrange.__defaults__", (40_000,))
    model = tiny_models.build("llama-untied", tmp_path / "model")
    expected = llmc.plan(str(model), group_size=32)
    llmc.quantize(str(model), tmp_path / "out", group_size=32)
    assert len(expected.files) == 3 and weight_bytes(tmp_path / "out") == expected.files
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(expected.files)
    assert llmc.verify(tmp_path / "out", against=model).ok


def test_the_folder_is_complete(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    (model / "LICENSE").write_text("terms")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "modeling_evil.py").write_text("raise SystemExit")
    llmc.quantize(str(model), tmp_path / "out", group_size=32)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "chat_template.jinja", "tokenizer.json", "generation_config.json", "README.md"} <= names
    assert {"llmc.json", "SHA256SUMS", "config.json", "kernel", "model.safetensors"} <= names
    assert not any(name.endswith(".py") for name in names)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# model: rtn, 4 bits, groups of 32\n" in card and "base_model" not in card
    text = (tmp_path / "out" / "llmc.json").read_text()
    assert str(tmp_path) not in text and str(tmp_path) not in card


def test_stored_tensors_match_the_manifest(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    llmc.quantize(str(model), tmp_path / "out", group_size=32, bits=3, symmetric=False)
    manifest = json.loads((tmp_path / "out" / "llmc.json").read_text())
    for name, entry in read_folder(tmp_path / "out").items():
        data = load(entry).contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(data).hexdigest() == manifest["tensors"][name]["sha256"]
