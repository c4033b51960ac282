"""Tables as text: columns side by side where every word has room, one line for each cell where it has not."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from llmc.errors import printable
from llmc.results import Table

UNCUT = 10_000
"""Columns of a table that goes into a file or a pipe: as many as it needs."""


def drawn(table: Table, width: int | None, colours: bool) -> str:
    """A table as lines.

    Args:
        width: of the terminal, in cells; None where there is none.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    columns = [printable(column) for column in table.columns]
    rows = [[printable(cell) for cell in row] for row in table.rows]
    console = Console(file=Drawing(), force_terminal=colours, width=width or UNCUT, highlight=False)
    title = Text(printable(table.title), "bold", overflow="fold")
    widths = column_widths([columns, *rows], width or UNCUT)
    with console.capture() as captured:
        console.print(title)
        if widths is None:
            console.print(Text(_one_below_another(columns, rows)), soft_wrap=True)
        else:
            grid = Grid(box=box.SIMPLE_HEAD)
            for column, cells in zip(columns, widths, strict=True):
                grid.add_column(Text(column), width=cells)
            for row in rows:
                grid.add_row(*map(Text, row))
            console.print(grid)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def column_widths(rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Cells for each column so that all fit into `room` and no word is cut; None when that cannot be."""
    from rich.cells import cell_len

    count = len(rows[0])
    columns = [[row[i] for row in rows] for i in range(count)]
    widths = [max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0) for cells in columns]
    least = [max((cell_len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
    room -= 3 * count + 1
    if sum(least) > room:
        return None
    while sum(widths) > room:
        slack = [width - need for width, need in zip(widths, least, strict=True)]
        widest = max(range(count), key=lambda i: (slack[i] > 0, widths[i]))
        widths[widest] -= min(slack[widest], sum(widths) - room, max(1, widths[widest] // 8))
    return widths


def _one_below_another(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Each row as a paragraph: its first cell, then the name and text of every other one that has some."""
    out = []
    for row in rows:
        out.append(f"\n  {row[0]}\n")
        named = zip(columns[1:], row[1:], strict=True)
        out += [f"    {name}: {cell}\n" if name else f"    {cell}\n" for name, cell in named if cell]
    return "".join(out).rstrip("\n") if out else "\n  none"


class Drawing(io.StringIO):
    """What tables are drawn for: rich touches the file even of what it captures, and a full disk stops it there."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # it decides which lines a table is made of
        return (sys.stdout.encoding if sys.stdout is not None else None) or "utf-8"
