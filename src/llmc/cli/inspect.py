"""`llmc inspect`: what is inside a folder."""

from __future__ import annotations

from llmc.cli.options import Folder
from llmc.cli.output import Output


def inspect(output: Output, folder: Folder) -> None:
    """Show what is inside a model folder.

    Encoding, bits per weight and error layer by layer; also of folders that other tools wrote.

    \b
    Example:
      llmc inspect ./model-w4
    """
    import llmc

    output.result(llmc.inspect(folder))
