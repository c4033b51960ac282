"""Artifacts whose codes went through the entropy coder: the same files back, loaded, inspected, verified."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folders import digests, same
from reading import equal, inputs, model_class
from safetensors.torch import load_file, save_file

import llmc
import llmc.hf
from llmc.errors import CheckpointError, InputError, UnsupportedError
from llmc.eval.measures.sizes import folder_sizes
from llmc.files.travel import ARCHIVE
from llmc.formats.coded_files import held_config
from llmc.models import resident

CASES = {
    "llama": ("llama", "compressed-tensors", {"bits": 3, "group_size": 32}),
    "asymmetric": ("llama-untied", "compressed-tensors", {"bits": 4, "group_size": 32, "symmetric": False}),
    "gptq": ("llama-untied", "gptq", {"bits": 4, "group_size": 32}),
    "gpt2": ("gpt2", "gptq", {"bits": 3, "group_size": 32}),
    "mixtral": ("mixtral", "compressed-tensors", {"bits": 4, "group_size": 32}),
    "qwen3-moe": ("qwen3-moe", "gptq", {"bits": 2, "group_size": 32}),
    "nf4": ("llama", "bitsandbytes", {"group_size": 64, "options": {"grid": "nf4"}}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name of a case -> model, artifact, its coded twin, its dense export."""
    place, done = tmp_path_factory.mktemp("artifacts"), {}

    def build(case: str) -> tuple[Path, Path, Path, Path]:
        if case not in done:
            name, container, options = CASES[case]
            model = tiny_models.build(name, place / f"{case}-model")
            plain, coded, dense = (place / f"{case}-{kind}" for kind in ("plain", "coded", "dense"))
            llmc.quantize(str(model), plain, method="rtn", formats=[container], **options)
            llmc.lossless(plain, coded, exact_files=True)
            llmc.export(plain, dense, format="dense")
            done[case] = (model, plain, coded, dense)
        return done[case]

    return build


@pytest.mark.parametrize("case", CASES)
def test_export_of_the_held_format_gives_every_file_back(made: Any, case: str, tmp_path: Path) -> None:
    _, plain, coded, _ = made(case)
    llmc.export(coded, tmp_path / "back", format=CASES[case][1])
    assert digests(tmp_path / "back") == digests(plain)
    assert len(digests(plain)) > 8


@pytest.mark.parametrize("case", CASES)
def test_from_pretrained_gives_the_decoded_values(made: Any, case: str, tmp_path: Path) -> None:
    _, _, coded, dense = made(case)
    kind = model_class(dense)
    model, info = kind.from_pretrained(coded, output_loading_info=True)
    assert equal(model, kind.from_pretrained(dense))
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path)
    assert equal(kind.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("case", CASES)
def test_resident_and_dense_compute_the_same(made: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "SMALL", 0)
    _, _, coded, dense = made(case)
    models = [llmc.load(dense), llmc.load(coded), llmc.load(coded, resident="compressed")]
    with torch.no_grad():
        outs = [model(**inputs(CASES[case][0], model))[0] for model in models]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral"])
def test_dense_export_goes_through_the_codes(made: Any, case: str, tmp_path: Path) -> None:
    _, _, coded, dense = made(case)
    llmc.export(coded, tmp_path / "dense", format="dense")
    assert digests(tmp_path / "dense", "*.safetensors") == digests(dense, "*.safetensors")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config


def test_another_format_goes_through_the_codes(made: Any, tmp_path: Path) -> None:
    _, plain, coded, _ = made("gptq")
    for source in (plain, coded):
        llmc.export(source, tmp_path / source.name, format="compressed-tensors")
    one, other = (digests(tmp_path / source.name, "*.safetensors") for source in (plain, coded))
    assert one == other


def test_a_square_conv1d_keeps_its_orientation(made: Any) -> None:
    """GPT-2's attn.c_proj is square, and transposed all the same."""
    model, _, _, dense = made("gpt2")
    name = next(n for n in load_file(dense / "model.safetensors") if n.endswith("h.0.attn.c_proj.weight"))
    one, other = (load_file(folder / "model.safetensors")[name].float() for folder in (model, dense))
    assert one.shape[0] == one.shape[1]
    assert (one - other).norm() < 0.5 * (one - other.t()).norm()


def test_inspect_and_verify_report_layers(made: Any) -> None:
    model, plain, coded, _ = made("llama")
    before, after = (llmc.inspect(folder) for folder in (plain, coded))
    snr = {layer["name"]: layer["snr_db"] for layer in before.layers}
    assert {layer["name"]: layer["snr_db"] for layer in after.layers} == snr
    assert any(value is not None for value in snr.values())
    for one, other in zip(before.layers, after.layers, strict=True):
        assert one["elements"] == other["elements"]
        assert other["encoding"].startswith(one["encoding"])
    found = llmc.verify(coded, against=model)
    assert found.ok and found.matrices == 14 and found.measured
    assert "errors reproduced against" in str(found.tables())
    same = llmc.verify(coded, against=plain)
    assert same.ok and not same.measured
    assert "same bits as" in str(same.tables())
    sizes = folder_sizes(coded)
    stored = sum(entry.nbytes for entry in llmc.formats.coded_files.CodedTensors(coded).entries.values())
    assert sizes.stored_bits == 8 * stored
    assert 0 < sizes.overhead_bits_per_weight < (sizes.targeted_bits_per_weight or 0)


def test_verify_finds_values_of_another_model(made: Any, tmp_path: Path) -> None:
    _, _, coded, _ = made("llama")
    other = tiny_models.build("llama", tmp_path / "other", seed=1)
    found = llmc.verify(coded, against=other)
    assert not found.ok and "SNR" in found.problems[0]


def test_the_manifest_keeps_what_the_artifact_said(made: Any) -> None:
    _, plain, coded, _ = made("llama")
    before, after = (json.loads((folder / "llmc.json").read_text()) for folder in (plain, coded))
    for key in ("base_model", "seed", "versions", "calibration"):
        assert after[key] == before[key]
    assert after["holds"] == "compressed-tensors"
    assert after["recipe"] == {**before["recipe"], "entropy": True}
    assert after["sizes"]["original_bytes"] == before["sizes"]["original_bytes"]
    assert after["sizes"]["weight_bytes"] == (coded / "model.llmc.safetensors").stat().st_size
    assert after["sizes"]["bits_per_weight"] < 16
    card = (coded / "README.md").read_text()
    assert "compressed-tensors" in card and "## Recipe" in card and "## What it cost" in card


def test_a_folder_of_another_tool(made: Any, tmp_path: Path) -> None:
    """No manifest, no seal: the tensors and the config say all that loading needs."""
    _, plain, _, dense = made("gptq")
    foreign = tmp_path / "foreign"
    shutil.copytree(plain, foreign)
    for name in ("llmc.json", "SHA256SUMS"):
        (foreign / name).unlink()
    shutil.rmtree(foreign / "kernel")
    result = llmc.lossless(foreign, tmp_path / "coded", exact_files=True)
    assert not result.notes
    assert not (tmp_path / "coded" / ARCHIVE).exists()
    assert equal(llmc.load(tmp_path / "coded"), llmc.load(dense))
    llmc.export(tmp_path / "coded", tmp_path / "back", format="gptq")
    assert digests(tmp_path / "back") == digests(foreign)
    llmc.export(tmp_path / "coded", tmp_path / "dense", format="dense")
    assert digests(tmp_path / "dense", "*.safetensors") == digests(dense, "*.safetensors")


def test_a_quantizer_that_is_not_known_is_said(made: Any, tmp_path: Path) -> None:
    model, *_ = made("llama")
    shutil.copytree(model, tmp_path / "fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    (tmp_path / "fp8" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "fp8"}})
    )
    note = "its weights were quantized before: transformers loads it after llmc decompress only"
    assert llmc.lossless(tmp_path / "fp8", tmp_path / "coded").notes == (note,)


def renamed(place: Path, plain: Path, tensors: dict[str, str], **quantization: Any) -> Path:
    """A coded copy of an artifact, as if another tool had given tensors other names and said other things of them."""
    shutil.copytree(plain, place / "plain")
    for name in ("llmc.json", "SHA256SUMS"):
        (place / "plain" / name).unlink()
    held = load_file(place / "plain" / "model.safetensors")
    for old, new in tensors.items():
        held |= {name.replace(old, new): value.clone() for name, value in held.items() if old in name}
    save_file(held, place / "plain" / "model.safetensors", {"format": "pt"})
    config = json.loads((place / "plain" / "config.json").read_text())
    config["quantization_config"] |= quantization
    (place / "plain" / "config.json").write_text(json.dumps(config))
    llmc.lossless(place / "plain", place / "coded")
    return place / "coded"


@pytest.mark.parametrize(
    ("case", "tensors", "quantization", "line"),
    [
        ("gptq", {}, {"quant_method": "awq"}, r"in a way that llmc does not decode \(awq\)"),
        ("gptq", {}, {"checkpoint_format": "gptq_v2"}, r"in a way that llmc does not decode \(gptq\)"),
        (
            "llama",
            {"weight_scale": "weight_g_idx"},
            {},
            "weight_g_idx belongs to an encoding",
        ),
        (
            "llama",
            {},
            {"config_groups": {"a": {"weights": {"type": "float", "num_bits": 8}}}},
            "some of its weights are quantized to floats",
        ),
    ],
)
def test_what_would_load_as_other_values_is_refused(
    made: Any, tmp_path: Path, case: str, tensors: dict[str, str], quantization: dict[str, Any], line: str
) -> None:
    coded = renamed(tmp_path, made(case)[1], tensors, **quantization)
    for load in (llmc.load, lambda folder: llmc.load(folder, resident="compressed")):
        with pytest.raises(UnsupportedError, match=line):
            load(coded)
    llmc.decompress(coded, tmp_path / "back")
    assert same(load_file(tmp_path / "back" / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors"))
    assert llmc.inspect(coded).container == "llmc"


def test_evaluation_is_that_of_the_dense_export(made: Any, tmp_path: Path) -> None:
    _, _, coded, dense = made("llama")
    text = tiny_models.corpus(tmp_path, words=600)
    found = [llmc.evaluate(folder, text=str(text), context=64, stride=64).to_json() for folder in (coded, dense)]
    assert found[0]["perplexity"] == found[1]["perplexity"]


def test_the_config_as_it_was() -> None:
    own = {"quant_method": "llmc", "original": {"quant_method": "gptq"}}
    assert held_config({"a": 1, "quantization_config": own}) == {
        "a": 1,
        "quantization_config": {"quant_method": "gptq"},
    }
    assert held_config({"quantization_config": {"quant_method": "llmc"}}) == {"quantization_config": {}}
    assert held_config({"quantization_config": {"quant_method": "awq"}}) == {
        "quantization_config": {"quant_method": "awq"}
    }


def spoiled(coded: Path, place: Path, members: dict[str, bytes]) -> Path:
    shutil.copytree(coded, place)
    with zipfile.ZipFile(place / ARCHIVE, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return place


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({}, "SHA256SUMS did not become what it was"),
        ({"SHA256SUMS": b"other"}, "did not become what it was"),
        ({"../outside": b"x"}, f"{ARCHIVE} holds '../outside', which does not belong there"),
        ({"notes.txt": b"x"}, f"{ARCHIVE} holds 'notes.txt', which does not belong there"),
    ],
)
def test_a_forged_archive_is_refused(made: Any, tmp_path: Path, members: dict[str, bytes], line: str) -> None:
    _, _, coded, _ = made("llama")
    folder = spoiled(coded, tmp_path / "forged", members)
    with pytest.raises(CheckpointError, match=line):
        llmc.decompress(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "outside").exists()


def test_a_damaged_or_missing_archive_is_refused(made: Any, tmp_path: Path) -> None:
    _, _, coded, _ = made("llama")
    folder = spoiled(coded, tmp_path / "forged", {})
    (folder / ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=f"{ARCHIVE} is damaged"):
        llmc.decompress(folder, tmp_path / "out")
    (folder / ARCHIVE).unlink()
    with pytest.raises(CheckpointError, match=f"{ARCHIVE} is damaged"):
        llmc.decompress(folder, tmp_path / "out")


def test_export_of_a_coded_plain_model_is_refused(made: Any, tmp_path: Path) -> None:
    model, *_ = made("llama")
    llmc.lossless(model, tmp_path / "coded")
    with pytest.raises(InputError, match="its tensors are coded without loss"):
        llmc.export(tmp_path / "coded", tmp_path / "out", format="dense")
