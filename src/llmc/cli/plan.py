"""`llmc plan`: what a job would cost, before it runs."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option

from llmc.cli.options import Job, Overrides
from llmc.cli.output import Output
from llmc.errors import UsageError

Model = Annotated[str | None, Argument(metavar="MODEL", help="Folder of a Hugging Face model, or a Hub id.")]
Recipe = Annotated[
    str | None, Option("--recipe", metavar="R", help="Plan this recipe instead: a file or a shipped name.")
]


def plan(output: Output, model: Model = None, recipe: Recipe = None, overrides: Overrides = None, **job: Any) -> None:
    """Predict files, memory and readers before anything runs.

    Gives the bytes of every file, the peak memory, and which runtimes can load the result.
    Takes the arguments of `llmc quantize` without -o, or --recipe. Nothing is computed and nothing is written.

    \b
    Example:
      llmc plan ./model --bits 4 --group-size 128
      llmc plan --recipe w4a16-g128 --set stages.0.bits=3
    """
    import llmc

    arguments = Job(**job).arguments()
    for writing in ("fresh", "force"):
        arguments.pop(writing, None)
    if recipe is not None and arguments:
        raise UsageError("--recipe takes no options of a job", where="llmc plan", fix="use --set PATH=VALUE")
    output.result(llmc.plan(model, recipe=recipe, overrides=overrides or [], **arguments))
