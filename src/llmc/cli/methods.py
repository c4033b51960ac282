"""`llmc methods`: the algorithms and their fields."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from llmc.cli.completion import method_names
from llmc.cli.output import Output
from llmc.results import Table

Name = Annotated[
    str | None,
    Argument(metavar="NAME", help="Show the fields of this method, as -O takes them.", autocompletion=method_names),
]


def methods(output: Output, name: Name = None) -> None:
    """List the methods, or the fields of one.

    \b
    Example:
      llmc methods gptq
    """
    import llmc

    table: Table = llmc.method_table(name)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    output.show({"fields" if name else "methods": rows}, lambda: [table])
