"""Verbs that need room for temporary files, where there is none: one line, exit 3, nothing left."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from spoiled import Command

import llmc


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("temporary")
    model = tiny_models.build("llama", place / "model", num_hidden_layers=1)
    tiny_models.corpus(place, words=600).rename(place / "text.txt")
    llmc.quantize(str(model), place / "small", method="rtn", bits=4, group_size=32)
    return place


@pytest.fixture(params=["gone", "full"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Temporary files go to a folder that is not there, or to a file system with no room; what the line says of it."""
    folder = tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    if request.param == "gone":
        yield "No such file or directory"
        return
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    (folder / "filler").write_bytes(bytes(1000))
    try:
        yield "No space left on device"
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_verbs(
    place: Path, tmp_path: Path, nowhere: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, text = Command(capsys), place / "text.txt"
    sizes = ("--num-samples", "8", "--sequence-length", "64")
    gptq = ("--method", "gptq", "--group-size", "32", "--calibration", text, *sizes)
    measured = ("--text", text, "--context", "64", "--stride", "64")
    quantize = ("quantize", place / "model", "-o", tmp_path / "out", *gptq)
    evaluate = ("eval", place / "small", "--against", place / "model", *measured, "--cache-size", "0")
    compare = ("compare", *evaluate[1:], "--control")
    seen = {words[0]: command(*words, "--json") for words in (quantize, evaluate, compare)}
    said = {verb: (outcome.code, outcome.line) for verb, outcome in seen.items()}
    if said["quantize"][0] == 0 and "space" in nowhere:  # a text file is read where it is: a folder is all it needs
        assert said.pop("quantize") == (0, "") and llmc.verify(tmp_path / "out").ok
    assert all(code == 3 and line.startswith("error: ") and nowhere in line for code, line in said.values()), said
    assert {p.name for p in tmp_path.iterdir()} <= {"temporary", "out"}
