"""What the world does to a run: full disks, small memories, signals, files that change under it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from spoiled import Command, Outcome, copy, partial

import llmc
from llmc.artifacts.artifact import Artifact, Unit

AGAIN = "run the same command again to continue, or add --fresh to discard what is there"
RTN = ("--method", "rtn", "--group-size", "32")
START = """
import resource, sys
from llmc.cli import main
{limits}
main()
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    tiny_models.build("llama", folder / "model", num_hidden_layers=6)
    tiny_models.corpus(folder)
    return folder


def start(limits: str, *words: str | Path) -> subprocess.Popen[str]:
    """`llmc` in a process of its own, after the lines of `limits`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(llmc.__path__[0]).parent)}
    line = [sys.executable, "-c", START.format(limits=limits), *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def gptq(place: Path) -> tuple[str, ...]:
    text = str(place / "corpus.txt")
    sizes = ("--num-samples", "16", "--sequence-length", "64")
    return ("--method", "gptq", "--group-size", "32", "--calibration", text, *sizes)


def test_a_file_that_may_not_grow(command: Command, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("quantize", place / "model", "-o", out, *RTN)
    assert command(*words, "--bits", "8").code == 0
    before = digests(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        outcome = command(*words, "--force", "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = "error: out: cannot write: File too large; free some space and run the same command again"
    assert (outcome.code, outcome.line, outcome.error["kind"]) == (3, line, "storage")
    assert digests(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_full(command: Command, place: Path, tmp_path: Path) -> None:
    """A file system of 300 kB: said before the work."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        outcome = command("quantize", place / "model", "-o", disk / "out", *RTN, "--format", "dense")
        assert outcome.code == 3
        assert outcome.line.startswith("error: out: not enough disk: ")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_may_not_be_written_to(command: Command, place: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        for verb in (("quantize", *RTN), ("lossless",)):
            outcome = command(verb[0], place / "model", "-o", disk / "out", *verb[1:])
            assert (outcome.code, outcome.line) == (3, "error: out: cannot write: Read-only file system")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


TIGHT = """
import os, llmc.pipeline.run
from llmc.pipeline.execute import Execution
original = Execution.run
def run(self):
    used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
    return original(self)
Execution.run = run
"""


def test_too_little_memory_for_the_work(tmp_path: Path) -> None:
    """64 MiB of address space for a matrix of 128: exit 4, and no half output."""
    model = tiny_models.build("llama", tmp_path / "wide", vocab_size=1 << 18, hidden_size=256)
    words = ("quantize", model, "-o", tmp_path / "out", *RTN, "--targets", "model.embed_tokens", "--json")
    process = start(TIGHT, *words)
    printed, err = process.communicate(timeout=120)
    size = 2 * 256 << 18
    line = f"error: {model}/model.safetensors: tensor model.embed_tokens.weight: no memory for its {size} bytes"
    assert (process.returncode, err.splitlines()[-1]) == (4, line)
    assert json.loads(printed)["error"]["kind"] == "memory"
    assert not (tmp_path / "out").exists()


def units(out: Path) -> int:
    """Finished units of an unfinished run."""
    journal = partial(out) / "journal.jsonl"
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else -1


SLOW = """
import time
from llmc.artifacts.artifact import Artifact
original = Artifact.record
def record(self, unit):
    original(self, unit)
    time.sleep(0.3)
Artifact.record = record
"""


def test_ctrl_c(command: Command, place: Path, tmp_path: Path) -> None:
    """At any moment of a real process; the same command then ends with the bytes of an undisturbed run."""
    out = tmp_path / "out"
    words = ("quantize", place / "model", "-o", out, *gptq(place))
    process = start(SLOW, *words)
    while units(out) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, f"error: interrupted; {AGAIN}")
    assert "Traceback" not in err
    assert not out.exists()
    assert units(out) >= 3
    assert command(*words).code == 0
    assert not partial(out).exists()
    whole = tmp_path / "whole" / "out"
    assert command("quantize", place / "model", "-o", whole, *gptq(place)).code == 0
    assert digests(out) == digests(whole)


SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.mark.parametrize(("number", "code", "what"), SIGNALS, ids=["INT", "TERM"])
def test_signals(
    command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, what: str
) -> None:
    out = tmp_path / "out"
    words = ("quantize", place / "model", "-o", out, *RTN)
    with monkeypatch.context() as patch:
        changing(patch, 3, lambda: os.kill(os.getpid(), number))
        outcome = command(*words, "--json")
    assert (outcome.code, outcome.line) == (code, f"error: {what}; {AGAIN}")
    assert outcome.error["kind"] == "interrupted"
    assert units(out) == 3
    assert command(*words).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("number", "code", "what"), SIGNALS, ids=["INT", "TERM"])
def test_a_signal_before_any_unit_is_done_leaves_nothing(
    command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, what: str
) -> None:
    monkeypatch.setattr(Artifact, "record", lambda *_: os.kill(os.getpid(), number))
    assert command("quantize", place / "model", "-o", tmp_path / "out", *RTN).code == code
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once(command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("quantize", place / "model", "-o", tmp_path / "out", *RTN)
    refused: list[Outcome] = []
    more: list[tuple[str, ...]] = [(), ("--fresh",), ("--force",)]
    changing(monkeypatch, 3, lambda: refused.extend(command(*words, *options) for options in more))
    assert command(*words).code == 0
    line = "error: out: another run is writing this output; wait for it"
    assert [(outcome.code, outcome.line) for outcome in refused] == [(2, line)] * 3
    assert command("verify", tmp_path / "out").code == 0


@pytest.mark.skipif(not os.access("/proc/sys", os.R_OK), reason="needs /proc")
def test_a_folder_that_takes_no_files(command: Command, place: Path) -> None:
    outcome = command("quantize", place / "model", "-o", "/proc/out", *RTN, "--json")
    assert (outcome.code, outcome.error["kind"]) == (3, "storage")
    assert outcome.line.startswith("error: out: cannot write: ")


def changing(monkeypatch: pytest.MonkeyPatch, after: int, change: Any) -> None:
    """Call `change` once `after` units are done."""
    original = Artifact.record

    def record(self: Artifact, unit: Unit) -> None:
        original(self, unit)
        if len(self.done) == after:
            change()

    monkeypatch.setattr(Artifact, "record", record)


def test_a_source_cut_during_the_run(
    command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy(place / "model", tmp_path / "model")
    file = model / "model.safetensors"
    size = file.stat().st_size
    changing(monkeypatch, 3, lambda: os.truncate(file, size // 2))
    outcome = command("quantize", model, "-o", tmp_path / "out", *RTN, "--json")
    name = "model.layers.2.mlp.down_proj.weight"
    line = f"error: {file}: tensor {name}: the file changed since its header was read: {size} bytes then, "
    assert (outcome.code, outcome.line) == (3, f"{line}{size // 2} now; start again on files that nobody writes to")
    assert not (tmp_path / "out").exists()


def test_a_source_changed_between_two_runs(
    command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished part is of other weights: the resume is refused until --fresh."""
    model = copy(place / "model", tmp_path / "model")
    file = model / "model.safetensors"
    words = ("quantize", model, "-o", tmp_path / "out", *RTN)
    with monkeypatch.context() as patch:
        changing(patch, 3, lambda: os.utime(file, ns=(1, 1)))
        assert command(*words).code == 3
    outcome = command(*words)
    line = "error: out: an unfinished run with another model lies in out.llmc-partial; add --fresh to discard it"
    assert (outcome.code, outcome.line) == (2, line)
    assert command(*words, "--fresh").code == 0
    assert command("verify", tmp_path / "out", "--against", model).code == 0


def test_a_disk_that_cannot_be_read(
    command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.preadv
    calls = iter(range(1000))

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        if next(calls) > 30:
            raise OSError(5, "Input/output error")
        return original(fd, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        outcome = command("quantize", place / "model", "-o", tmp_path / "out", *RTN)
    assert outcome.code == 3
    file = place / "model" / "model.safetensors"
    assert outcome.line.startswith(f"error: {file}: cannot be read at byte ")
    assert outcome.line.endswith(": Input/output error")
    assert not (tmp_path / "out").exists()
    assert command("quantize", place / "model", "-o", tmp_path / "out", *RTN).code == 0


def test_a_fault_of_the_program_keeps_the_finished_work(
    command: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise ZeroDivisionError("a fault")

    with monkeypatch.context() as patch:
        changing(patch, 2, fault)
        outcome = command("quantize", place / "model", "-o", tmp_path / "out", *RTN)
    line = "error: internal error: ZeroDivisionError: a fault; please report it with the lines above"
    assert (outcome.code, outcome.line) == (70, line)
    assert "Traceback (most recent call last):" in outcome.err
    assert units(tmp_path / "out") == 2
    assert command("quantize", place / "model", "-o", tmp_path / "out", *RTN).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
