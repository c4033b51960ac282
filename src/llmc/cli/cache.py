"""`llmc cache`: what evaluations keep of originals."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from llmc.cli.measuring import cache_folder
from llmc.cli.output import Output

Folder = Annotated[str | None, Option("--cache", metavar="DIR", help="The folder, when it is not the usual one.")]
Clear = Annotated[bool, Option("--clear", help="Remove all of it.")]


def cache(output: Output, folder: Folder = None, clear: Clear = False) -> None:
    """Show what evaluations keep of originals, or remove it.

    Kept are last hidden states on texts and results in tasks, so that the next candidate costs no pass of the original.

    \b
    Example:
      llmc cache
      llmc cache --clear
    """
    from llmc.eval.cache import contents

    output.result(contents(cache_folder(folder), clear=clear))
