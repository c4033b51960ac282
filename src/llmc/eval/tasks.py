"""Tasks: questions with a known answer, read from JSONL and parquet files and from data sets.

The keys of its lines, or columns, say which of four shapes a task has:

    {"query", "choices", "gold"}                 multiple_choice   which choice goes on best after the query
    {"context_options", "continuation", "gold"}  partial_scoring   after which context the continuation is likeliest
    {"context", "continuation"}                  cloze             is the continuation what the model would say
    {"question" or "query", "answer" or "answers"}  short_answer   does the model's own text equal an answer

A task is read whole and refused at its first line that is wrong: one of which half was skipped measures nothing. What
people write has just these keys; the tables of others may have more columns, as long as they fit one shape only.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import CalibrationError, UsageError
from llmc.eval.task_sources import KINDS, is_table, table_rows
from llmc.gates import task_name
from llmc.registry import suggest

SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "multiple_choice": (("query",), ("choices",), ("gold",)),
    "partial_scoring": (("context_options",), ("continuation",), ("gold",)),
    "cloze": (("context",), ("continuation",)),
    "short_answer": (("question", "query"), ("answer", "answers")),
}
"""Keys of each shape, each with its other spellings; all are required and, in a JSONL file, no others are allowed."""

METRICS = {
    "multiple_choice": ("acc_norm", "acc"),
    "partial_scoring": ("acc",),
    "cloze": ("acc",),
    "short_answer": ("exact_match",),
}
"""What an item of each shape is judged by; the first is the task's accuracy."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        line: of the file, or row of the table, from 1.
        pairs: contexts and continuations whose likelihoods decide, `gold` being the right one; of a short answer the
            question alone.
        answers: of a short answer, all that count as right.
    """

    line: int
    pairs: tuple[tuple[str, str], ...]
    gold: int = 0
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """The items of one file or data set; `path` is for messages, reports name the file only.

    Attributes:
        sha256: of the JSONL file; of a table, of its items as JSON lines with sorted keys and no blanks.
        unit: what a message puts before the number of an item.
    """

    name: str
    shape: str
    items: tuple[Item, ...]
    path: str
    sha256: str
    unit: str = ""

    def where(self, item: Item) -> str:
        return f"{self.path}:{self.unit}{item.line}"

    @property
    def chance(self) -> float | None:
        """Share that guessing gets right; None where there is nothing to choose from."""
        if self.shape in ("cloze", "short_answer"):
            return None
        return sum(1 / len(item.pairs) for item in self.items) / len(self.items)


def load_tasks(paths: Sequence[str | Path], limit: int | None = None) -> list[Task]:
    """Read task files; see `load_task`. Raises UsageError when two would have one name."""
    names: dict[str, str] = {}
    for path in map(str, paths):
        first = names.get(task_name(path))
        if first is not None:
            raise UsageError(f"there is a task {task_name(path)!r} already, {first}", where=path, fix="rename the file")
        names[task_name(path)] = path
    return [load_task(path, limit) for path in paths]


def load_task(path: str | Path, limit: int | None = None) -> Task:
    """Read one task.

    Args:
        path: a JSONL file in UTF-8, of which blank lines are skipped; a .parquet file; a data set of the Hub or in a
            local folder, `name[:configuration][@split]`. Without a split, `test` or the only one.
        limit: keep only the first items. All are checked all the same.

    Raises:
        CalibrationError: no such file or data set, or a wrong line, named with its number.
        UsageError: a limit below 1. NetworkError: the Hub cannot be reached.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves no item", where="--limit", fix="use 1 or more")
    if is_table(path):
        return _load_table(str(path), limit)
    content = _read(Path(path))
    shape, first, items = "", 0, []
    for number, row in _rows(content, str(path)):
        where = f"{path}:{number}"
        found = _shape_of(row, where)
        if shape and found != shape:
            problem = f"an item of {_words(found)} in a file whose line {first} is one of {_words(shape)}"
            raise CalibrationError(problem, where=where, fix="put them into two files")
        shape, first = found, first or number
        items.append(_item(row, shape, number, where))
    if not items:
        raise CalibrationError("holds no items", where=str(path), fix="give one JSON object per line")
    return Task(task_name(path), shape, tuple(items[:limit]), str(path), hashlib.sha256(content).hexdigest())


def _load_table(source: str, limit: int | None) -> Task:
    """A task whose rows all have the columns of the first."""
    shape, items, digest = "", [], hashlib.sha256()
    keys: tuple[str, ...] = ()
    for number, row in enumerate(table_rows(source), 1):
        if not shape:
            shape, keys = _shape_of_columns(list(row), source)
        where = f"{source}:row {number}"
        item = {key: row.get(key) for key in keys}
        items.append(_item(item, shape, number, where))
        line = json.dumps(item, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(f"{line}\n".encode())
    if not items:
        raise CalibrationError("holds no items", where=source, fix="choose another split or file")
    return Task(task_name(source), shape, tuple(items[:limit]), source, digest.hexdigest(), "row ")


def _shape_of_columns(columns: Sequence[str], where: str) -> tuple[str, tuple[str, ...]]:
    """The one shape that `columns` have all keys of, and those keys in their spelling here."""
    fitting = {
        shape: [[name for name in names if name in columns] for names in keys]
        for shape, keys in SHAPES.items()
        if all(any(name in columns for name in names) for names in keys)
    }
    if not fitting:
        problem = f"no shape of task has these columns: {', '.join(columns)}"
        raise CalibrationError(problem, where=where, fix=_shapes())
    by_hand = f"save the columns that are meant as {KINDS}"
    if len(fitting) > 1:
        problem = f"its columns are those of {' and of '.join(map(_words, fitting))}"
        raise CalibrationError(problem, where=where, fix=by_hand)
    shape, spellings = next(iter(fitting.items()))
    twice = next((names for names in spellings if len(names) > 1), None)
    if twice:
        raise CalibrationError(f"it has both {twice[0]!r} and {twice[1]!r}", where=where, fix=by_hand)
    return shape, tuple(names[0] for names in spellings)


def _rows(content: bytes, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that is not blank."""
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            yield number, _row(line, f"{path}:{number}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CalibrationError("no such file", where=str(path), fix=f"give {KINDS} or a data set id") from error
    except OSError as error:
        raise CalibrationError(f"cannot read the task: {error.strerror}", where=str(path)) from error


def _row(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line, with keys that stand once and texts that are Unicode."""
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
        raise CalibrationError(f"a JSON {type(row).__name__}, not an object", where=where, fix=_shapes())
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"key {twice!r} is given twice")
    return row


def _shape_of(row: Mapping[str, Any], where: str) -> str:
    """The shape that has just these keys; an error speaks of the one that comes nearest."""

    def faults(shape: str) -> tuple[list[str], list[str]]:
        missing = [names[0] for names in SHAPES[shape] if not any(name in row for name in names)]
        extra = list(row)
        for names in SHAPES[shape]:
            used = next((name for name in names if name in row), None)
            extra = [key for key in extra if key != used]
        return missing, extra

    shape = min(SHAPES, key=lambda each: (len(faults(each)[0]), len(faults(each)[1])))
    missing, extra = faults(shape)
    if len(missing) == len(SHAPES[shape]):
        keys = ", ".join(row) or "none"
        raise CalibrationError(f"no shape of task has these keys: {keys}", where=where, fix=_shapes())
    if extra:
        near = suggest(extra[0], missing or [name for names in SHAPES[shape] for name in names])
        raise CalibrationError(f"unknown key {extra[0]!r} in an item of {_words(shape)}", where=where, fix=near)
    if missing:
        keys = ", ".join(names[0] for names in SHAPES[shape])
        problem = f"missing key {missing[0]!r} in an item of {_words(shape)}"
        raise CalibrationError(problem, where=where, fix=f"its keys are {keys}")
    return shape


def _item(row: Mapping[str, Any], shape: str, line: int, where: str) -> Item:
    if shape == "multiple_choice":
        query, choices = _text(row, "query", where, empty=True), _texts(row, "choices", where, least=2)
        return Item(line, tuple((query, choice) for choice in choices), _gold(row, "choices", where))
    if shape == "partial_scoring":
        contexts, end = _texts(row, "context_options", where, least=2), _text(row, "continuation", where)
        return Item(line, tuple((context, end) for context in contexts), _gold(row, "context_options", where))
    if shape == "cloze":
        return Item(line, ((_text(row, "context", where, empty=True), _text(row, "continuation", where)),))
    question = _text(row, "question" if "question" in row else "query", where)
    answers = _texts(row, "answers", where) if "answers" in row else (_text(row, "answer", where),)
    return Item(line, ((question, ""),), answers=answers)


def _text(row: Mapping[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    return _checked(row[key], repr(key), where, empty)


def _texts(row: Mapping[str, Any], key: str, where: str, *, least: int = 1) -> tuple[str, ...]:
    value = row[key]
    if not isinstance(value, list) or len(value) < least:
        kind = f"a list of {len(value)}" if isinstance(value, list) else _kind(value)
        raise CalibrationError(f"{key!r} must be a list of {least} texts or more, not {kind}", where=where)
    return tuple(_checked(text, f"{key!r}[{i}]", where, False) for i, text in enumerate(value))


def _checked(value: Any, name: str, where: str, empty: bool) -> str:
    if not isinstance(value, str):
        raise CalibrationError(f"{name} must be text, not {_kind(value)}", where=where)
    if not value.strip() and not empty:
        raise CalibrationError(f"{name} is empty", where=where)
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise CalibrationError(f"{name} is not valid Unicode (a lone surrogate)", where=where, fix="repair this text")
    return value


def _gold(row: Mapping[str, Any], key: str, where: str) -> int:
    gold, count = row["gold"], len(row[key])
    if not isinstance(gold, int) or isinstance(gold, bool):
        raise CalibrationError(f"'gold' must be a whole number, not {_kind(gold)}", where=where)
    if not 0 <= gold < count:
        raise CalibrationError(
            f"'gold' is {gold}, and there are {count} {key}", where=where, fix=f"count from 0 to {count - 1}"
        )
    return gold


def _kind(value: Any) -> str:
    names = {"dict": "an object", "list": "a list", "str": "text"}
    plain = value is None or isinstance(value, int | float)
    return names.get(type(value).__name__) or (json.dumps(value) if plain else f"a {type(value).__name__}")


def _words(shape: str) -> str:
    return shape.replace("_", " ")


def _shapes() -> str:
    return "expected one of: " + "; ".join(", ".join(names[0] for names in keys) for keys in SHAPES.values())
