"""Markdown that a name from a file cannot break out of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmc.errors import printable


def row(cells: Sequence[str]) -> str:
    """One line of a table; a `|` in a cell stays in it, also after a backslash, which would undo the escape."""
    return "| " + " | ".join(cell.replace("\\|", "\\ |").replace("|", "\\|") for cell in cells) + " |"


def rule(columns: int, left: Sequence[int] = (0,)) -> str:
    """The line below the headings; columns are aligned right but for those in `left`."""
    return row(["---" if i in left else "---:" for i in range(columns)])


def code(text: str) -> str:
    """`text` as it is, on one line: in a code span neither HTML, links, emphasis nor mentions mean anything."""
    flat = " ".join(printable(" ".join(text.split())).split())
    longest = max((len(run) for run in re.findall("`+", flat)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") or not flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def plain(text: str) -> str:
    """A sentence of a report on one line, with what Markdown or HTML would act on escaped."""
    flat = printable(" ".join(text.split()))
    return re.sub(r"([\\`*\[\]<>&~#@!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", flat)
