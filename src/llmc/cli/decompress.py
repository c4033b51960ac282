"""`llmc decompress`: the plain files of a lossless folder."""

from __future__ import annotations

from llmc.cli.options import Folder, Force, Out, Threads
from llmc.cli.output import Output


def decompress(output: Output, folder: Folder, out: Out, threads: Threads = None, force: Force = False) -> None:
    """Give back the plain safetensors files of what `llmc lossless` wrote.

    \b
    Example:
      llmc decompress ./model-lossless -o ./model
    """
    import llmc

    output.result(llmc.decompress(folder, out, threads=threads, force=force, progress=output.progress))
