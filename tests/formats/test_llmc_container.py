"""Folders of trellis-coded matrices: loaded, computed with, verified, inspected and exported like any other."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folders import digests
from reading import equal, inputs, model_class
from safetensors.torch import load_file

import llmc
import llmc.hf
from llmc.encodings.coding import coded_tensor
from llmc.eval.measures.sizes import folder_sizes
from llmc.formats.llmc import Llmc
from llmc.models import resident
from llmc.models.checkpoint import Checkpoint
from llmc.targets import Target

CASES = ("llama", "llama-untied", "gpt2", "mixtral", "qwen3-moe")
WEIGHTS = "model.llmc.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> the folder of a model and that of its trellis-coded one."""
    place, done = tmp_path_factory.mktemp("container"), {}
    options: dict[str, Any] = {"method": "trellis", "calibration": str(tiny_models.corpus(place))}
    options |= {"num_samples": 8, "sequence_length": 32, "options": {"rates": "equal"}, "bits_per_weight": 4.0}

    def build(name: str) -> tuple[Path, Path]:
        if name not in done:
            model = tiny_models.build(name, place / f"{name}-model")
            llmc.quantize(str(model), place / f"{name}-coded", **options)
            done[name] = (model, place / f"{name}-coded")
        return done[name]

    return build


def coded(model: Path) -> list[Target]:
    """What a run without globs compresses."""
    return [t for t in Checkpoint(model).targets if t.block is not None and t.kind != "embedding"]


@pytest.mark.parametrize("name", CASES)
def test_tensors_decode_to_the_stored_streams(made: Any, name: str) -> None:
    """And all others to what they were, bit for bit."""
    model, folder = made(name)
    stored, originals, checkpoint = load_file(folder / WEIGHTS), Checkpoint(model), Checkpoint(folder, encoded=True)
    targets = {t.tensor: t for t in coded(model)}
    assert set(stored) == set(originals.stored) and targets.keys() < stored.keys()
    for tensor, data in stored.items():
        original = originals.tensor(tensor)
        if tensor in targets:
            values = coded_tensor.trellis_of(data).dequantize()
            expected = values.t() if targets[tensor].transposed else values
            error = (expected.float() - original.float()).square().mean() / original.float().square().mean()
            assert 1e-4 < float(error) < 0.3  # that of matrices this small: it is their inputs' that is kept low
        else:
            expected = original
        assert checkpoint.tensor(tensor).dtype == original.dtype
        assert torch.equal(checkpoint.tensor(tensor), expected), tensor


@pytest.mark.parametrize("name", CASES)
def test_from_pretrained_gives_the_decoded_values(made: Any, name: str, tmp_path: Path) -> None:
    """As transformers loads the dense export, which knows nothing of llmc."""
    original, folder = made(name)
    llmc.export(folder, tmp_path / "dense", format="dense")
    assert llmc.verify(tmp_path / "dense", against=original).ok
    checkpoint = Checkpoint(folder, encoded=True)
    for tensor, values in load_file(tmp_path / "dense" / "model.safetensors").items():
        assert torch.equal(values, checkpoint.tensor(tensor)), tensor
    kind = model_class(folder)
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert equal(model, kind.from_pretrained(tmp_path / "dense"))
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("name", CASES)
def test_resident_and_dense_compute_the_same(made: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "SMALL", 0)
    _, folder = made(name)
    models = [llmc.load(folder), llmc.load(folder, resident="compressed")]
    with torch.no_grad():
        one, other = (model(**inputs(name, model))[0] for model in models)
    assert torch.equal(one, other) and one.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_verify_reproduces_the_errors(made: Any, name: str) -> None:
    model, folder = made(name)
    assert llmc.verify(folder).ok
    found = llmc.verify(folder, against=model)
    assert found.ok and found.matrices == len(coded(model))


def test_verify_finds_another_model(made: Any, tmp_path: Path) -> None:
    other = tiny_models.build("llama", tmp_path / "other", seed=1)
    found = llmc.verify(made("llama")[1], against=other)
    assert not found.ok and "model.layers.0" in found.problems[0]


def test_verify_names_the_tensor_of_a_flipped_bit(made: Any, tmp_path: Path) -> None:
    _, folder = made("llama")
    shutil.copytree(folder, tmp_path / "flipped")
    file, rng = tmp_path / "flipped" / WEIGHTS, random.Random(2)
    intact = file.read_bytes()
    length = int.from_bytes(intact[:8], "little")
    header = json.loads(intact[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    for name in rng.sample(names, 8):
        start, stop = header[name]["data_offsets"]
        data = bytearray(intact)
        data[8 + length + rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        problems = llmc.verify(tmp_path / "flipped").problems
        assert any(f"tensor {name} " in problem for problem in problems), (name, problems)
    file.write_bytes(intact)
    assert llmc.verify(tmp_path / "flipped").ok


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_inspect_shows_what_is_inside(made: Any, name: str) -> None:
    model, folder = made(name)
    found = llmc.inspect(folder)
    assert found.container == "llmc"
    layers = {layer["name"]: layer for layer in found.layers}
    for target in coded(model):
        layer = next(layers[n] for n in (target.tensor, target.name) if n in layers)
        assert "trellis" in layer["encoding"] and layer["elements"] == target.numel
        assert layer["snr_db"] > 5


@pytest.mark.parametrize("name", CASES)
def test_the_config_and_the_sizes(made: Any, name: str) -> None:
    _, folder = made(name)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config == {"quant_method": "llmc", "mode": "trellis", "weights": WEIGHTS, "dequantize": True}
    document = json.loads((folder / "llmc.json").read_text())
    assert document["sizes"]["weight_bytes"] == (folder / WEIGHTS).stat().st_size
    stored = load_file(folder / WEIGHTS)
    for row in document["targets"]:
        data = stored[row["tensor"]]
        elements = coded_tensor.trellis_of(data).codes.numel()
        assert row["bits_per_weight"] == pytest.approx(8 * data.numel() / elements, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_an_evaluation_counts_bits_as_the_run_did(made: Any, name: str) -> None:
    folder = made(name)[1]
    said, counted = json.loads((folder / "llmc.json").read_text())["sizes"], folder_sizes(folder)
    assert counted.bits_per_weight == pytest.approx(said["bits_per_weight"], rel=1e-5)
    assert counted.model_bits_per_weight == pytest.approx(said["model_bits_per_weight"], rel=1e-5)


def test_what_is_packed_unpacks_to_the_same(made: Any) -> None:
    """A matrix and a transposed one, through the container itself."""
    from llmc.formats.container import Spec

    for name in ("llama", "gpt2"):
        model, folder = made(name)
        stored = load_file(folder / WEIGHTS)
        for target in coded(model)[:4]:
            found = coded_tensor.trellis_of(stored[target.tensor])
            spec = Spec(target, found.grid)
            again = Llmc().pack(spec, found)
            assert torch.equal(again[target.tensor], stored[target.tensor])
            assert torch.equal(Llmc().unpack(spec, again).dequantize(), found.dequantize())


def test_shards(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = made("llama-untied")
    monkeypatch.setattr("llmc.artifacts.layout.arrange.__defaults__", (30_000,))
    options: dict[str, Any] = {"calibration": str(tiny_models.corpus(tmp_path)), "options": {"rates": "equal"}}
    options |= {"num_samples": 8, "sequence_length": 32, "bits_per_weight": 4.0}
    llmc.quantize(str(model), tmp_path / "out", method="trellis", **options)
    names = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(names) > 2 and all(name.startswith("model-") for name in names)
    index = json.loads((tmp_path / "out" / f"{WEIGHTS}.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert llmc.verify(tmp_path / "out", against=model).ok
    kind = model_class(whole)
    assert equal(kind.from_pretrained(tmp_path / "out"), kind.from_pretrained(whole))
    assert equal(llmc.load(tmp_path / "out"), llmc.load(whole))


def test_the_same_run_gives_the_same_bytes(made: Any, tmp_path: Path) -> None:
    """Of a folder of this name."""
    model, folder = made("llama")
    options: dict[str, Any] = {"calibration": str(tiny_models.corpus(tmp_path)), "options": {"rates": "equal"}}
    options |= {"num_samples": 8, "sequence_length": 32, "bits_per_weight": 4.0}
    llmc.quantize(str(model), tmp_path / folder.name, method="trellis", **options)
    assert digests(tmp_path / folder.name) == digests(folder)
