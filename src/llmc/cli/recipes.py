"""`llmc recipes`: the recipes that ship."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from llmc.cli.completion import recipe_names
from llmc.cli.output import Output
from llmc.results import Table

Name = Annotated[
    str | None, Argument(metavar="NAME", help="Print this recipe: a shipped name.", autocompletion=recipe_names)
]


def recipes(output: Output, name: Name = None) -> None:
    """List the recipes that ship, or print one.

    What is printed is the file: with `> my.yaml` it is a start for a recipe of your own.

    \b
    Example:
      llmc recipes w4a16-g128
    """
    import llmc

    if name is None:
        uses = llmc.recipe_uses()
        table = Table("recipes", ("name", "what it is for"), tuple(uses.items()))
        output.show({"recipes": list(uses), "uses": uses}, lambda: [table])
        return
    text = llmc.recipe_text(name)
    output.show({"recipe": name, "text": text}, lambda: [])
    if not output.as_json:
        output.write(text)
