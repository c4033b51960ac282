"""The files that `llmc compare` writes on request: an HTML page, Markdown, plots."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llmc.distribution import install
from llmc.errors import OutputError, StorageError, UnsupportedError
from llmc.eval.gates import gates_table
from llmc.eval.reports.comparison import Comparison
from llmc.pipeline.compare import Judged
from llmc.results import code, row, rule


@dataclass(frozen=True)
class Files:
    """Where to write; None writes nothing.

    Attributes:
        report: the HTML page, markdown: the tables; files, which are replaced.
        plots: a folder, made where it is missing.
    """

    report: str | None = None
    markdown: str | None = None
    plots: str | None = None

    def check(self) -> None:
        """Refuse, before the work, what could not be written after it.

        Raises:
            OutputError: no such folder, something where a file or a folder should be, or one file for both.
            UnsupportedError: plots without matplotlib.
        """
        for option, name in (("--report", self.report), ("--markdown", self.markdown)):
            if name is None:
                continue
            path = Path(name)
            if path.is_dir():
                raise OutputError("it is a folder, not a file", where=f"{option} {name}")
            if path.exists() and not path.is_file():  # a device, which a file would replace
                raise OutputError("it is not a regular file", where=f"{option} {name}")
            if not path.absolute().parent.is_dir():
                raise OutputError("its folder does not exist", where=f"{option} {name}", fix="make it first")
        if self.report and self.markdown and Path(self.report).resolve() == Path(self.markdown).resolve():
            raise OutputError("it is the file of --report too", where=f"--markdown {self.markdown}")
        if self.plots is not None:
            above = Path(self.plots).absolute()
            first = next(path for path in (above, *above.parents) if path.exists())
            if not first.is_dir():
                raise OutputError("it is not a folder", where=f"--plots {self.plots}")
        if (self.report or self.plots) and find_spec("matplotlib") is None:
            raise UnsupportedError("plots need matplotlib", where="--report", fix=install(extra="report"))

    def write(self, result: Judged) -> None:
        """Write what was asked for, each file whole or not at all.

        Raises StorageError, or OutputError of plots, where that fails.
        """
        comparison = result.report
        if not isinstance(comparison, Comparison):
            return
        from llmc.eval.reports.html import to_html
        from llmc.eval.reports.plots import save_plots

        if self.report is not None:
            title = f"{comparison.original.model}, compressed"
            _replace(Path(self.report), to_html(comparison, title=title, gates=result.gates))
        if self.markdown is not None:
            _replace(Path(self.markdown), _gates_markdown(result) + comparison.to_markdown())
        if self.plots is not None:
            save_plots(comparison, Path(self.plots))


def _gates_markdown(result: Judged) -> str:
    """The outcomes as a table, nothing where there are no gates."""
    if not result.gates:
        return ""
    table = gates_table(result.gates)
    rows = [tuple(code(cell) if i < len(cells) - 2 else cell for i, cell in enumerate(cells)) for cells in table.rows]
    lines = [row(table.columns), rule(len(table.columns), left=range(len(table.columns))), *map(row, rows)]
    return "\n".join([*lines, "", ""])


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        with open(partial, "x", encoding="utf-8") as file:  # never through a link, never over a file
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror}", where=str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
