"""`llmc export`: the same values in another container."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from llmc.cli.options import Folder, Force, Out
from llmc.cli.output import Output

Format = Annotated[
    str, Option("--format", metavar="F", help="The container to write; `dense` gives a plain model back.")
]


def export(output: Output, folder: Folder, format: Format, out: Out, force: Force = False) -> None:
    """Write the same values in another container.

    Nothing is quantized again. Of what `--entropy` or `llmc lossless` coded, the format that was coded comes back
    file by file as it was.

    \b
    Example:
      llmc export ./model-w4 --format dense -o ./model-dense
    """
    import llmc

    output.result(llmc.export(folder, out, format=format, force=force, progress=output.progress))
