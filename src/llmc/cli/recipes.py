"""`llmc recipes`: the recipes that ship."""

from __future__ import annotations

from llmc.cli.output import Output
from llmc.structure import Table


def recipes(output: Output) -> None:
    """List the recipes that ship.

    \b
    Example:
      llmc recipes
    """
    import llmc

    names = list(llmc.recipe_names())
    table = Table("recipes", ("name",), tuple((name,) for name in names))
    output.show({"recipes": names}, lambda: [table])
