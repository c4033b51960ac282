"""`llmc lossless`: the same bits in fewer bytes."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from llmc.cli.failures import resumable
from llmc.cli.options import Force, Fresh, Out, Threads
from llmc.cli.output import Output

Source = Annotated[
    str, Argument(metavar="MODEL", help="Folder of a model or of any safetensors, one such file, or a Hub id.")
]
Mode = Annotated[
    str,
    Option(
        "--mode",
        metavar="M",
        help="balanced, small (fewest bytes) or fast (fixed length: quick without AVX-512, random access).",
    ),
]
Exact = Annotated[
    bool,
    Option("--exact-files", help="Keep what restores the safetensors files byte for byte, not just their tensors."),
]


def lossless(
    output: Output,
    model: Source,
    out: Out,
    mode: Mode = "balanced",
    exact_files: Exact = False,
    threads: Threads = None,
    fresh: Fresh = False,
    force: Force = False,
) -> None:
    """Write a bit-exact copy in about two thirds of the bytes.

    Quantized models too: their codes take less than their width, and the copy still loads.

    \b
    Example:
      llmc lossless ./model -o ./model-lossless
      llmc lossless ./model -o ./model-lossless --mode small --exact-files
    """
    import llmc

    with resumable():
        result = llmc.lossless(
            model, out, mode=mode, exact_files=exact_files, threads=threads, fresh=fresh, force=force,
            progress=output.progress,
        )  # fmt: skip
        output.result(result)
