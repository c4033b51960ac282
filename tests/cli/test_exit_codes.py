"""Input of any kind ends with its own exit code and one line, whatever the terminal and the file system are like."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import pytest
import tiny_models
from spoiled import Command

RTN = ("--method", "rtn", "--group-size", "32")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    tiny_models.corpus(folder)
    return tiny_models.build("llama", folder / "model")


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


PRINTED = "stdout: the report cannot be printed"
DONE = "what the command was to do is done"


@pytest.mark.parametrize(("stdout", "why"), [(Full(), "No space left on device"), (None, "Bad file descriptor")])
def test_a_complete_artifact_whose_report_cannot_be_printed(
    intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdout: io.StringIO | None, why: str
) -> None:
    from llmc.cli import execute

    heard = io.StringIO()
    monkeypatch.setattr(sys, "stderr", heard)
    monkeypatch.setattr(sys, "stdout", stdout)
    code = execute(["quantize", str(intact), "-o", str(tmp_path / "out"), *RTN])
    monkeypatch.undo()
    assert code == 3
    assert heard.getvalue().splitlines()[-1] == f"error: {PRINTED}: {why}; {DONE}"
    assert execute(["verify", str(tmp_path / "out")]) == 0


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.cli import execute

    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert execute(["inspect", "./nowhere"]) == 2
    assert execute(["recipes"]) == 3


def test_a_terminal_that_knows_ascii_only(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.cli import execute

    model = Path(shutil.copytree(intact, tmp_path / "mod\u00e8le"))
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    codes = execute(["inspect", str(model)]), execute(["verify", str(model)])
    printed = [stream.buffer.getvalue().decode() for stream in streams]  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert codes == (0, 2)
    assert "mod\\xe8le" in printed[0]
    assert "mod\\xe8le" in printed[1]


def test_names_that_are_not_utf8(command: Command, intact: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(intact, odd)
    for words in (("plan", odd, *RTN), ("quantize", odd, "-o", tmp_path / "out", *RTN), ("inspect", odd)):
        outcome = command(*words)
        assert outcome.code == 2
        assert outcome.line.endswith("caf\\udce9: its path is not UTF-8; rename it")
    text = tmp_path / os.fsdecode(b"t\xe9.txt")
    shutil.copyfile(intact.parent / "corpus.txt", text)
    outcome = command(
        "quantize", intact, "-o", tmp_path / "out", "--method", "gptq", "--group-size", "32", "--calibration", text
    )
    assert outcome.code == 2
    assert outcome.line.endswith("t\\udce9.txt: its path is not UTF-8; rename it")
    assert not (tmp_path / "out").exists()


def test_a_link_that_leads_to_itself(command: Command, intact: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    outcome = command("quantize", intact, "-o", tmp_path / "loop", *RTN)
    assert (outcome.code, outcome.line) == (2, f"error: {tmp_path / 'loop'}: a link that leads to itself")


@pytest.mark.parametrize("token", ["t\u00f6k", "\U0001f600", "a\u202eb"])
def test_a_token_that_is_none(command: Command, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    outcome = command("plan", "user/model", *RTN)
    assert (outcome.code, outcome.line) == (
        2,
        "error: user/model: the token has letters that no token has; copy it again, or run hf auth login",
    )
