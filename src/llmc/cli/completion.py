"""Tab completion: the script of each shell, where it is put, and names to complete.

Nothing that is somebody else's is written anew: the file of a shell's settings gets one line at its end, once.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from typer import Exit, Typer, main

from llmc.cli.output import Output
from llmc.errors import UsageError

ASKED = "_LLMC_COMPLETE"
"""The variable by which a shell asks for completions."""

# Shell -> where its script goes, the file of its settings, and the line there that finds the script.
PLACES: dict[str, tuple[str, str, str]] = {
    "bash": (".bash_completions/llmc.sh", ".bashrc", "source ~/.bash_completions/llmc.sh"),
    "zsh": (".zfunc/_llmc", ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
    "fish": (".config/fish/completions/llmc.fish", "", ""),
}


def asked() -> bool:
    """Whether a shell asks for completions, not for a command to be run."""
    return bool(os.environ.get(ASKED))


def answer(app: Typer) -> NoReturn:
    """Print what completes the words that a shell has, and exit."""
    import_module("typer.completion").completion_init()  # how Typer's own scripts ask, which differs from others
    sys.exit(main.get_command(app).main(prog_name="llmc"))


def show(wanted: bool) -> None:
    """Print the script of the user's shell and stop, when asked to."""
    if wanted:
        Output().write(script(shell()) + "\n")
        raise Exit


def install(wanted: bool) -> None:
    """Put the script of the user's shell where it is found, and stop, when asked to. Raises OSError."""
    if not wanted:
        return
    name = shell()
    place, settings, line = PLACES[name]
    path = Path.home() / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(name) + "\n", encoding="utf-8")
    if settings:
        _append(Path.home() / settings, line)
    Output().write(f"completion for {name} is in {path}; it works in the next terminal\n")
    raise Exit


def shell() -> str:
    """The user's shell, by the variable SHELL. Raises UsageError for one that has no script."""
    name = Path(os.environ.get("SHELL", "")).name
    if name not in PLACES:
        problem = f"no completion for the shell {name!r}" if name else "the variable SHELL names no shell"
        raise UsageError(problem, where="llmc", fix="set SHELL to bash, zsh or fish, as in: SHELL=bash llmc ...")
    return name


def script(name: str) -> str:
    """What a shell runs to complete the words after `llmc`."""
    text: str = import_module("typer.completion").get_completion_script(
        prog_name="llmc", complete_var=ASKED, shell=name
    )
    return text


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes that begin so."""
    import llmc

    return [name for name in llmc.recipe_names() if name.startswith(incomplete)]


def method_names(incomplete: str) -> list[str]:
    """Methods that begin so."""
    from llmc.compressors import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def _append(settings: Path, line: str) -> None:
    """Add a line to the end of a file, where it is not in it yet."""
    held = settings.read_bytes() if settings.exists() else b""
    if line.encode() in held.splitlines():
        return
    with settings.open("ab") as file:
        file.write(b"\n" * (bool(held) and not held.endswith(b"\n")) + line.encode() + b"\n")
