"""The one object through which everything printed goes.

Tables, or with `--json` exactly one document, on stdout; progress bars, notes and the line of an error on stderr.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TextIO

from llmc.cli.progress import Lines, Watched
from llmc.cli.tables import drawn
from llmc.errors import LlmcError, OutputError, StorageError, UsageError, printable
from llmc.results import Table


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
        self._quiet = self._verbose = False
        self._log: TextIO | None = None
        self._progress: Watched | Lines | None = None
        self._logged = Lines(self._keep)

    def configure(self, *, quiet: bool = False, verbose: bool = False, log: str | None = None) -> None:
        """How much is told, and where that is kept too.

        Args:
            quiet: no progress and no notes; errors are told.
            verbose: every step on a line of its own, and where an error came from.
            log: a file that all of it is appended to, with the time.

        Raises:
            UsageError: quiet and verbose. OutputError: the file cannot be written.
        """
        if quiet and verbose:
            raise UsageError("it contradicts --quiet", where="--verbose", fix="leave one of them out")
        self._quiet, self._verbose = quiet, verbose
        if log is not None:
            try:
                self._log = open(log, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  # until the end
            except OSError as error:
                problem = f"cannot be written: {error.strerror}"
                raise OutputError(problem, where=f"--log {log}", fix="name a file in a folder that is there") from error

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
        if self._quiet:
            self._keep(f"note: {printable(line)}")
        else:
            self._tell_line(f"note: {line}")

    def notes(self, lines: Sequence[str]) -> None:
        """Several of them."""
        for line in lines:
            self.note(line)

    def error(self, error: LlmcError, cause: BaseException | None = None) -> None:
        """The one line of an error, after the traceback of `cause` where there is one to show."""
        self.close()
        if cause is not None or self._verbose:
            told = error if cause is None else cause
            self._tell("".join(traceback.format_exception(told)))
        if self.as_json and not self._printed:
            with suppress(StorageError):
                self._document({"error": error.as_dict()})
        self._tell(f"error: {error}\n")

    def progress(self, label: str, done: float, total: float) -> None:
        """The library's progress callback: bars where somebody watches, else a line every so often."""
        if self._quiet:
            return
        if self._progress is None:
            watched = not self._verbose and sys.stderr is not None and sys.stderr.isatty()
            self._progress = Watched() if watched else Lines(self._tell_line, self._verbose)
        self._progress(label, done, total)
        if self._log is not None and isinstance(self._progress, Watched):
            self._logged(label, done, total)

    def close(self) -> None:
        """Take the bars off the screen, and end the lines."""
        for each in (self._progress, self._logged):
            if each is not None:
                each.close()
        self._progress = None

    def end(self) -> None:
        """Nothing more will be printed."""
        self.close()
        if self._log is not None:
            with suppress(OSError):
                self._log.close()
            self._log = None

    def _tell_line(self, line: str) -> None:
        self._tell(f"{printable(line)}\n")

    def _keep(self, line: str) -> None:
        """Put a line into the log, if there is one, with the time."""
        if self._log is not None:
            with suppress(OSError):
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
                self._log.flush()

    def _tell(self, text: str) -> None:
        """Put `text` on stderr, if anybody can hear it there, and into the log."""
        for line in text.splitlines():
            self._keep(line)
        with suppress(OSError):
            put(text, sys.stderr)

    def _document(self, document: dict[str, Any]) -> None:
        self.write(json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        self._printed = True

    def _table(self, table: Table) -> None:
        watched = sys.stdout is not None and sys.stdout.isatty()
        self.write(drawn(table, shutil.get_terminal_size().columns if watched else None, watched))


def put(text: str, stream: TextIO | None) -> None:
    """Write `text`, with escapes for what the encoding of `stream` lacks. Raises OSError."""
    if stream is None or stream.closed:  # how Python says that it was started with a closed one
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
    stream.flush()


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, which JSON can say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
