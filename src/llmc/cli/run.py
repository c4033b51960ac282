"""`llmc run`: a whole recipe."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from llmc.cli.completion import recipe_names
from llmc.cli.failures import resumable
from llmc.cli.options import DryRun, Force, Fresh, Overrides
from llmc.cli.output import Output

Recipe = Annotated[
    str,
    Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that ships.", autocompletion=recipe_names),
]
Out = Annotated[str | None, Option("-o", "--out", metavar="OUT", help="Folder to write, instead of the recipe's.")]
Push = Annotated[
    str | None,
    Option("--push", metavar="USER/REPO", help="Let the recipe upload to this repository; without it, it may not."),
]
AllowUnresolved = Annotated[
    bool, Option("--allow-unresolved", help="Let gates pass that the intervals of their figures do not decide.")
]


def run(
    output: Output,
    recipe: Recipe,
    out: Out = None,
    overrides: Overrides = None,
    push: Push = None,
    dry_run: DryRun = False,
    allow_unresolved: AllowUnresolved = False,
    fresh: Fresh = False,
    force: Force = False,
) -> None:
    """Run a recipe.

    Its stages, containers, evaluation, gates and upload, in this order. Exit code 1 when a gate fails, or
    when the interval of its figure leaves it unresolved.

    \b
    Example:
      llmc run quickstart -o demo-out
      llmc run recipe.yaml --set stages.0.bits=3 --dry-run
    """
    import llmc

    with resumable():
        result = llmc.run(
            recipe,
            out,
            overrides=overrides or [],
            push=push,
            dry_run=dry_run,
            allow_unresolved=allow_unresolved,
            fresh=fresh,
            force=force,
            progress=output.progress,
        )
    output.result(result)
