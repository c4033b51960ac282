"""The write side: places, lock, journal, what a damaged or foreign unfinished run leads to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from spoiled import Command, partial

import llmc
from llmc.artifacts.artifact import Artifact, Unit
from llmc.artifacts.layout import arrange
from llmc.errors import OutputError, StorageError
from llmc.files.bytes import raw_bytes
from llmc.pipeline.execute import Execution

SHAPES = {
    "a": (torch.float32, (3, 5)),
    "b": (torch.bfloat16, (7,)),
    "empty": (torch.float32, (0, 4)),
    "scalar": (torch.int64, ()),
}
MARK = {"model": "m", "recipe": "r"}
RTN: dict[str, Any] = {"method": "rtn", "group_size": 32}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("artifact") / "model", num_hidden_layers=4)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {n: (torch.randn(s) * 9).to(dtype) for n, (dtype, s) in SHAPES.items()}


def new(tmp_path: Path, **mark: str) -> Artifact:
    return Artifact(tmp_path / "out", {"": arrange(SHAPES)}, {**MARK, **mark})


def unit(artifact: Artifact, name: str) -> Unit:
    return Unit(name, {"": {name: artifact.folders[""].write(name, tensors()[name])}}, [{"target": name}])


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_tensor_has_its_place(tmp_path: Path) -> None:
    artifact = new(tmp_path)
    artifact.open(fresh=False, force=False)
    folder = artifact.folders[""]
    for name, tensor in reversed(tensors().items()):
        digest = folder.write(name, tensor)
        assert digest == folder.digest(name) == hashlib.sha256(raw_bytes(tensor)).hexdigest()
        assert torch.equal(folder.read(name), tensor)
    folder.write_part("a", 4, memoryview(b"\0" * 8))
    artifact.finish()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    expected = tensors()
    expected["a"].view(-1)[1:3] = 0
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[n], expected[n]) for n in expected)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_does_not_fit_its_place_is_a_fault(tmp_path: Path) -> None:
    artifact = new(tmp_path)
    artifact.open(fresh=False, force=False)
    for wrong in (torch.zeros(5, 3), torch.zeros(3, 5, dtype=torch.float64)):
        with pytest.raises(ValueError, match="does not fit its place"):
            artifact.folders[""].write("a", wrong)
    artifact.abandon()
    assert list(tmp_path.iterdir()) == []


def test_finished_units_are_found_again(tmp_path: Path) -> None:
    first = new(tmp_path)
    first.open(fresh=False, force=False)
    for name in ("a", "b"):
        first.record(unit(first, name))
    first.abandon()
    second = new(tmp_path)
    second.open(fresh=False, force=False)
    assert second.done == first.done
    assert second.done["a"].report == [{"target": "a"}]
    second.abandon()
    fresh = new(tmp_path)
    fresh.open(fresh=True, force=False)
    assert fresh.done == {}
    fresh.abandon()


def journal(tmp_path: Path) -> Path:
    return partial(tmp_path / "out") / "journal.jsonl"


GOOD = json.dumps({"unit": "x", "tensors": {"": {}}, "report": []}).encode() + b"\n"
DAMAGE: list[tuple[str, Any, set[str]]] = [
    ("cut", lambda data: data[:-20], {"a"}),
    ("no end", lambda data: data[:-1], {"a", "b"}),
    ("garbage", lambda data: data + b"\x00\xff garbage\n" + GOOD, {"a", "b"}),
    ("garbage inside", lambda data: data.replace(b'"unit": "a"', b'"unit": \xff'), set()),
    ("other JSON", lambda data: data + b"5\n" + GOOD, {"a", "b"}),
    ("no unit", lambda data: data + b"{}\n" + GOOD, {"a", "b"}),
    ("unknown tensor", lambda data: data.replace(b'{"b": ', b'{"c": '), {"a"}),
    ("unknown folder", lambda data: data.replace(b'"tensors": {"": {"b"', b'"tensors": {"../x": {"b"'), {"a"}),
    ("wrong types", lambda data: data.replace(b'"tensors": {"": {"b"', b'"tensors": [], "x": {"": {"b"'), {"a"}),
    ("no fingerprint", lambda data: data.split(b"\n", 1)[1], set()),
    ("empty", lambda data: b"", set()),
    ("list", lambda data: b"[]\n" + data, set()),
]


@pytest.mark.parametrize(("damage", "left"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_a_damaged_journal_only_costs_work(tmp_path: Path, damage: Any, left: set[str]) -> None:
    artifact = new(tmp_path)
    artifact.open(fresh=False, force=False)
    for name in ("a", "b"):
        artifact.record(unit(artifact, name))
    artifact.abandon()
    journal(tmp_path).write_bytes(damage(journal(tmp_path).read_bytes()))
    again = new(tmp_path)
    again.open(fresh=False, force=False)
    assert {name for name in again.done if name != "x"} == left
    again.record(unit(again, "scalar"))
    lines = [json.loads(line) for line in journal(tmp_path).read_bytes().splitlines()]
    assert lines[0] == {"fingerprint": MARK}
    assert lines[-1]["unit"] == "scalar"
    again.abandon()


def test_an_unfinished_run_of_something_else_stays(tmp_path: Path) -> None:
    first = new(tmp_path)
    first.open(fresh=False, force=False)
    first.record(unit(first, "a"))
    first.abandon()
    before = digests(partial(tmp_path / "out"))
    for _ in range(2):  # and it is not locked afterwards
        with pytest.raises(OutputError) as caught:
            new(tmp_path, recipe="other").open(fresh=False, force=False)
        message = "out: an unfinished run with another recipe lies in out.llmc-partial; add --fresh to discard it"
        assert str(caught.value) == message
        assert digests(partial(tmp_path / "out")) == before


def test_two_runs_on_one_output(tmp_path: Path) -> None:
    first = new(tmp_path)
    first.open(fresh=False, force=False)
    for fresh in (False, True):
        with pytest.raises(OutputError, match="another run is writing this output; wait for it"):
            new(tmp_path).open(fresh=fresh, force=True)
    first.record(unit(first, "a"))
    first.abandon()
    second = new(tmp_path)
    second.open(fresh=False, force=False)
    assert set(second.done) == {"a"}
    second.abandon()


def test_a_full_disk_is_said_before_the_work(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(1000, 0, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    need = llmc.plan(str(model), **RTN).weight_bytes
    outcome = command("quantize", model, "-o", tmp_path / "out", "--method", "rtn", "--group-size", "32", "--json")
    line = f"error: out: not enough disk: {need} bytes needed, 1000 free; free some, or choose another -o"
    assert (outcome.code, outcome.line, outcome.error["kind"]) == (3, line, "storage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Whatever fails, the old output stays as it was, and the same command goes on later."""
    out = tmp_path / "out"
    words = ("quantize", model, "-o", out, "--method", "rtn", "--group-size", "32")
    assert command(*words, "--bits", "8").code == 0
    before = digests(out)

    def fail(*arguments: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        outcome = command(*words, "--force")
    assert outcome.code == 3
    full = "; free some space and run the same command again" if code == errno.ENOSPC else ""
    assert outcome.line.endswith(f": cannot write: {os.strerror(code)}{full}")
    assert digests(out) == before
    assert command(*words, "--force").code == 0
    assert command("verify", out).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_output_that_cannot_be_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.artifacts.workfolder.exchange", lambda one, other: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.safetensors").write_text("old")
    artifact = new(tmp_path)
    artifact.open(fresh=False, force=True)
    artifact.record(unit(artifact, "a"))
    original = os.rename

    def rename(source: Path, target: Path) -> None:
        if source.name == "model":
            raise OSError(errno.EIO, "Input/output error")
        original(source, target)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="out: cannot write: Input/output error"):
        patch.setattr(os, "rename", rename)
        artifact.finish()
    artifact.abandon()
    assert digests(tmp_path / "out").keys() == {"old.safetensors"}
    again = new(tmp_path)
    again.open(fresh=False, force=True)
    assert set(again.done) == {"a"}
    again.finish()
    assert digests(tmp_path / "out").keys() == {"model.safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# Resume of whole runs


class StopError(Exception):
    """Stands for a kill between two units."""


def interrupted(model: Path, out: Path, units: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Leave a run of `units` finished units behind."""
    original = Artifact.record

    def record(self: Artifact, finished: Unit) -> None:
        if len(self.done) == units:
            raise StopError
        original(self, finished)

    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(Artifact, "record", record)
        llmc.quantize(str(model), out, **RTN, **options)
    assert partial(out).is_dir()
    assert not out.exists()


def test_a_flipped_bit_makes_its_unit_be_done_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llmc.quantize(str(model), tmp_path / "whole" / "out", **RTN)
    out = tmp_path / "out"
    interrupted(model, out, 4, monkeypatch)
    file = partial(out) / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name = "model.layers.1.mlp.up_proj.weight_packed"
    data[8 + int.from_bytes(data[:8], "little") + header[name]["data_offsets"][0]] ^= 1
    file.write_bytes(data)
    did: list[str] = []
    original = Execution._unit

    def unit_seen(self: Execution, name: str, work: Any) -> None:
        did.extend([name] if name not in self.artifact.done else [])
        original(self, name, work)

    monkeypatch.setattr(Execution, "_unit", unit_seen)
    llmc.quantize(str(model), out, **RTN)
    assert did == ["model.layers.1", "model.layers.3"]
    assert digests(out) == digests(tmp_path / "whole" / "out")


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data + b"more"])
def test_weight_files_of_another_size_are_made_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    llmc.quantize(str(model), tmp_path / "whole" / "out", **RTN)
    out = tmp_path / "out"
    interrupted(model, out, 3, monkeypatch)
    file = partial(out) / "model" / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    llmc.quantize(str(model), out, **RTN)
    assert digests(out) == digests(tmp_path / "whole" / "out")


def test_a_run_cut_off_between_two_folders(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first folder is sealed already: sealing it again must not list its own seal."""
    from llmc.pipeline import run as pipeline

    formats = ["compressed-tensors", "gptq"]
    llmc.quantize(str(model), tmp_path / "whole" / "out", **RTN, formats=formats)
    original = pipeline.complete_folder

    def complete(job: Any, container: Any, *rest: Any) -> Any:
        if container.name == "gptq":
            raise StopError
        return original(job, container, *rest)

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(pipeline, "complete_folder", complete)
        llmc.quantize(str(model), out, **RTN, formats=formats)
    assert (partial(out) / "model" / "compressed-tensors" / "llmc.json").is_file()
    llmc.quantize(str(model), out, **RTN, formats=formats)
    assert digests(out) == digests(tmp_path / "whole" / "out")
    assert all(llmc.verify(out / name).ok for name in formats)
