"""`llmc lossless` and `llmc decompress`: folders and files, byte for byte, resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from folders import digests, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spoiled import Command

import llmc
from llmc.artifacts.artifact import Artifact
from llmc.artifacts.lossless import write as lossless_writing
from llmc.encodings.coding.tensor_coder import MODES
from llmc.encodings.kernels import coded_tensor as reference
from llmc.errors import CheckpointError, InputError, LlmcError
from llmc.files.safetensors import read_file
from llmc.formats.coded_files import CodedTensors


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("lossless") / "model", num_hidden_layers=3)


@pytest.fixture(scope="module")
def coded(model: Path) -> Path:
    llmc.lossless(model, out := model.parent / "coded")
    return out


def mixed(folder: Path) -> Path:
    """Tensors of all kinds in two files of a folder that is no model."""
    folder.mkdir()
    random = np.random.default_rng(0)
    raw = torch.from_numpy(random.integers(0, 256, 3000, np.uint8))
    weights = (torch.randn(300, 200, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    one = {
        "b.weight": weights,
        "a.twin": weights.clone(),
        "wide": weights.float(),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(-0.0),
        "mask": torch.ones(70, 70, dtype=torch.bool),
    }
    two = {"noise": raw, "position_ids": torch.arange(500), "fp8": weights.to(torch.float8_e4m3fn), "z": weights.half()}
    save_file(one, folder / "first.safetensors", {"format": "pt", "of": "ä"})
    save_file(two, folder / "second.safetensors")
    (folder / "notes.txt").write_text("kept")
    (folder / "code.py").write_text("never copied")
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_exact_files_come_back_byte_for_byte(tmp_path: Path, mode: str) -> None:
    source = mixed(tmp_path / "source")
    llmc.lossless(source, tmp_path / "coded", mode=mode, exact_files=True)
    done = llmc.decompress(tmp_path / "coded", tmp_path / "plain")
    assert done.exact
    assert digests(tmp_path / "plain", "*.safetensors") == digests(source, "*.safetensors")
    assert (tmp_path / "plain" / "notes.txt").read_text() == "kept"
    assert not (tmp_path / "coded" / "code.py").exists()


def test_without_exact_files_tensors_metadata_and_order_come_back(tmp_path: Path) -> None:
    source = mixed(tmp_path / "source")
    llmc.lossless(source, tmp_path / "coded")
    assert not llmc.decompress(tmp_path / "coded", tmp_path / "plain").exact
    for name in ("first.safetensors", "second.safetensors"):
        assert same(load_file(tmp_path / "plain" / name), load_file(source / name))
        before, after = read_file(source / name), read_file(tmp_path / "plain" / name)
        assert before.metadata == after.metadata
        order = [sorted(f.entries, key=lambda n: f.entries[n].start) for f in (before, after)]
        assert order[0] == order[1]


def test_read_tensors(tmp_path: Path) -> None:
    source = mixed(tmp_path / "source")
    llmc.lossless(source, tmp_path / "coded")
    wanted = load_file(source / "first.safetensors") | load_file(source / "second.safetensors")
    assert same(llmc.read_tensors(tmp_path / "coded", threads=2), wanted)
    first = tmp_path / "coded" / "first.llmc.safetensors"
    assert same(llmc.read_tensors(first), load_file(source / "first.safetensors"))
    assert same(llmc.read_tensors(source / "first.safetensors"), load_file(source / "first.safetensors"))


def test_a_single_file(tmp_path: Path, model: Path) -> None:
    shutil.copy(model / "model.safetensors", tmp_path / "w.safetensors")
    llmc.lossless(tmp_path / "w.safetensors", tmp_path / "coded", exact_files=True)
    assert (tmp_path / "coded" / "w.llmc.safetensors").is_file()
    llmc.decompress(tmp_path / "coded" / "w.llmc.safetensors", tmp_path / "plain")
    assert (tmp_path / "plain" / "w.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_sharded_model(tmp_path: Path) -> None:
    source = tiny_models.build("llama-untied", tmp_path / "model", num_hidden_layers=4)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "shards", max_shard_size="80KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    llmc.lossless(tmp_path / "shards", tmp_path / "coded", exact_files=True)
    llmc.decompress(tmp_path / "coded", tmp_path / "plain")
    assert digests(tmp_path / "plain") == digests(tmp_path / "shards")
    assert same(llmc.read_tensors(tmp_path / "coded"), llmc.read_tensors(tmp_path / "shards"))


def test_all_files_of_a_model_come_back(model: Path, coded: Path, tmp_path: Path) -> None:
    llmc.decompress(coded, tmp_path / "plain")
    assert {*digests(tmp_path / "plain")} == {*digests(model)}
    others = {name: digest for name, digest in digests(model).items() if not name.endswith(".safetensors")}
    assert others.items() <= digests(tmp_path / "plain").items()


def test_twins_are_stored_once_and_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    source = mixed(tmp_path / "source")
    result = llmc.lossless(source, tmp_path / "coded")
    rows = {row["name"]: row for row in result.rows}
    twins = sorted(name for name in ("a.twin", "b.weight") if rows[name]["kind"] == "same")
    assert len(twins) == 1 and rows[twins[0]]["stop"] - rows[twins[0]]["start"] < 100
    assert rows["wide"]["held"] == "bfloat16"
    assert result.weight_bytes == sum(p.stat().st_size for p in (tmp_path / "coded").glob("*.safetensors"))
    assert result.original_bytes == sum(p.stat().st_size for p in source.glob("*.safetensors"))


def test_what_is_written_is_a_safetensors_file(coded: Path) -> None:
    with safe_open(str(coded / "model.llmc.safetensors"), "pt") as file:
        names = [*file.keys()]
        assert all(file.get_tensor(name).dtype == torch.uint8 for name in names)
        assert file.metadata()["format"] == "llmc lossless 1"
    assert {*names} == {*CodedTensors(coded).entries}


def test_the_reference_decoder_reads_the_file(model: Path, coded: Path) -> None:
    assert same(reference.read(coded / "model.llmc.safetensors"), load_file(model / "model.safetensors"))


def test_the_folder_carries_its_decoder(model: Path, coded: Path) -> None:
    from kernels import get_local_kernel

    kernel: Any = get_local_kernel(coded / "kernel", backend="cpu")
    assert same(kernel.coded_tensor.read(coded / "model.llmc.safetensors"), load_file(model / "model.safetensors"))


def test_verify_and_inspect(model: Path, coded: Path, tmp_path: Path) -> None:
    assert llmc.verify(coded, against=model).problems == ()
    assert llmc.inspect(coded).container == "llmc"
    other = tmp_path / "other"
    shutil.copytree(model, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert llmc.verify(coded, against=other).problems == ("tensor model.norm.weight: differs from other",)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_verify_names_the_tensor_of_a_flipped_bit(coded: Path, tmp_path: Path, share: float) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(coded, folder)
    file = folder / "model.llmc.safetensors"
    data = bytearray(file.read_bytes())
    head = read_file(file).header_size
    place = head + int((len(data) - head) * share)
    data[place] ^= 16
    file.write_bytes(data)
    name = next(n for n, e in read_file(file).entries.items() if e.start <= place < e.stop)
    assert llmc.verify(folder).problems == (f"model.llmc.safetensors: tensor {name} differs",)
    with pytest.raises(LlmcError, match=f"tensor {name}"):
        llmc.decompress(folder, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    assert not list(tmp_path.glob("plain*"))


def test_a_run_that_stops_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setattr(lossless_writing, "UNIT", 1)  # a journal entry for each tensor
    llmc.lossless(model, tmp_path / "whole")
    record = Artifact.record
    for stop in (1, 4, 9):

        def until(self: Artifact, unit: Any, stop: int = stop) -> None:
            record(self, unit)
            if len(self.done) == stop:
                raise KeyboardInterrupt

        monkeypatch.setattr(Artifact, "record", until)
        with pytest.raises(KeyboardInterrupt):
            llmc.lossless(model, tmp_path / "cut")
        assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(Artifact, "record", record)
    encoded = []
    encode = lossless_writing.tensor_coder.encode
    monkeypatch.setattr(lossless_writing.tensor_coder, "encode", lambda *a, **k: encoded.append(a) or encode(*a, **k))
    llmc.lossless(model, tmp_path / "cut")
    assert len(encoded) == len(CodedTensors(tmp_path / "cut").entries) - 9
    assert digests(tmp_path / "cut", "*.safetensors") == digests(tmp_path / "whole", "*.safetensors")
    assert llmc.verify(tmp_path / "cut", against=model).problems == ()


def test_damage_to_an_unfinished_run_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(lossless_writing, "UNIT", 1)
    record = Artifact.record

    def until(self: Artifact, unit: Any) -> None:
        record(self, unit)
        if len(self.done) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Artifact, "record", until)
    with pytest.raises(KeyboardInterrupt):
        llmc.lossless(model, tmp_path / "cut")
    monkeypatch.setattr(Artifact, "record", record)
    file = tmp_path / "cut.llmc-partial" / "model" / "model.llmc.safetensors"
    data = bytearray(file.read_bytes())
    data[-5000] ^= 1
    file.write_bytes(data)
    llmc.lossless(model, tmp_path / "cut")
    assert llmc.verify(tmp_path / "cut", against=model).problems == ()


def test_a_resume_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    record = Artifact.record
    monkeypatch.setattr(Artifact, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        llmc.lossless(model, tmp_path / "out")
    assert record
    with pytest.raises(LlmcError, match="another mode"):
        llmc.lossless(model, tmp_path / "out", mode="small")


def test_threads_do_not_change_the_bytes(tmp_path: Path, model: Path) -> None:
    for threads in (1, 3):
        llmc.lossless(model, tmp_path / str(threads), threads=threads)
    assert digests(tmp_path / "1", "*.safetensors") == digests(tmp_path / "3", "*.safetensors")


def test_the_commands(command: Command, model: Path, tmp_path: Path) -> None:
    done = command("lossless", model, "-o", tmp_path / "coded", "--exact-files", "--json")
    document = json.loads(done.out)
    assert done.code == 0 and document["ratio"] < 0.85
    assert command("verify", tmp_path / "coded", "--against", model).code == 0
    assert command("decompress", tmp_path / "coded", "-o", tmp_path / "plain").code == 0
    assert digests(tmp_path / "plain") == digests(model)


def test_a_symlinked_cache_is_followed(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in model.iterdir():
        shutil.copy(path, blobs / path.name)
        os.symlink(f"../../blobs/{path.name}", snapshot / path.name)
    llmc.lossless(snapshot, tmp_path / "coded")
    assert llmc.verify(tmp_path / "coded", against=model).problems == ()


@pytest.mark.parametrize("wrong", ["", "bf16", "balance"])
def test_an_unknown_mode_is_refused(model: Path, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(LlmcError, match="no mode"):
        llmc.lossless(model, tmp_path / "out", mode=wrong)
    assert not list(tmp_path.iterdir())


def test_a_coded_folder_is_refused_by_name(coded: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.llmc.safetensors is coded already; see llmc decompress"):
        llmc.lossless(coded, tmp_path / "out")
    with pytest.raises(InputError, match=r"its tensors are coded without loss; llmc decompress gives them back"):
        llmc.export(coded, tmp_path / "out", format="dense")
    with pytest.raises(InputError, match=r"the checkpoint is coded already \(llmc\); turn it into plain weights with"):
        llmc.quantize(str(coded), tmp_path / "out")


def test_a_header_in_another_order_than_the_bytes(tmp_path: Path) -> None:
    """The room for the header is measured on the order that is written: offsets of other lengths."""
    from llmc.files.header import write_header

    sizes = {"big": 3_000_000, **{f"t{i:03}": 2 for i in range(200)}}
    header, spans = write_header([(n, torch.uint8, (size,)) for n, size in sizes.items()])
    listed = json.loads(header[8:])
    turned = json.dumps(dict(sorted(listed.items(), reverse=True))).encode()
    data = np.random.default_rng(0).integers(0, 256, spans["t199"][1] - spans["big"][0], np.uint8).tobytes()
    (tmp_path / "m.safetensors").write_bytes(len(turned).to_bytes(8, "little") + turned + data)
    llmc.lossless(tmp_path / "m.safetensors", tmp_path / "coded", exact_files=True)
    llmc.decompress(tmp_path / "coded", tmp_path / "plain")
    assert (tmp_path / "plain" / "m.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
