"""Nothing is lost: work folders, replacements that are cut off at every step, and whose files may be deleted."""

from __future__ import annotations

import hashlib
import json
import os
import random
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
from hypothesis import given, settings
from hypothesis import strategies as st
from spoiled import Command, partial

import llmc
from llmc.artifacts import workfolder
from llmc.artifacts.artifact import Artifact, Unit
from llmc.artifacts.inventory import inventory, remove
from llmc.artifacts.layout import arrange
from llmc.artifacts.workfolder import MARK, check_place, discard, partial_of, replaced_of
from llmc.errors import OutputError
from llmc.files.manifest import write_manifest

SHAPES = {"a": (torch.float32, (3, 5)), "b": (torch.bfloat16, (7,))}
RTN = ("--method", "rtn", "--group-size", "32")
STEPS = ("mkdir", "open", "rename", "unlink", "rmdir", "fsync", "pwrite", "posix_fallocate", "ftruncate", "scandir")
"""What of `os` a run calls where the disk changes, and where it is looked at."""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(params=["exchange", "two renames"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to replace a folder."""
    if request.param == "two renames":
        monkeypatch.setattr(workfolder, "exchange", lambda one, other: False)
    return str(request.param)


def write(out: Path, fill: float, force: bool = False) -> None:
    """A whole run that writes a model whose values are all `fill`."""
    artifact = Artifact(out, {"": arrange(SHAPES)}, {"fill": str(fill)})
    artifact.open(fresh=False, force=force)
    try:
        folder = artifact.folders[""]
        for name, (dtype, shape) in SHAPES.items():
            if name not in artifact.done:
                digest = folder.write(name, torch.full(shape, fill, dtype=dtype))
                artifact.record(Unit(name, {"": {name: digest}}, []))
        folder.close()
        (folder.path / "config.json").write_text(json.dumps({"fill": fill}))
        (folder.path / "kernel").mkdir(exist_ok=True)
        (folder.path / "kernel" / "decode.py").write_text(f"# {fill}")
        write_manifest(folder.path, {"fill": fill})
        artifact.finish()
    finally:
        artifact.abandon()


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def dying_at(step: int, work: Callable[[], None]) -> bool:
    """Whether a process that does `work` lives through it when it is killed before its call number `step`."""
    child = os.fork()
    if child == 0:
        count = iter(range(1 << 30))

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(*arguments: Any, **options: Any) -> Any:
                if next(count) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return called

        for name in STEPS:
            setattr(os, name, deadly(getattr(os, name)))
        workfolder.exchange = deadly(workfolder.exchange)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status)


def neighbours(place: Path) -> dict[str, str]:
    """Files beside OUT that no run may touch."""
    for name in ("notes.txt", "out.txt", "out2/model.safetensors", ".out.llmc/x", "out.llmc-part/y"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(name)
    return digests(place)


def test_a_kill_at_every_step_of_a_replacement(tmp_path: Path, ways: str) -> None:
    """OUT is the old or the new one, complete, and a rerun gives the new one; nobody else's file changes."""
    write(tmp_path / "new" / "out", 2.0)
    new = digests(tmp_path / "new" / "out")
    lived, step = False, 0
    while not lived:
        place = tmp_path / str(step)
        out = place / "out"
        write(out, 1.0)
        old = digests(out)
        others = {name: d for name, d in neighbours(place).items() if not name.startswith("out/")}
        lived = dying_at(step, lambda out=out: write(out, 2.0, force=True))
        if not out.exists():  # between two renames: the old one waits beside
            assert ways == "two renames"
            assert digests(replaced_of(out)) == old
        else:
            assert digests(out) in (old, new)
        if not lived:
            write(out, 2.0, force=True)
        assert digests(out) == new
        assert digests(place) == {**others, **{f"out/{name}": digest for name, digest in new.items()}}
        assert not partial(out).exists()
        assert not replaced_of(out).exists()
        step += 1
    assert step > 60


def test_a_kill_at_every_step_of_a_first_run(tmp_path: Path) -> None:
    write(tmp_path / "new" / "out", 2.0)
    new = digests(tmp_path / "new" / "out")
    lived, step = False, 0
    while not lived:
        place = tmp_path / str(step)
        place.mkdir()
        out = place / "out"
        lived = dying_at(step, lambda out=out: write(out, 2.0))
        if out.exists():
            assert digests(out) == new
            with pytest.raises(OutputError, match="the output folder exists; add --force to replace it"):
                write(out, 2.0)
        else:
            write(out, 2.0)
        assert digests(place) == {f"out/{name}": digest for name, digest in new.items()}
        assert [p.name for p in place.iterdir()] == ["out"]
        step += 1
    assert step > 40


def content(path: Path) -> Any:
    """What a file or a folder is right now: its bytes, or its entries by inode."""
    if path.is_dir():
        return sorted((p.name, p.lstat().st_ino) for p in path.iterdir())
    return path.read_bytes()


def test_nothing_of_the_old_goes_before_the_new_is_on_disk(
    tmp_path: Path, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that keeps of each file and folder only what was there at its last fsync."""
    out = tmp_path / "out"
    write(out, 1.0)
    kept: dict[int, Any] = {}
    old = {p.stat().st_ino for p in out.rglob("*")} | {out.stat().st_ino}
    fsync, unlink, rename, exchange = os.fsync, os.unlink, os.rename, workfolder.exchange
    moved = []

    def on_disk(folder: Path) -> bool:
        return all(kept.get(p.lstat().st_ino) == content(p) for p in (folder, *folder.rglob("*")))

    def synced(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        kept[os.fstat(handle).st_ino] = content(path)
        fsync(handle)

    def removed(path: Any, *, dir_fd: int | None = None) -> None:
        base = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path()
        if (base / path).lstat().st_ino in old:
            assert on_disk(out), "the new model, with all its folders"
            assert kept[tmp_path.stat().st_ino] == content(tmp_path), "its place"
            assert moved, "nothing was moved"
        unlink(path, dir_fd=dir_fd)

    def placed(one: Path, other: Path) -> bool:
        assert on_disk(one), "the new model is put in place"
        assert kept[partial(out).stat().st_ino] == content(partial(out)), "what says which one is which"
        moved.append(one)
        return exchange(one, other)

    def renamed(one: Path, other: Path) -> None:
        if Path(other) == out:
            assert on_disk(Path(one))
            assert kept[tmp_path.stat().st_ino] == content(tmp_path), "the old one is on disk under its other name"
        rename(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "unlink", removed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(workfolder, "exchange", placed)
    write(out, 2.0, force=True)
    assert json.loads((out / "config.json").read_text()) == {"fill": 2.0}
    assert not replaced_of(out).exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_file_put_into_out_during_the_run_stays(tmp_path: Path, ways: str, force: bool) -> None:
    out = tmp_path / "out"
    if force:
        write(out, 1.0)
    artifact = Artifact(out, {"": arrange(SHAPES)}, {"fill": "2"})
    artifact.open(fresh=False, force=force)
    artifact.record(Unit("a", {"": {"a": artifact.folders[""].write("a", torch.zeros(3, 5))}}, []))
    out.mkdir(exist_ok=True)
    (out / "precious.txt").write_text("mine")
    before = digests(out)
    with pytest.raises(OutputError, match=r"it holds what no model does: precious.txt; move that away"):
        artifact.finish()
    artifact.abandon()
    assert digests(out) == before
    (out / "precious.txt").rename(tmp_path / "precious.txt")
    again = Artifact(out, {"": arrange(SHAPES)}, {"fill": "2"})
    again.open(fresh=False, force=force)
    assert set(again.done) == {"a"}
    again.finish()
    assert digests(out).keys() == {"model.safetensors"}


def test_a_file_put_into_out_at_the_last_moment_stays(
    tmp_path: Path, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look, before the old one is removed: it goes aside with the old folder."""
    out = tmp_path / "out"
    write(out, 1.0)
    note = workfolder.WorkFolder._note

    def late(self: Any, replacement: Any) -> None:
        (out / "precious.txt").write_text("mine")
        note(self, replacement)

    monkeypatch.setattr(workfolder.WorkFolder, "_note", late)
    with pytest.raises(OutputError) as caught:
        write(out, 2.0, force=True)
    line = "the new model is complete; what llmc may not delete of the old one lies in out.llmc-replaced"
    assert str(caught.value) == f"out: {line}; look at it there"
    assert json.loads((out / "config.json").read_text()) == {"fill": 2.0}
    assert digests(replaced_of(out)).keys() == {"precious.txt"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.llmc-replaced"]


def test_folders_that_moved_since_are_left_alone(tmp_path: Path) -> None:
    """A replacement that was cut off, and then copied: nobody knows which is which."""
    out = tmp_path / "out"
    write(out, 1.0)
    work = partial(out)
    (work / "model").mkdir(parents=True)
    (work / "lock").write_bytes(MARK)
    (work / "model" / "model.safetensors").write_text("the only copy")
    record = {"made": "model", "new": 1, "old": 2, "files": {"model.safetensors": [13, 5]}}
    (work / "replacing.json").write_text(json.dumps(record))
    before = digests(tmp_path)
    with pytest.raises(OutputError, match="is of a replacement that was cut off, and the folders were changed since"):
        write(out, 2.0, force=True)
    assert digests(tmp_path) == before


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a folder": lambda work: (work.mkdir(), (work / "thesis.tex").write_text("x")),
    "a lock of another": lambda work: (work.mkdir(), (work / "lock").write_text("pid 7")),
    "a file": lambda work: work.write_text("x"),
    "a link": lambda work: work.symlink_to("home"),
    "a broken link": lambda work: work.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("spoil", FOREIGN.values(), ids=FOREIGN)
def test_what_lies_where_the_work_would_be_done_stays(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    spoil(partial(tmp_path / "out"))
    before = {str(p): p.lstat().st_mode for p in tmp_path.rglob("*")}
    for call in (lambda: write(tmp_path / "out", 1.0), lambda: write(tmp_path / "out", 1.0, force=True)):
        with pytest.raises(OutputError, match="is not llmc's; move it away, or choose another -o"):
            call()
    assert {str(p): p.lstat().st_mode for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("name", ["model", "journal.jsonl", "model/model.safetensors", "activations"])
def test_links_in_a_work_folder(tmp_path: Path, name: str) -> None:
    """A repository may bring a work folder along that carries our mark."""
    work = partial(tmp_path / "out")
    (work / name).parent.mkdir(parents=True)
    (work / "lock").write_bytes(MARK)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    (work / name).symlink_to(tmp_path / "home")
    for fresh in (False, True):
        artifact = Artifact(tmp_path / "out", {"": arrange(SHAPES)}, {"fill": "1"})
        with pytest.raises(OutputError, match="is a link, which llmc never makes there; remove it"):
            artifact.open(fresh=fresh, force=True)
    assert digests(tmp_path / "home").keys() == {"thesis.tex"}


def test_files_that_somebody_put_into_a_work_folder_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = partial(out)
    work.mkdir()
    (work / "lock").write_bytes(MARK)
    (work / "mine.txt").write_text("x")
    write(out, 1.0)
    assert digests(work).keys() == {"mine.txt"}
    with pytest.raises(OutputError, match="is not llmc's"):
        write(out, 1.0, force=True)
    assert digests(work).keys() == {"mine.txt"}


def test_a_survey_folder_of_somebody_else_is_not_forgotten(tmp_path: Path) -> None:
    place = partial_of(tmp_path / "out.llmc-survey")
    place.mkdir()
    (place / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="is not llmc's"):
        discard(tmp_path / "out.llmc-survey")
    assert digests(tmp_path).keys() == {"out.llmc-survey.llmc-partial/mine.txt"}


INPUTS = [
    ("x.llmc-partial", "the work folder x.llmc-partial is the input or lies inside it"),
    ("x.llmc-replaced", "the work folder x.llmc-replaced is the input or lies inside it"),
    ("x.llmc-partial/model", "the input lies inside the work folder x.llmc-partial"),
    ("x/model", "the input lies inside the output"),
]


@pytest.mark.parametrize(("source", "line"), INPUTS, ids=[i[0] for i in INPUTS])
@pytest.mark.parametrize("verb", ["quantize", "lossless"])
def test_no_input_is_a_place_of_work(command: Command, tmp_path: Path, verb: str, source: str, line: str) -> None:
    model = tiny_models.build("llama", tmp_path / source)
    before = digests(tmp_path)
    outcome = command(verb, model, "-o", tmp_path / "x", "--force", *(RTN if verb == "quantize" else ()))
    assert (outcome.code, outcome.line) == (2, f"error: x: {line}; choose another -o")
    assert digests(tmp_path) == before


def test_a_calibration_text_in_out(command: Command, tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    out = tmp_path / "out"
    assert command("quantize", model, "-o", out, *RTN).code == 0
    (out / "vocab.txt").write_text("a text")
    words = ("--method", "gptq", "--group-size", "32", "--calibration", out / "vocab.txt", "--force")
    outcome = command("quantize", model, "-o", out, *words)
    assert (outcome.code, outcome.line) == (2, "error: out: the input lies inside the output; choose another -o")
    assert (out / "vocab.txt").read_text() == "a text"


@pytest.mark.parametrize("name", [".", "..", "/", "./.", "here/.."])
def test_the_current_folder_and_those_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="the output is the current folder, or holds it; name a folder in it"):
        check_place(Path(name), True)
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_a_run_that_ends_while_another_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock that was opened is of a folder that is gone: it is created again."""
    out = tmp_path / "out"
    first = workfolder.WorkFolder(out)
    first.open()
    original = os.open
    calls = iter(range(100))

    def late(path: Any, *arguments: Any, **options: Any) -> int:
        handle = original(path, *arguments, **options)
        if Path(path).name == "lock" and next(calls) == 0:
            first.remove()
            first.release()
        return handle

    monkeypatch.setattr(os, "open", late)
    second = workfolder.WorkFolder(out)
    second.open()
    assert (second.path / "lock").read_bytes() == MARK
    with pytest.raises(OutputError, match="another run is writing this output"):
        workfolder.WorkFolder(out).open()
    second.release()


FOLDERS = ["kernel", "original", "1_Pooling", "additional_chat_templates", ".git", "__pycache__"]
OF_MODELS = ["config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE", "llmc.json", "SHA256SUMS"]
OF_USERS = ["notes.txt", ".env", "train.py", "data.csv", "x.pyc"]
NAMES = st.sampled_from([*FOLDERS, *OF_MODELS, *OF_USERS])
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8, unique=True)


def grow(folder: Path, names: list[str], sealed: set[str]) -> None:
    """A tree of files; SHA256SUMS lists those of `sealed`, config.json is an object."""
    for name in sorted(names, key=len):
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        except OSError:  # a file is where a folder would be
            continue
    for sums in folder.rglob("SHA256SUMS"):
        if sums.is_file():
            mine = [p.relative_to(sums.parent).as_posix() for p in sums.parent.rglob("*") if p.is_file()]
            lines = [f"{'0' * 64}  {name}\n" for name in mine if name in sealed or name == "llmc.json"]
            sums.write_text("".join(lines))


@settings(max_examples=200, deadline=None)
@given(names=TREES, sealed=st.sets(NAMES))
def test_only_what_is_of_a_model_is_deleted(tmp_path_factory: pytest.TempPathFactory, names: Any, sealed: Any) -> None:
    folder = tmp_path_factory.mktemp("grown") / "out"
    folder.mkdir()
    grow(folder, names, sealed)
    before = digests(folder)
    precious = {n for n in before if Path(n).name in ("notes.txt", ".env", ".git", "train.py", "data.csv", "original")}
    listed = {
        f"{sums.parent.relative_to(folder).as_posix()}/{line[66:]}".removeprefix("./")
        for sums in folder.rglob("SHA256SUMS")
        if sums.is_file()
        for line in sums.read_text().splitlines()
    }
    try:
        files = inventory(folder)
    except OutputError as error:
        assert digests(folder) == before
        assert "it holds what no model does: " in str(error)
        return
    assert files.keys() == before.keys()
    assert not precious - listed, "a user's file that no artifact lists"
    (folder / "late.txt").write_text("mine")
    assert not remove(folder, files)
    assert digests(folder).keys() == {"late.txt"}
    (folder / "late.txt").unlink()
    assert remove(folder, files)


def test_changed_files_are_not_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, 1.0)
    files = inventory(out)
    (out / "config.json").write_text("{'edited': 'meanwhile'}")
    assert not remove(out, files)
    assert digests(out).keys() == {"config.json"}


ZYGOTE = """
import json, os, signal, sys, time
import transformers
import llmc.pipeline.run
from llmc.cli import execute
from transformers.models.llama import modeling_llama
print("ready", flush=True)
for words, after in map(json.loads, sys.stdin):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(execute(words))
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""A process that has imported everything, and forks for each command line: a run takes tenths of a second."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """A hundred real runs under --force, each killed at a random moment, then run again."""
    environment = {**os.environ, "PYTHONPATH": str(Path(llmc.__path__[0]).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ZYGOTE]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def run(*words: str | Path, killed_after: float | None = None) -> tuple[int, float]:
        """The wait status, and how long it took."""
        assert process.stdin is not None and process.stdout is not None
        begin = time.monotonic()
        process.stdin.write(json.dumps([[*map(str, words)], killed_after]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline()), time.monotonic() - begin

    model = tiny_models.build("llama", tmp_path / "model", num_hidden_layers=4)
    whole = {}
    for bits in ("8", "4"):
        status, seconds = run("quantize", model, "-o", tmp_path / bits / "out", *RTN, "--bits", bits)
        assert status == 0
        whole[bits] = digests(tmp_path / bits / "out")
    moments = random.Random(0)
    killed = replaced = 0
    for number in range(100):
        place = tmp_path / f"place{number}"
        out = place / "out"
        shutil.copytree(tmp_path / "8" / "out", out)
        others = {name: d for name, d in neighbours(place).items() if not name.startswith("out/")}
        words = ("quantize", model, "-o", out, *RTN, "--bits", "4", "--force")
        status, _ = run(*words, killed_after=moments.uniform(0, 1.1 * seconds))
        killed += os.WIFSIGNALED(status)
        assert digests(out) in (whole["8"], whole["4"])
        replaced += digests(out) == whole["4"]
        assert run(*words)[0] == 0
        new = {f"out/{name}": digest for name, digest in whole["4"].items()}
        assert digests(place) == {**others, **new}
        shutil.rmtree(place)
    process.stdin.close()
    process.wait()
    print(f"{killed} of 100 killed, {replaced} after the replacement")
    assert killed > 50
