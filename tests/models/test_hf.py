"""Coded folders through transformers: the same bits, loud failures, and weights that stay compressed in memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from reading import equal, inputs, model_class
from safetensors.torch import load_file, save_file

import llmc
import llmc.hf
from llmc.encodings.coding import coded_head
from llmc.encodings.coding.tensor_coder import MODES
from llmc.errors import CheckpointError, LlmcError, UsageError
from llmc.files.safetensors import read_file
from llmc.formats.coded_files import CodedTensors
from llmc.models import resident

NAMES = tuple(tiny_models.SPECS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def both(place: Path) -> Any:
    """Name -> the folder of a model and that of its coded twin."""
    made: dict[str, tuple[Path, Path]] = {}

    def build(name: str) -> tuple[Path, Path]:
        if name not in made:
            source = tiny_models.build(name, place / name)
            llmc.lossless(source, place / f"{name}-coded")
            made[name] = (source, place / f"{name}-coded")
        return made[name]

    return build


@pytest.mark.parametrize("name", NAMES)
def test_from_pretrained_gives_the_same_bits(both: Any, name: str, tmp_path: Path) -> None:
    source, coded = both(name)
    kind = model_class(source)
    model, info = kind.from_pretrained(coded, output_loading_info=True)
    assert equal(model, kind.from_pretrained(source))
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not hasattr(model.config, "quantization_config") and not hasattr(model.config, "transformers_weights")
    model.save_pretrained(tmp_path)
    assert "quant" not in (tmp_path / "config.json").read_text()
    assert "transformers_weights" not in (tmp_path / "config.json").read_text()
    assert equal(kind.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("name", NAMES)
def test_resident_compressed_computes_the_same_bits(both: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "SMALL", 0)
    source, coded = both(name)
    dense, compressed = llmc.load(source), llmc.load(coded, resident="compressed")
    given = inputs(name, dense)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(dense(**given)[0], compressed(**given)[0])
    assert compressed.llmc_memory.compressed < compressed.llmc_memory.dense
    assert compressed.llmc_memory.decoded < compressed.llmc_memory.dense


def held_bytes(model: Any) -> int:
    """Memory of the parameters that the model holds."""
    return sum(p.untyped_storage().nbytes() for p in model.parameters())


def test_resident_compressed_holds_what_it_says(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "SMALL", 1024)
    _, coded = both("llama-untied")
    model = llmc.load(coded, resident="compressed")
    before = held_bytes(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert held_bytes(model) == before < 0.2 * model.llmc_memory.dense
    assert model.llmc_memory.compressed == sum(e.nbytes for e in CodedTensors(coded).entries.values())


def test_generation_is_the_same(both: Any) -> None:
    source, coded = both("llama")
    prompt = torch.tensor([[5, 6, 7, 8]])
    texts = [
        model.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)
        for model in (llmc.load(source), llmc.load(coded), llmc.load(coded, resident="compressed"))
    ]
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_dtype(both: Any, dtype: torch.dtype) -> None:
    source, coded = both("llama")
    models = [llmc.load(source, dtype=dtype), llmc.load(coded, dtype=dtype)]
    assert equal(*models) and models[1].dtype == dtype
    compressed = llmc.load(coded, dtype=dtype, resident="compressed")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(models[0](input_ids=ids)[0], compressed(input_ids=ids)[0])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_loads(both: Any, tmp_path: Path, mode: str) -> None:
    source, _ = both("llama")
    llmc.lossless(source, tmp_path / mode, mode=mode)
    model, ids = llmc.load(source), torch.tensor([[5, 6, 7]])
    assert equal(llmc.load(tmp_path / mode), model)
    with torch.no_grad():
        compressed = llmc.load(tmp_path / mode, resident="compressed")
        assert torch.equal(compressed(input_ids=ids)[0], model(input_ids=ids)[0])


def test_shards_and_twins(both: Any, tmp_path: Path) -> None:
    source, _ = both("llama-untied")
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():  # two tensors of the same bits, in different shards
        model.model.layers[1].mlp.up_proj.weight.copy_(model.model.layers[0].mlp.up_proj.weight)
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    result = llmc.lossless(tmp_path / "shards", tmp_path / "coded")
    assert sum(row["kind"] == "same" for row in result.rows) == 1
    for opener in (transformers.AutoModelForCausalLM, type(model)):
        assert equal(opener.from_pretrained(tmp_path / "coded"), model)
    assert equal(llmc.load(tmp_path / "coded"), model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        compressed = llmc.load(tmp_path / "coded", resident="compressed")
        assert torch.equal(compressed(input_ids=ids)[0], model.eval()(input_ids=ids)[0])


def test_a_plain_load_without_llmc_fails(both: Any) -> None:
    _, coded = both("llama")
    code = f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({str(coded)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "no file named model.safetensors" in done.stderr


def test_a_damaged_tensor_fails_loudly(both: Any, tmp_path: Path) -> None:
    _, coded = both("llama")
    folder = tmp_path / "bad"
    shutil.copytree(coded, folder)
    file = folder / "model.llmc.safetensors"
    entry = read_file(file).entries["model.layers.0.mlp.up_proj.weight"]
    data = bytearray(file.read_bytes())
    data[(entry.start + entry.stop) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(RuntimeError):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"tensor model.layers.0.mlp.up_proj.weight: .*(damaged|sum|stream)"):
        llmc.load(folder)
    with pytest.raises(CheckpointError, match=r"tensor model.layers.0.mlp.up_proj.weight"):
        llmc.load(folder, resident="compressed")(input_ids=torch.tensor([[5]]))


def respelled(coded: Path, folder: Path, change: Any) -> Path:
    """A copy of a coded folder whose tensors went through `change`."""
    shutil.copytree(coded, folder)
    tensors = load_file(folder / "model.llmc.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.llmc.safetensors")
    return folder


def test_a_tensor_that_repeats_nothing(both: Any, tmp_path: Path) -> None:
    from llmc.encodings.coding.tensor_coder import repeat

    _, coded = both("llama")
    norm = "model.norm.weight"

    def point(tensors: dict[str, torch.Tensor], to: str) -> None:
        pieces = repeat(torch.empty(64, dtype=torch.bfloat16), to).pieces
        tensors[norm] = torch.cat([torch.tensor(piece) for piece in pieces])

    lost = respelled(coded, tmp_path / "lost", lambda t: point(t, "nowhere"))
    with pytest.raises(CheckpointError, match=f"tensor {norm}: repeats 'nowhere', which is not there"):
        llmc.read_tensors(lost)
    itself = respelled(coded, tmp_path / "itself", lambda t: point(t, norm))
    with pytest.raises(CheckpointError, match=f"tensor {norm}: repeats itself"):
        llmc.read_tensors(itself)
    other = respelled(coded, tmp_path / "other", lambda t: point(t, "model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match="which has another dtype or shape"):
        llmc.read_tensors(other)


def test_a_missing_tensor_is_missed(both: Any, tmp_path: Path) -> None:
    _, coded = both("llama")
    folder = respelled(coded, tmp_path / "less", lambda t: t.pop("model.norm.weight"))
    with pytest.raises(LlmcError, match=r"model.norm.weight"):
        llmc.load(folder, resident="compressed")


def test_not_coded_bytes_are_refused(both: Any, tmp_path: Path) -> None:
    _, coded = both("llama")
    wrong = respelled(coded, tmp_path / "wrong", lambda t: t.update(extra=torch.zeros(3)))
    with pytest.raises(CheckpointError, match="tensor extra: is not a coded tensor"):
        llmc.read_tensors(wrong)
    short = respelled(coded, tmp_path / "short", lambda t: t.update(extra=torch.zeros(3, dtype=torch.uint8)))
    with pytest.raises(CheckpointError, match="tensor extra: the head of a coded tensor ends early"):
        llmc.read_tensors(short)


def test_resident_needs_a_coded_folder(both: Any) -> None:
    source, _ = both("llama")
    with pytest.raises(UsageError, match="its weights are not coded; write it with llmc lossless first"):
        llmc.load(source, resident="compressed")
    with pytest.raises(UsageError, match="choose one of: dense, compressed"):
        llmc.load(source, resident="packed")


def test_eval_reads_a_coded_folder(both: Any, tmp_path: Path) -> None:
    source, coded = both("llama")
    text = tiny_models.corpus(tmp_path)
    report = llmc.evaluate(coded, text=text, against=source, context=64, stride=64, max_tokens=512)
    assert report.kl == 0 and report.top1_agreement == 1
    assert report.bits_per_weight < 16


def test_the_limit_of_a_claim(monkeypatch: pytest.MonkeyPatch, both: Any) -> None:
    monkeypatch.setattr(coded_head, "LIMIT", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 bytes"):
        llmc.read_tensors(both("llama")[1])
