"""Objects in the lines of a JSONL file, and the texts in them; what is wrong is named with its line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmc.errors import CalibrationError
from llmc.eval.tasks.sources import KINDS


def read_lines(path: str | Path) -> bytes:
    """The file. Raises CalibrationError."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise CalibrationError("no such file", where=str(path), fix=f"give {KINDS} or a data set id") from error
    except OSError as error:
        raise CalibrationError(f"cannot read the task: {error.strerror}", where=str(path)) from error


def json_rows(content: bytes, path: str, *, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that is not blank: keys that stand once, texts in UTF-8.

    Raises CalibrationError, which says what is `expected` in place of another value.
    """
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            yield number, _row(line, f"{path}:{number}", expected)


def _row(line: bytes, where: str, expected: str) -> dict[str, Any]:
    try:
        text = line.decode()
        row = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start} of the line"
        raise CalibrationError(problem, where=where, fix="convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise CalibrationError(f"not JSON ({reason})", where=where, fix="every line must be one object") from error
    if not isinstance(row, dict):
        raise CalibrationError(f"a JSON {type(row).__name__}, not an object", where=where, fix=expected)
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} is given twice")
    return row


def text_of(row: Mapping[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    """The text at `key`, which only with `empty` may be blank."""
    return _checked(row[key], repr(key), where, empty)


def texts_of(row: Mapping[str, Any], key: str, where: str, *, least: int = 1) -> tuple[str, ...]:
    """The list of `least` texts or more at `key`, none of them blank."""
    value = row[key]
    if not isinstance(value, list) or len(value) < least:
        kind = f"a list of {len(value)}" if isinstance(value, list) else kind_of(value)
        raise CalibrationError(f"{key!r} must be a list of {least} texts or more, not {kind}", where=where)
    return tuple(_checked(text, f"{key!r}[{i}]", where, False) for i, text in enumerate(value))


def _checked(value: Any, name: str, where: str, empty: bool) -> str:
    if not isinstance(value, str):
        raise CalibrationError(f"{name} must be text, not {kind_of(value)}", where=where)
    if not value.strip() and not empty:
        raise CalibrationError(f"{name} is empty", where=where)
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise CalibrationError(f"{name} is not valid Unicode (a lone surrogate)", where=where, fix="repair this text")
    return value


def kind_of(value: Any) -> str:
    """A value of another type, in a message."""
    names = {"dict": "an object", "list": "a list", "str": "text"}
    plain = value is None or isinstance(value, int | float)
    return names.get(type(value).__name__) or (json.dumps(value) if plain else f"a {type(value).__name__}")
