"""What it costs to be told no: CPU seconds and memory of refusals and of the short verbs, each in a process of its own.

    LLMC_MODELS=FOLDER python benchmarks/start_up.py .venv/bin/llmc [--rounds 3] [--before TABLE.md]

`FOLDER` holds `stories260k`. The table goes to stdout; with `--before` it has the figures of that earlier table too.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import KNOBS, Usage, measured

COLUMNS = ("CPU s", "RSS MB")


def commands(model: Path, scratch: Path) -> dict[str, tuple[int, list[str]]]:
    """What is measured: in words, with the exit code that is right and the arguments."""
    taken, new = scratch / "taken", scratch / "new"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine", encoding="utf-8")
    text = scratch / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 400, encoding="utf-8")
    m, quantize = str(model), ["quantize", str(model), "-o", str(new)]
    return {
        "output folder exists": (2, ["quantize", m, "-o", str(taken)]),
        "no such model folder": (2, ["quantize", str(scratch / "nosuchdir"), "-o", str(new)]),
        "unknown method": (2, [*quantize, "--method", "gpqt"]),
        "unknown recipe": (2, ["run", "quickstrat", "-o", str(new)]),
        "unknown option -O": (2, [*quantize, "--method", "rtn", "-O", "grid_serch=3"]),
        "bad --bits": (2, [*quantize, "--bits", "99"]),
        "bad --group-size": (2, [*quantize, "--group-size", "-3"]),
        "output inside the model": (2, ["quantize", m, "-o", str(model / "inside")]),
        "push of no artifact": (2, ["push", str(taken), "user/model"]),
        "eval without text": (2, ["eval", m]),
        "compare, one folder missing": (
            2,
            ["compare", m, str(scratch / "nosuchdir"), "--against", m, "--text", str(text)],
        ),
        "unknown verb": (2, ["quantise", m]),
        "--help": (0, ["--help"]),
        "recipes": (0, ["recipes"]),
        "methods": (0, ["methods"]),
        "methods gptq": (0, ["methods", "gptq"]),
        "inspect": (0, ["inspect", m]),
        "plan": (0, ["plan", m, "--bits", "4", "--group-size", "32"]),
        "quantize, rtn": (0, [*quantize, "--method", "rtn", "--group-size", "32"]),
        "verify": (0, ["verify", str(new)]),
        "lossless": (0, ["lossless", m, "-o", str(scratch / "lossless")]),
    }


def least(usages: Sequence[Usage]) -> Usage:
    """The cheapest of several rounds: what others on the machine took is not the command's."""
    return min(usages, key=lambda each: each.cpu_s)


def one_round(llmc: str, model: Path, scratch: Path) -> dict[str, Usage]:
    """What each command took, with one thread and without a network."""
    environment = {**os.environ, **dict.fromkeys(KNOBS, "1"), "HF_HUB_OFFLINE": "1"}
    found = {}
    for words, (code, arguments) in commands(model, scratch).items():
        found[words] = usage = measured([llmc, *arguments], scratch / "log", environment)
        if usage.code != code:
            raise SystemExit(f"{words}: exit code {usage.code}, not {code}: {usage.last_line}")
    return found


def rows(llmc: str, model: Path, rounds: int) -> dict[str, tuple[str, str]]:
    """Words of `commands` -> CPU seconds and megabytes. Raises SystemExit where an exit code is wrong."""
    found: dict[str, list[Usage]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for words, usage in one_round(llmc, model, Path(folder)).items():
                found.setdefault(words, []).append(usage)
    best = {words: least(usages) for words, usages in found.items()}
    return {words: (f"{usage.cpu_s:.2f}", f"{usage.peak_rss_mb:.0f}") for words, usage in best.items()}


def read_table(path: Path) -> dict[str, tuple[str, str]]:
    """A table that this script printed without `--before`, again."""
    lines = re.findall(r"^\| (.+?) \| ([\d.]+) \| (\d+) \|$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {words: (cpu, memory) for words, cpu, memory in lines}


def table(now: dict[str, tuple[str, str]], before: dict[str, tuple[str, str]]) -> str:
    """The figures as Markdown; beside those of `before` where there are some."""
    columns = [f"{name} before" for name in COLUMNS] + [f"{name} now" for name in COLUMNS] if before else [*COLUMNS]
    lines = [f"| command | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    for words, figures in now.items():
        earlier = before.get(words, ("", "")) if before else ()
        lines.append(f"| {' | '.join((words, *earlier, *figures))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("llmc", help="the command to try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="an earlier table, for comparison")
    arguments = parser.parse_args()
    models = os.environ.get("LLMC_MODELS")
    if not models:
        raise SystemExit("LLMC_MODELS must name a folder with stories260k")
    now = rows(arguments.llmc, Path(models) / "stories260k", arguments.rounds)
    sys.stdout.write(table(now, read_table(arguments.before) if arguments.before else {}))


if __name__ == "__main__":
    main()
