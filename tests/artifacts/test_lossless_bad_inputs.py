"""What `lossless`, `decompress` and `verify` refuse: one exact line, one exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from spoiled import Command, partial

import llmc
from llmc.artifacts.lossless import write as lossless_writing
from llmc.encodings.coding.coded_head import pack_head
from llmc.encodings.coding.tensor_coder import encode
from llmc.files.safetensors import read_file
from llmc.formats import coded_files

NORM = "model.norm.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bad")
    tiny_models.build("llama", place / "model")
    llmc.lossless(place / "model", place / "coded", exact_files=True)
    return place


@pytest.fixture
def model(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact / "model", tmp_path / "model"))


@pytest.fixture
def coded(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact / "coded", tmp_path / "coded"))


def refused(command: Command, verb: str, source: Path, line: str, *more: Any, code: int = 2) -> None:
    """The verb ends with exactly `line` on stderr, and leaves nothing."""
    out = source.parent / "out"
    outcome = command(verb, source, "-o", out, *more, "--json")
    assert (outcome.code, outcome.line) == (code, f"error: {line}")
    assert outcome.error["message"] in line
    assert not out.exists() and not partial(out).exists()


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1000])


Spoil = Callable[[Path], object]
SOURCES: dict[str, tuple[Spoil, str]] = {
    "nothing in it": (
        lambda f: [p.unlink() for p in f.iterdir()],
        "{m}: no weights: neither model.safetensors nor model.safetensors.index.json; "
        "give a folder that holds one of them",
    ),
    "a cut file": (
        lambda f: cut(f / "model.safetensors"),
        "{m}/model.safetensors: tensor model.layers.1.self_attn.v_proj.weight: ends at byte 182808 of a file of "
        "181936: the file is truncated; the file is damaged: download it again",
    ),
    "an empty file": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "{m}/model.safetensors: empty file; the file is damaged: download it again",
    ),
    "a FIFO": (
        lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")),
        "{m}/model.safetensors: a FIFO where a regular file is expected",
    ),
    "an index that leads out": (
        lambda f: (
            (f / "model.safetensors").rename(f.parent / "s.safetensors"),
            (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../s.safetensors"}}'),
        ),
        "{m}/model.safetensors.index.json: tensor a: its shard ../s.safetensors is not the name of a .safetensors file "
        "in the folder; a weight_map must not lead elsewhere: do not trust this model",
    ),
    "the same name in two files": (
        lambda f: (
            (f / "model.safetensors").rename(f / "a.safetensors")
            and shutil.copy(f / "a.safetensors", f / "b.safetensors")
        ),
        "{m}/b.safetensors: tensor model.embed_tokens.weight: in a.safetensors too; give each file by itself",
    ),
    "coded already": (
        lambda f: (f / "model.safetensors").rename(f / "model.llmc.safetensors"),
        "model: model.llmc.safetensors is coded already; see llmc decompress",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(command: Command, model: Path, name: str) -> None:
    spoil, line = SOURCES[name]
    spoil(model)
    out = model.parent / "out"
    outcome = command("lossless", model, "-o", out, "--json")
    assert (outcome.code, outcome.line) == (2, f"error: {line.format(m=model)}")
    assert not out.exists() and not partial(out).exists()


def test_paths(command: Command, model: Path, intact: Path) -> None:
    lost = model.parent / "lost"
    refused(command, "lossless", lost, f"{lost}: no such folder; give a model folder or a Hub id like user/name")
    text = model.parent / "notes.txt"
    text.write_text("x")
    refused(command, "lossless", text, f"{text}: neither a model folder nor a .safetensors file")
    refused(command, "decompress", model, f"{model}: no *.llmc.safetensors file in it; give what llmc lossless wrote")
    file = model / "model.safetensors"
    refused(command, "decompress", file, f"{file}: no *.llmc.safetensors file in it; give what llmc lossless wrote")


@pytest.mark.parametrize("verb", ["lossless", "decompress"])
def test_outputs(command: Command, model: Path, coded: Path, verb: str) -> None:
    source = model if verb == "lossless" else coded
    inside = command(verb, source, "-o", source / "out")
    assert inside.line == "error: out: the output is the input or lies inside it; choose another -o"
    there = source.parent / "there"
    there.mkdir()
    (there / "file").write_text("mine")
    exists = command(verb, source, "-o", there)
    line = "error: there: it holds what no model does: file; move that away, or choose another -o"
    assert [(e.code, e.line) for e in (exists, command(verb, source, "-o", there, "--force"))] == [(2, line)] * 2
    assert (there / "file").read_text() == "mine"
    (there / "file").rename(source.parent / "file")
    assert command(verb, source, "-o", there).code == 0
    exists = command(verb, source, "-o", there)
    assert (exists.code, exists.line) == (2, "error: there: the output folder exists; add --force to replace it")
    assert command(verb, source, "-o", there, "--force").code == 0


def test_options(command: Command, model: Path) -> None:
    line = "mode: no mode 'smal'; did you mean 'small'?"
    refused(command, "lossless", model, line, "--mode", "smal")
    assert command("lossless", model, "-o", model.parent / "out", "--threads", "0").code == 2


def test_names_that_look_like_paths_or_terminal_codes_are_only_names(command: Command, tmp_path: Path) -> None:
    names = ["../../escape", "/etc/passwd", "a\x1b[31mred", "new\nline", "ü", "a" * 300]
    tensors = {name: torch.full((4, 4), float(i)) + torch.eye(4) for i, name in enumerate(names)}
    source = tmp_path / "source"
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    assert command("lossless", source, "-o", tmp_path / "coded", "--exact-files").code == 0
    assert command("verify", tmp_path / "coded", "--against", source).code == 0
    assert command("decompress", tmp_path / "coded", "-o", tmp_path / "plain").code == 0
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


# Coded files with one thing wrong: all tensors are safetensors tensors still.


def respell(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], **metadata: str) -> Path:
    file = folder / "model.llmc.safetensors"
    kept = {**read_file(file).metadata, **metadata}
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, kept)
    return file


def stream(place: int, value: int) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[GATE][place] ^= value

    return change


def forged(**fields: Any) -> Callable[[dict[str, torch.Tensor]], object]:
    """A constant tensor whose head claims something else, with a right sum."""
    from dataclasses import replace

    def change(tensors: dict[str, torch.Tensor]) -> None:
        coded = encode(torch.zeros(30, 30))
        data = pack_head(replace(coded.head, **fields)) + coded.pieces[1].tobytes()
        tensors[NORM] = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    return change


CODED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no coded tensor": (
        lambda t: t.update({NORM: torch.zeros(64, dtype=torch.uint8)}),
        f"tensor {NORM}: no coded tensor: it begins with b'\\x00\\x00\\x00\\x00'; a newer llmc may know it; "
        "b'lLT1' is known",
    ),
    "another dtype": (lambda t: t.update({NORM: torch.zeros(64)}), f"tensor {NORM}: is not a coded tensor"),
    "empty": (
        lambda t: t.update({NORM: torch.zeros(0, dtype=torch.uint8)}),
        f"tensor {NORM}: the head of a coded tensor ends early",
    ),
    "a damaged head": (stream(9, 1), f"tensor {GATE}: the head of a coded tensor is damaged: its sum differs"),
    "10^15 bytes": (
        forged(shape=(10**15,)),
        f"tensor {NORM}: a coded tensor claims the shape [1000000000000000], more than 1099511627776 bytes",
    ),
}


@pytest.mark.parametrize("name", CODED)
def test_coded(command: Command, coded: Path, name: str) -> None:
    change, line = CODED[name]
    file = respell(coded, change)
    refused(command, "decompress", coded, f"{file}: {line}")


def test_a_claim_beyond_the_machine_is_no_allocation(command: Command, coded: Path, monkeypatch: Any) -> None:
    file = respell(coded, forged(shape=(1 << 30,)))
    monkeypatch.setattr(coded_files, "memory", lambda: 1 << 30)
    with pytest.raises(llmc.LlmcError, match=rf"tensor {NORM}: claims 4294967296 bytes, more than the 1073741824 of"):
        llmc.read_tensors(file)


@pytest.mark.parametrize("place", [200, 400, -5])
def test_a_damaged_stream_or_part(command: Command, coded: Path, place: int) -> None:
    respell(coded, stream(place, 8))
    out = coded.parent / "out"
    outcome = command("decompress", coded, "-o", out)
    assert outcome.code == 2 and f"tensor {GATE}: " in outcome.line
    assert not out.exists() and not partial(out).exists()


def test_damaged_metadata(command: Command, coded: Path) -> None:
    file = respell(coded, lambda t: None, original="[1]")
    refused(command, "decompress", coded, f"{file}: the original metadata in it is damaged")
    respell(coded, lambda t: None, original="{}", header="?")
    outcome = command("decompress", coded, "-o", coded.parent / "out")
    assert outcome.code == 2 and "the original header in it is damaged" in outcome.line


def test_another_header_than_the_original_is_found(command: Command, coded: Path) -> None:
    import base64
    import zlib

    file = coded / "model.llmc.safetensors"
    header = bytearray(zlib.decompress(base64.b64decode(read_file(file).metadata["header"])))
    header[-1:] = b" " if header[-1:] != b" " else b"\t"
    respell(coded, lambda t: None, header=base64.b64encode(zlib.compress(bytes(header))).decode())
    outcome = command("decompress", coded, "-o", coded.parent / "out")
    assert outcome.code == 2 and not (coded.parent / "out").exists()


def test_a_wrong_tensor_is_found_by_its_recorded_bits(command: Command, coded: Path) -> None:
    """One that decodes without complaint, to something else than the source had."""

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        pieces = encode((torch.randn(64) * 0.1).bfloat16()).pieces
        tensors[NORM] = torch.cat([torch.tensor(piece) for piece in pieces])

    file = respell(coded, swap)
    line = f"{file}: tensor {NORM} did not become what it was; write or download the folder again"
    refused(command, "decompress", coded, line)


# What the world does to a run.


def start(limits: str, *words: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(llmc.__path__[0]).parent)}
    code = f"import resource, sys\nfrom llmc.artifacts.lossless import write\nwrite.UNIT = 1\n{limits}\n"
    code += "from llmc.cli import main\nmain()"
    line = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_full_disk(model: Path) -> None:
    assert resource.RLIMIT_FSIZE
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))"
    process = start(limit, "lossless", model, "-o", model.parent / "out")
    _, said = process.communicate()
    assert process.returncode == 3
    assert said.splitlines()[-1].startswith("error: model.llmc.safetensors: cannot write: File too large; free some")
    assert not (model.parent / "out").exists()
    assert llmc.lossless(model, model.parent / "out").weight_bytes  # goes on with what is there
    assert llmc.verify(model.parent / "out", against=model).problems == ()


def test_killed_runs_end_with_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model", num_hidden_layers=8)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    words = ("lossless", model, "-o")
    assert start("", *words, tmp_path / "whole" / "out").wait() == 0
    journal = partial(tmp_path / "cut" / "out") / "journal.jsonl"
    for wanted in (2, 15, 40):
        process = start("", *words, tmp_path / "cut" / "out")
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > wanted):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "cut" / "out").exists() or wanted == 40
    if not (tmp_path / "cut" / "out").exists():
        assert start("", *words, tmp_path / "cut" / "out").wait() == 0
    for name in ("model.llmc.safetensors", "config.json", "llmc.json"):
        assert (tmp_path / "cut" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def test_a_source_that_changes_during_the_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = lossless_writing.tensor_coder.encode

    def change(*arguments: Any, **options: Any) -> Any:
        if not seen:
            with open(model / "model.safetensors", "ab") as file:
                file.write(b"x")
        seen.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(lossless_writing, "UNIT", 1)
    monkeypatch.setattr(lossless_writing.tensor_coder, "encode", change)
    with pytest.raises(llmc.LlmcError, match="changed since its header was read"):
        llmc.lossless(model, model.parent / "out")
    assert not (model.parent / "out").exists()


def test_the_error_document(command: Command, model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")
    outcome = command("lossless", model, "-o", model.parent / "out", "--json")
    assert json.loads(outcome.out)["error"]["kind"] == "checkpoint"
