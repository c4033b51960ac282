"""What a compressed folder takes over besides weights, and what it leaves out because the model computes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import save_file
from spoiled import change_tensors

import llmc
from llmc.artifacts.sidecar import MOST_SETTINGS, TEMPLATES, carried_files
from llmc.files.safetensors import read_folder
from llmc.models.checkpoint import Checkpoint
from llmc.models.pooling import pooling_of

ROUND: dict[str, Any] = {"method": "rtn", "group_size": 32}
KINDS = ((0, "Transformer"), (1, "Pooling"))
LEFT_OUT = "left out, since the model computes it itself: "


def loaded(folder: Path, architecture: str) -> tuple[Any, Any]:
    """The model as transformers opens it, and the names that it missed or did not expect."""
    found = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    return found[0], found[1]["missing_keys"] | found[1]["unexpected_keys"]


@pytest.mark.parametrize(
    ("name", "architecture", "buffers", "note"),
    [
        ("bert", "BertForMaskedLM", ["bert.embeddings.position_ids"], "bert.embeddings.position_ids"),
        ("bert", "BertForMaskedLM", ["embeddings.position_ids"], "embeddings.position_ids"),
        (
            "llama",
            "LlamaForCausalLM",
            [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)],  # now one for all layers
            "model.layers.0.self_attn.rotary_emb.inv_freq and 1 more",
        ),
    ],
)
def test_buffers_that_older_versions_saved_are_left_out(
    tmp_path: Path, name: str, architecture: str, buffers: list[str], note: str
) -> None:
    model = tiny_models.build(name, tmp_path / "model")
    plain = set(read_folder(model))
    change_tensors(model, lambda tensors: tensors.update({b: torch.arange(128)[None] for b in buffers}))
    assert loaded(model, architecture)[1] == set()  # transformers has nothing to say of them
    expected = llmc.plan(str(model), **ROUND, formats=["dense"])
    result = llmc.quantize(str(model), tmp_path / "out", **ROUND, formats=["dense"])
    assert result.notes == (LEFT_OUT + note,)
    assert LEFT_OUT + note in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "llmc.json").read_text())["notes"] == [LEFT_OUT + note]
    assert set(read_folder(tmp_path / "out")) == plain
    assert expected.files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert expected.original_bytes == (model / "model.safetensors").stat().st_size
    assert loaded(tmp_path / "out", architecture)[1] == set()
    assert llmc.verify(tmp_path / "out", against=model).ok


def test_what_only_resembles_a_buffer_is_kept(tmp_path: Path) -> None:
    model = tiny_models.build("bert", tmp_path / "model")
    name = "bert.embeddings.position_ids.weight"
    change_tensors(model, lambda tensors: tensors.update({name: torch.arange(128)}))
    note = f"kept as it is, though BertForMaskedLM of transformers has no place for it: {name}"
    assert Checkpoint(model).notes == (note,) and name in Checkpoint(model).stored


def test_settings_of_sentence_transformers_modules_are_taken_over(tmp_path: Path) -> None:
    model = tiny_models.build("bert", tmp_path / "model")
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{t}" if i else "", "type": f"models.{t}"} for i, t in KINDS]
    files = {
        "modules.json": json.dumps(modules),
        "1_Pooling/config.json": json.dumps({"pooling_mode_cls_token": True}),
        "1_Pooling/pooling.py": "",
        "1_Pooling/large.json": " " * (MOST_SETTINGS + 1),
        "1_Pooling/inner/config.json": "{}",
        "onnx/config.json": "{}",
    }
    for name, text in files.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(text)
    (model / "2_Linked").symlink_to(model / "1_Pooling")
    weights = tmp_path / "dense.safetensors"
    save_file({"linear.weight": torch.ones(2, 2)}, weights)
    for place in ("2_Dense", "2_Dense/inner", "other"):
        (model / place).mkdir(exist_ok=True)
        shutil.copyfile(weights, model / place / "model.safetensors")
    out = tmp_path / "out"
    llmc.quantize(str(model), out, **ROUND)
    inside = [p.relative_to(out).as_posix() for p in out.rglob("*/*.safetensors")]
    assert inside == ["2_Dense/model.safetensors"] and (out / inside[0]).read_bytes() == weights.read_bytes()
    assert llmc.verify(out, against=model).ok
    kept = {p.relative_to(out).as_posix() for p in out.rglob("*.json") if "kernel" not in p.parts}
    assert {n for n in kept if "/" in n} == {"1_Pooling/config.json"}
    assert (out / "1_Pooling" / "config.json").read_text() == files["1_Pooling/config.json"]
    assert not list(out.rglob("pooling.py")) and llmc.verify(out).ok
    llmc.export(out, tmp_path / "dense", format="dense")
    assert pooling_of(tmp_path / "dense") == pooling_of(model) == "cls"
    (model / "modules.json").unlink()
    assert not [p for p in carried_files(model) if p.parent != model]


def test_chat_templates_with_names_are_taken_over(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    (model / TEMPLATES / "inner").mkdir(parents=True)
    for name in ("tools.jinja", "evil.py", "inner/more.jinja"):
        (model / TEMPLATES / name).write_text("{{ messages }}")
    llmc.quantize(str(model), tmp_path / "out", **ROUND)
    llmc.lossless(model, tmp_path / "coded")
    for folder in (tmp_path / "out", tmp_path / "coded"):
        assert [p.name for p in folder.rglob("*.jinja")] == ["tools.jinja"]
        assert llmc.verify(folder, against=model).ok


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "'list' object is not a mapping"),
        ('{"temperature": 0.5, "do_sample": false}', "GenerationConfig is invalid"),
    ],
)
def test_settings_of_generation_that_transformers_refuses_are_said(
    text: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    (model / "generation_config.json").write_text(text)
    capfd.readouterr()
    (note,) = llmc.quantize(str(model), tmp_path / "out", **ROUND).notes
    assert note.startswith("generation_config.json is kept, and transformers refuses to write it: ") and says in note
    assert (tmp_path / "out" / "generation_config.json").read_text() == text
    assert capfd.readouterr() == ("", "")
