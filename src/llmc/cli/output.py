"""The one object through which everything printed goes.

Tables, or with `--json` exactly one document, on stdout; progress bars, notes and the line of an error on stderr.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from llmc.errors import LlmcError, StorageError, printable
from llmc.structure import Table

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

UNCUT = 10_000
"""Columns of a table that goes into a file or a pipe: as many as it needs."""


class Result(Protocol):
    """What the library's verbs return. `failure` may be set to the error that the result amounts to."""

    def to_json(self) -> dict[str, Any]: ...

    def tables(self) -> Sequence[Table]: ...


class Output:
    """Where a verb prints.

    Args:
        as_json: one JSON document on stdout instead of tables.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._printed = False
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def result(self, result: Result) -> None:
        """Print a result. Raises its `failure`, if it has one, after printing."""
        failure: LlmcError | None = getattr(result, "failure", None)
        document = result.to_json()
        if failure is not None:
            document = {**document, "error": failure.as_dict()}
        self.show(document, result.tables)
        if failure is not None:
            raise failure

    def show(self, document: dict[str, Any], tables: Callable[[], Sequence[Table]]) -> None:
        """Print `document` under `--json`, else the tables that calling `tables` gives."""
        self.close()
        if self.as_json:
            self._document(document)
            return
        for table in tables():
            self._table(table)

    def write(self, text: str) -> None:
        """Put `text` on stdout. Nothing happens when whoever reads it has left (`llmc inspect OUT | head`).

        Raises StorageError when it cannot be written: what the command did is done all the same.
        """
        try:
            put(text, sys.stdout)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            problem = f"the report cannot be printed: {error.strerror}"
            raise StorageError(problem, where="stdout", fix="what the command was to do is done") from error

    def note(self, line: str) -> None:
        """One line for people, beside the result."""
        self.close()
        self._tell(f"note: {printable(line)}\n")

    def notes(self, lines: Sequence[str]) -> None:
        """Several of them."""
        for line in lines:
            self.note(line)

    def error(self, error: LlmcError, cause: BaseException | None = None) -> None:
        """The one line of an error, after the traceback of `cause` where there is one to show."""
        self.close()
        if cause is not None:
            self._tell("".join(traceback.format_exception(cause)))
        if self.as_json and not self._printed:
            with suppress(StorageError):
                self._document({"error": error.as_dict()})
        self._tell(f"error: {error}\n")

    def progress(self, label: str, done: float, total: float) -> None:
        """The library's progress callback: one bar per label, with the time left. Silent where nobody watches."""
        if self._bars is None:
            self._bars = new_bars()
            self._bars.start()
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(printable(label), total=total)
        self._bars.update(self._tasks[label], completed=done, total=total)

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def _tell(self, text: str) -> None:
        """Put `text` on stderr, if anybody can hear it there."""
        with suppress(OSError):
            put(text, sys.stderr)

    def _document(self, document: dict[str, Any]) -> None:
        self.write(json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        self._printed = True

    def _table(self, table: Table) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        watched = sys.stdout is not None and sys.stdout.isatty()
        console = Console(file=Drawing(), force_terminal=watched, width=None if watched else UNCUT)
        grid = Grid(box=box.SIMPLE_HEAD)
        for column in table.columns:
            grid.add_column(Text(printable(column)), overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(printable(cell)) for cell in row))
        with console.capture() as drawn:
            console.print(Text(printable(table.title), "bold"), grid, sep="\n")
        self.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


class Drawing(io.StringIO):
    """What tables are drawn for: rich touches the file even of what it captures, and a full disk stops it there."""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # it decides which lines a table is made of
        return (sys.stdout.encoding if sys.stdout is not None else None) or "utf-8"


def put(text: str, stream: TextIO | None) -> None:
    """Write `text`, with escapes for what the encoding of `stream` lacks. Raises OSError."""
    if stream is None or stream.closed:  # how Python says that it was started with a closed one
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
    stream.flush()


def new_bars() -> Bars:
    """Progress bars on stderr, drawn only on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, which JSON can say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
