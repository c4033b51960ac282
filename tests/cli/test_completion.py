"""Tab completion: what a shell is answered, and where `--install-completion` puts what it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def llmc(home: Path, *arguments: str, shell: str = "/bin/bash", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "SHELL": shell, **variables}
    command = [sys.executable, "-m", "llmc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        ("llmc qu", ["quantize"]),
        ("llmc run q", ["quickstart"]),
        ("llmc recipes w", ["w3", "w4a16-g128", "w8a16"]),
        ("llmc methods ", ["rtn", "gptq", "trellis", "wanda"]),
        ("llmc quantize --method g", ["gptq"]),
        ("llmc quantize --calib", ["--calibration"]),
    ],
)
def test_answers_to_a_shell(words: str, answers: list[str], tmp_path: Path) -> None:
    count = str(len(words.split(" ")) - 1)
    done = llmc(tmp_path, _LLMC_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert (done.returncode, done.stdout.split()) == (0, answers)


def test_settings_of_a_shell_are_kept_and_get_one_line(tmp_path: Path) -> None:
    settings = tmp_path / ".bashrc"
    settings.write_bytes(b"alias ll='ls -l'\nnot utf-8: \xff")
    done = llmc(tmp_path, "--install-completion")
    assert llmc(tmp_path, "--install-completion").stdout == done.stdout
    script = tmp_path / ".bash_completions" / "llmc.sh"
    assert done.stdout == f"completion for bash is in {script}; it works in the next terminal\n"
    line = b"source ~/.bash_completions/llmc.sh\n"
    assert settings.read_bytes() == b"alias ll='ls -l'\nnot utf-8: \xff\n" + line
    assert script.read_text() == llmc(tmp_path, "--show-completion").stdout


@pytest.mark.parametrize(
    ("shell", "script", "line"),
    [
        ("/usr/bin/zsh", ".zfunc/_llmc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
        ("/usr/bin/fish", ".config/fish/completions/llmc.fish", ""),
    ],
)
def test_other_shells(shell: str, script: str, line: str, tmp_path: Path) -> None:
    assert llmc(tmp_path, "--install-completion", shell=shell).returncode == 0
    assert "_LLMC_COMPLETE" in (tmp_path / script).read_text()
    settings = tmp_path / ".zshrc"
    assert (settings.read_text().splitlines() if settings.exists() else [""]) == [line]


def test_a_shell_without_completion_is_refused(tmp_path: Path) -> None:
    done = llmc(tmp_path, "--install-completion", shell="/bin/tcsh")
    line = (
        "error: llmc: no completion for the shell 'tcsh'; set SHELL to bash, zsh or fish, as in: SHELL=bash llmc ...\n"
    )
    assert (done.returncode, done.stderr) == (2, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_after_the_install(tmp_path: Path) -> None:
    """The installed script, run by bash itself, in which `llmc` is the one of this environment."""
    llmc(tmp_path, "--install-completion")
    words = """
source ~/.bashrc
COMP_WORDS=(llmc run q) COMP_CWORD=2
_llmc_completion "$LLMC"
echo "${COMPREPLY[@]}"
"""
    found = Path(sys.executable).parent / "llmc"
    environment = {**os.environ, "HOME": str(tmp_path), "LLMC": str(found)}
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "quickstart\n"
