"""`quantize --entropy`: the files of a run without it, coded; resumed after any interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from folders import digests
from spoiled import Command

import llmc
from llmc.artifacts.lossless import write as lossless_writing
from llmc.errors import StorageError
from llmc.pipeline import entropy

OPTIONS: dict[str, Any] = {"method": "rtn", "bits": 3, "group_size": 32}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("entropy") / "model", num_hidden_layers=3)


@pytest.fixture(scope="module")
def plain(model: Path) -> Path:
    """What a run without --entropy writes under the same name."""
    llmc.quantize(str(model), out := model.parent / "plain" / "out", **OPTIONS)
    return out


@pytest.fixture(scope="module")
def coded(model: Path) -> Path:
    llmc.quantize(str(model), out := model.parent / "coded" / "out", entropy=True, **OPTIONS)
    return out


def test_export_gives_the_files_of_a_run_without_it(plain: Path, coded: Path, tmp_path: Path) -> None:
    llmc.export(coded, tmp_path / "back", format="compressed-tensors")
    assert digests(tmp_path / "back") == digests(plain)
    assert llmc.verify(coded).ok
    assert not list(coded.parent.glob("*partial*"))


def test_what_is_reported_is_what_was_written(model: Path, plain: Path, tmp_path: Path) -> None:
    result = llmc.quantize(str(model), tmp_path / "out", entropy=True, **OPTIONS)
    summary = result.folders["compressed-tensors"]
    weights = tmp_path / "out" / "model.llmc.safetensors"
    assert summary["weight_bytes"] == weights.stat().st_size
    assert summary["held_bytes"] == (plain / "model.safetensors").stat().st_size
    before = json.loads((plain / "llmc.json").read_text())["sizes"]
    assert summary["bits_per_weight"] < before["bits_per_weight"]
    assert summary["mean_snr_db"] is not None
    manifest = json.loads((tmp_path / "out" / "llmc.json").read_text())
    assert manifest["recipe"]["entropy"] is True
    assert "# model: rtn, 3 bits, groups of 32\n" in (tmp_path / "out" / "README.md").read_text()


def test_several_formats_have_a_coded_folder_each(model: Path, tmp_path: Path) -> None:
    formats = ["compressed-tensors", "gptq", "dense"]
    for name, coding in (("plain/out", False), ("coded/out", True)):
        llmc.quantize(str(model), tmp_path / name, entropy=coding, formats=formats, **OPTIONS)
    for name in formats:
        llmc.export(tmp_path / "coded/out" / name, tmp_path / "back" / name, format=name)
        assert digests(tmp_path / "back" / name) == digests(tmp_path / "plain/out" / name)


def test_a_recipe_may_ask_for_it(model: Path, coded: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {model}\nstages:\n  - {{method: rtn, bits: 3, group_size: 32}}\nentropy: true\n")
    llmc.run(str(recipe), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(coded)


@pytest.mark.parametrize("options", [OPTIONS, {**OPTIONS, "bits": 8, "group_size": "channel"}])
def test_the_plan_is_an_upper_bound(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    plan = llmc.plan(str(model), entropy=True, **options)
    llmc.quantize(str(model), tmp_path / "out", entropy=True, **options)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}
    assert plan.at_most and plan.files.keys() == sizes.keys()
    assert all(sizes[name] <= plan.files[name] for name in sizes)
    assert plan.weight_bytes < 1.5 * llmc.plan(str(model), **options).weight_bytes
    assert "all weight files, at most" in str(plan.tables())
    assert "transformers, after llmc export --format compressed-tensors" in plan.runtimes["compressed-tensors"]


def test_a_run_that_stops_while_coding_computes_nothing_again(
    model: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    encode, calls = lossless_writing.tensor_coder.encode, []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > 5:
            raise StorageError("cannot write: No space left on device", where="out")
        return encode(*args, **kwargs)

    monkeypatch.setattr(lossless_writing.tensor_coder, "encode", full)
    with pytest.raises(StorageError):
        llmc.quantize(str(model), out, entropy=True, **OPTIONS)
    monkeypatch.undo()
    assert not out.exists()
    journal = out.with_name("out.llmc-partial") / "journal.jsonl"
    before = journal.read_bytes()
    assert before.count(b"\n") > 3
    written: list[str] = []
    monkeypatch.setattr(llmc.artifacts.artifact.Artifact, "record", lambda self, unit: written.append(unit.name))
    monkeypatch.setattr(entropy, "code", lambda *args, **kwargs: pytest.fail("coded"))
    with pytest.raises(pytest.fail.Exception):
        llmc.quantize(str(model), out, entropy=True, **OPTIONS)
    assert not written and journal.read_bytes() == before
    monkeypatch.undo()
    llmc.quantize(str(model), out, entropy=True, **OPTIONS)
    assert digests(out) == digests(coded)
    assert not list(tmp_path.glob("*partial*"))


def test_a_run_goes_on_with_or_without_it(model: Path, plain: Path, coded: Path, tmp_path: Path) -> None:
    """What is coded is what a run without it writes: the unfinished work is the same."""
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "code", lambda *args, **kwargs: (_ for _ in ()).throw(StorageError("full", where="out")))
        with pytest.raises(StorageError):
            llmc.quantize(str(model), out, entropy=True, **OPTIONS)
    llmc.quantize(str(model), out, **OPTIONS)
    assert digests(out) == digests(plain)
    llmc.quantize(str(model), out, entropy=True, force=True, **OPTIONS)
    assert digests(out) == digests(coded)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_while_coding_goes_on_to_the_same_bytes(
    model: Path, coded: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    slow = (
        "import sys, time; from llmc.artifacts.lossless import write as w; from llmc.cli import main\n"
        "e = w.tensor_coder.encode\n"
        "def encode(*a, **k): time.sleep(0.1); return e(*a, **k)\n"
        "w.tensor_coder.encode = encode; sys.exit(main())"
    )
    arguments = ["quantize", str(model), "-o", str(out), "--method", "rtn", "--bits", "3", "--group-size", "32"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *arguments, "--entropy"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip
    inner = tmp_path / "out.llmc-partial" / "coded.llmc-partial" / "model" / "model.llmc.safetensors"
    while process.poll() is None and not (inner.exists() and inner.stat().st_size):
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait() == (130 if how == signal.SIGINT else -how)
    assert not out.exists()
    llmc.quantize(str(model), out, entropy=True, **OPTIONS)
    assert digests(out) == digests(coded)


def test_the_command(command: Command, model: Path, coded: Path, tmp_path: Path) -> None:
    outcome = command(
        "quantize", str(model), "-o", str(tmp_path / "out"), "--method", "rtn", "--bits", "3", "--group-size", "32",
        "--entropy",
    )  # fmt: skip
    assert outcome.code == 0 and "Written to" in outcome.out
    assert digests(tmp_path / "out") == digests(coded)
