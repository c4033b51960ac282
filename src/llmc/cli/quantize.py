"""`llmc quantize`: one stage, without a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Option

from llmc.cli.failures import resumable
from llmc.cli.options import Job, Model, Out
from llmc.cli.output import Output

DATA_FREE = (
    "no --calibration: rounding to nearest with searched scales; "
    "gptq loses less and needs --method gptq --calibration FILE"
)


Check = Annotated[
    bool | None,
    Option(
        "--check/--no-check",
        help="Measure the KL divergence on calibration text that was not used, which takes two passes of both models "
        "over 16 sequences; by default for models up to 200 MB that have such text.",
    ),
]


def quantize(output: Output, model: Model, out: Out, check: Check = None, **job: Any) -> None:
    """Write a smaller copy of a model.

    \b
    Example:
      llmc quantize ./model -o ./model-w4 --method gptq --calibration text.txt
      llmc quantize ./model -o ./model-w8 --bits 8 --group-size channel
    """
    import llmc

    arguments = Job(**job).arguments()
    if "method" not in arguments and "calibration" not in arguments:
        output.note(DATA_FREE)
    with resumable():
        output.result(llmc.quantize(model, out, **arguments, check=check, progress=output.progress))
