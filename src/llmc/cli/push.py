"""`llmc push`: upload to the Hub."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from llmc.cli.options import DryRun, Folder
from llmc.cli.output import Output

Repository = Annotated[str, Argument(metavar="USER/REPO", help="The Hub repository; created when missing.")]
Public = Annotated[bool, Option("--public", help="Create it public instead of private.")]
BaseModel = Annotated[
    str | None, Option("--base-model", metavar="USER/REPO", help="The original on the Hub, which the card names.")
]


def push(
    output: Output,
    folder: Folder,
    repo: Repository,
    public: Public = False,
    base_model: BaseModel = None,
    dry_run: DryRun = False,
) -> None:
    """Upload a folder to the Hub.

    The folder is verified first, then uploaded in one commit, its model card completed with the name of the
    repository; nothing happens when the repository holds the same files already.

    \b
    Example:
      llmc push ./model-w4 user/model-w4 --dry-run
    """
    import llmc

    output.result(
        llmc.push(folder, repo, public=public, base_model=base_model, dry_run=dry_run, progress=output.progress)
    )
