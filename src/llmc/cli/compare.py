"""`llmc compare`: several models beside their original."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option

from llmc.cli.measuring import Measuring
from llmc.cli.output import Output
from llmc.errors import LlmcError

Models = Annotated[list[str], Argument(metavar="MODEL...", help="Model folders or Hub ids, also of other tools.")]
Original = Annotated[str, Option("--against", metavar="MODEL", help="The original model: a folder or a Hub id.")]
Control = Annotated[bool, Option("--control", help="Beside each, plain rounding (rtn) of the original to its bytes.")]
Report = Annotated[str | None, Option("--report", metavar="FILE", help="Write an HTML page that needs no network.")]
Markdown = Annotated[str | None, Option("--markdown", metavar="FILE", help="Write the tables for a pull request.")]
Plots = Annotated[str | None, Option("--plots", metavar="DIR", help="Write the plots as SVG and PNG.")]


def compare(
    output: Output,
    models: Models,
    against: Original,
    control: Control = False,
    report: Report = None,
    markdown: Markdown = None,
    plots: Plots = None,
    **measuring: Any,
) -> None:
    """Put several models beside their original.

    On the same tokens and items, sorted by bytes, with what another model dominates marked. The original runs
    once. Needs --text, --task or both. Exit code 1 when a gate fails for one of the models.

    \b
    Example:
      llmc compare ./w4 ./w3 ./other-tools-w4 --against ./model --text held-out.txt
      llmc compare ./w4 --against ./model --text held-out.txt --control --report report.html
    """
    import llmc
    from llmc.pipeline.report_files import Files

    files = Files(report, markdown, plots)
    files.check()
    options = Measuring(**measuring).arguments()
    result = llmc.compare(models, against=against, control=control, **options, progress=output.progress)
    output.notes(result.report.notes)
    try:
        files.write(result)
    except LlmcError as error:  # what was measured is not lost with it
        output.show({**result.to_json(), "error": error.as_dict()}, result.tables)
        raise
    output.result(result)
