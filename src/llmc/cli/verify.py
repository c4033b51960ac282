"""`llmc verify`: every byte and every tensor checked."""

from __future__ import annotations

from llmc.cli.options import Against, Folder
from llmc.cli.output import Output


def verify(output: Output, folder: Folder, against: Against = None) -> None:
    """Check every byte and every tensor of a folder.

    Every tensor is decoded by a second implementation.
    With --against the reported errors are measured again from the original weights.
    Exit code 1 on any difference.

    \b
    Example:
      llmc verify ./model-w4 --against ./model
    """
    import llmc

    output.result(llmc.verify(folder, against=against, progress=output.progress))
