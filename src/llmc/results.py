"""Results for people: tables, sizes and times in words, Markdown, and how far long work is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmc.errors import printable

Progress = Callable[[str, float, float], None]
"""`progress(label, done, total)`: how the library reports long work."""


def silent(label: str, done: float, total: float) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class Table:
    """A result for people: one title, the columns, the rows as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000, and exactly: `5.37 MB (5,370,744)`."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    if unit == "bytes":
        return f"{count:,.0f} bytes"
    shown = f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
    return f"{shown} {unit} ({count:,.0f})"


def in_words(span: tuple[float, float]) -> str:
    """Seconds from one number to another: `20 s to 1.5 min`."""
    return " to ".join(map(shown_time, span))


def shown_time(value: float) -> str:
    """Seconds as people say them."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if value >= 1.5 * length:
            return f"{value / length:.2g} {unit}"
    return f"{value:.1f}".rstrip("0").rstrip(".") + " s" if value < 10 else f"{value:.0f} s"


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
