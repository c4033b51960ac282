"""`llmc card`: the fields of a model card, and the seal after it was edited."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from llmc.cli.options import Folder
from llmc.cli.output import Output

Settings = Annotated[
    list[str] | None,
    Option("--set", metavar="FIELD=VALUE", help="Change a field at its top; an empty value takes it out; repeatable."),
]


def card(output: Output, folder: Folder, settings: Settings = None) -> None:
    """Change the model card of a folder.

    README.md may be edited by hand too. The folder is sealed again, so that `llmc verify` and `llmc push` accept
    it; no other file is looked at, and what is damaged stays known as damaged.

    \b
    Example:
      llmc card ./model-w4 --set license=mit --set base_model=user/model --set language=en,de
    """
    import llmc

    output.result(llmc.card(folder, settings or []))
