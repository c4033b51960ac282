"""Writes docs/cli.md from the `--help` of every verb. With `--check`: exit code 1 when the page is stale."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from llmc.cli import application
from llmc.cli.output import Output

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100

HEAD = """\
# Command line

Generated from `--help` by `scripts/cli_reference.py`; do not edit.

Every verb prints tables on stdout and its progress on stderr. With `--json` stdout holds exactly one JSON document; an
error is then `{"error": {"kind", "message", "where", "fix"}}`, and its one line goes to stderr too.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a gate failed, or verify found a difference |
| 2 | bad input or usage |
| 3 | disk or network |
| 4 | not enough memory |
| 70 | internal error, with its traceback |
| 130, 143 | interrupted by SIGINT, SIGTERM |
"""


def reference() -> str:
    """The whole page."""
    group = typer.main.get_group(application(Output()))
    context = group.make_context("llmc", [], resilient_parsing=True, terminal_width=WIDTH)
    parts = [HEAD, section("llmc", context.get_help())]
    for name, command in group.commands.items():
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        parts.append(section(f"llmc {name}", inner.get_help()))
    return "\n".join(parts)


def section(title: str, text: str) -> str:
    """The help of one verb under its name."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` compare it."""
    text = reference()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/cli.md is stale: run python scripts/cli_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
