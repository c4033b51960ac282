"""What the user sees when something goes wrong: one line, one exit code, one document under --json."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import llmc
from llmc.cli import execute
from llmc.errors import (
    CheckpointError,
    GateError,
    InterruptedRun,
    MemoryLimitError,
    NetworkError,
    StorageError,
    VerifyError,
)

AGAIN = "run the same command again to continue, or add --fresh to discard what is there"
FULL = "free some space and run the same command again"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    for name in ("inspect", "quantize", "run"):
        monkeypatch.setitem(vars(llmc), name, fail)


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


OOM = "not enough memory; see what `llmc plan` predicts, or free some"
KNOWN: list[tuple[BaseException, int, str, str]] = [
    (GateError("kl is 0.2, not < 0.05", where="gates.0"), 1, "gate", "gates.0: kl is 0.2, not < 0.05"),
    (VerifyError("one byte differs", where="config.json"), 1, "verify", "config.json: one byte differs"),
    (
        CheckpointError("no config.json", where="M", fix="name a model"),
        2,
        "checkpoint",
        "M: no config.json; name a model",
    ),
    (StorageError("disk full"), 3, "storage", "disk full"),
    (NetworkError("cannot reach the Hub", where="u/r"), 3, "network", "u/r: cannot reach the Hub"),
    (MemoryLimitError("needs 9 GiB of 8"), 4, "memory", "needs 9 GiB of 8"),
    (MemoryError(), 4, "memory", OOM),
    (OutOfMemoryError("cuda"), 4, "memory", OOM),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 4, "memory", OOM),
    (OSError(errno.ENOSPC, "No space left on device", "a/b"), 3, "storage", f"a/b: No space left on device; {FULL}"),
    (PermissionError(errno.EACCES, "Permission denied", "a"), 3, "storage", "a: Permission denied"),
    (TimeoutError("timed out"), 3, "storage", "timed out"),
    (KeyboardInterrupt(), 130, "interrupted", "interrupted"),
    (InterruptedRun("terminated", signal=15), 143, "interrupted", "terminated"),
]


@pytest.mark.parametrize(("error", "code", "kind", "line"), KNOWN, ids=lambda value: repr(value)[:30])
def test_known_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    kind: str,
    line: str,
) -> None:
    failing(monkeypatch, error)
    assert execute(["inspect", "O"]) == code
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert execute(["inspect", "O", "--json"]) == code
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"kind", "message", "where", "fix"}
    assert document["error"]["kind"] == kind
    assert printed.err == f"error: {line}\n"


def test_an_unknown_error_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ZeroDivisionError("a fault"))
    assert execute(["inspect", "O", "--json"]) == 70
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["kind"] == "internal"
    lines = printed.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in fail" in printed.err
    assert lines[-1] == "error: internal error: ZeroDivisionError: a fault; please report it with the lines above"


@pytest.mark.parametrize("words", [["quantize", "M", "-o", "O", "--method", "rtn"], ["run", "quickstart"]])
@pytest.mark.parametrize(
    ("error", "code", "what"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (InterruptedRun("terminated", signal=15), 143, "terminated"),
        (InterruptedRun("interrupted", where="model.layers.3"), 130, "model.layers.3: interrupted"),
    ],
)
def test_an_interrupted_run_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    error: BaseException,
    code: int,
    what: str,
) -> None:
    failing(monkeypatch, error)
    assert execute(words) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {what}; {AGAIN}"


USAGE: list[tuple[str, str]] = [
    ("quantise M", "llmc: No such command 'quantise'; did you mean 'quantize'?"),
    ("quantize M -o O --bitz 3", "llmc quantize: No such option: --bitz; did you mean --bits?"),
    ("quantize M", "llmc quantize: Missing option '-o' / '--out'; see llmc quantize --help"),
    ("inspect", "llmc inspect: Missing argument 'OUT'; see llmc inspect --help"),
    (
        "quantize M -o O --bits four",
        "llmc quantize: Invalid value for '--bits': Input should be a valid integer, "
        "unable to parse string as an integer; see llmc quantize --help",
    ),
    ("plan --recipe nf4 --bits 3", "llmc plan: --recipe takes no options of a job; use --set PATH=VALUE"),
    ("plan M --group-size 0", "--group-size: cannot read '0'; give a number of columns, or channel"),
    ("plan M -O damping", "-O: cannot read 'damping'; write it like -O damping=0.05"),
    ("plan M -O a=1 -O a=2", "-O: 'a' is given twice; give it once"),
]


@pytest.mark.parametrize(("words", "line"), USAGE)
def test_usage_errors(capsys: pytest.CaptureFixture[str], words: str, line: str) -> None:
    assert execute(words.split()) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert execute([*words.split(), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "usage"


def test_names_from_files_cannot_write_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, CheckpointError("bad tensor", where="a\x1b[2J\nb"))
    execute(["inspect", "O"])
    assert capsys.readouterr().err == "error: a\\x1b[2J\\nb: bad tensor\n"


SLEEPER = """
import sys, time
import llmc
from llmc.cli import main

def quantize(model, out, **options):
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)

llmc.quantize = quantize
sys.argv = ["llmc", "quantize", "M", "-o", "O", "--method", "rtn"]
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "what"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_real_signals(number: int, code: int, what: str) -> None:
    source = str(Path(llmc.__path__[0]).parent)
    environment = {**os.environ, "PYTHONPATH": source}
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # shells start background jobs with SIGINT ignored
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "", f"error: {what}; {AGAIN}\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    source = str(Path(llmc.__path__[0]).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", "from llmc.cli.output import Output; Output().write('table')"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
