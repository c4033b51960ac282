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

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.embedded.names import embedded_task
from llmc.errors import CalibrationError, UsageError
from llmc.eval.gates import task_name
from llmc.eval.tasks.json_lines import json_rows, kind_of, read_lines, text_of, texts_of
from llmc.eval.tasks.sources import KINDS, is_table, table_rows
from llmc.files.line_ends import LineEnds
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
    """The items of one file, data set or kind of question; `path` is for messages, reports name the file only.

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


def load_tasks(paths: Sequence[str | Path], limit: int | None = None, ends: LineEnds | None = None) -> list[Task]:
    """Read task files; see `load_task`. Raises UsageError when two would have one name."""
    names: dict[str, str] = {}
    for path in map(str, paths):
        first = names.get(task_name(path))
        if first is not None:
            raise UsageError(f"there is a task {task_name(path)!r} already, {first}", where=path, fix="rename the file")
        names[task_name(path)] = path
    return [load_task(path, limit, ends) for path in paths]


def check_limit(limit: int | None) -> None:
    """Raise UsageError for a number of items below 1."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves no item", where="--limit", fix="use 1 or more")


def load_task(path: str | Path, limit: int | None = None, ends: LineEnds | None = None) -> Task:
    """Read one task.

    Args:
        path: a JSONL file in UTF-8, of which blank lines are skipped; a .parquet file; a data set of the Hub or in a
            local folder, `name[:configuration][@split]`, without a split `test` or the only one; or a task of the
            embedded world, as `tiny:recall`.
        limit: keep only the first items. All are checked all the same.
        ends: what becomes of line ends in the texts; None: what `LineEnds` does by itself.

    Raises:
        CalibrationError: no such file or data set, or a wrong line, named with its number.
        UsageError: the embedded world has no such task, or a limit below 1. NetworkError: the Hub cannot be reached.
    """
    check_limit(limit)
    content, ends = embedded_task(str(path)), ends or LineEnds()
    if content is None and is_table(path):
        return _load_table(str(path), limit, ends)
    content = content or read_lines(path)
    shape, first, items = "", 0, []
    for number, read in json_rows(content, str(path), expected=_shapes()):
        row = ends.value(read, str(path))
        where = f"{path}:{number}"
        found = _shape_of(row, where)
        if shape and found != shape:
            problem = f"an item of {_words(found)} in a file whose line {first} is one of {_words(shape)}"
            raise CalibrationError(problem, where=where, fix="put them into two files")
        shape, first = found, first or number
        items.append(_item(row, shape, number, where))
    if not items:
        raise CalibrationError("holds no items", where=str(path), fix="give one JSON object per line")
    changed = b"\r" if str(path) in ends.found else b""  # its items are not those of the raw file
    digest = hashlib.sha256(content + changed).hexdigest()
    return Task(task_name(path), shape, tuple(items[:limit]), str(path), digest)


def _load_table(source: str, limit: int | None, ends: LineEnds) -> Task:
    """A task whose rows all have the columns of the first."""
    shape, items, digest = "", [], hashlib.sha256()
    keys: tuple[str, ...] = ()
    for number, row in enumerate(table_rows(source), 1):
        if not shape:
            shape, keys = _shape_of_columns(list(row), source)
        where = f"{source}:row {number}"
        item = {key: ends.value(row.get(key), source) for key in keys}
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
        query, choices = text_of(row, "query", where, empty=True), texts_of(row, "choices", where, least=2)
        return Item(line, tuple((query, choice) for choice in choices), _gold(row, "choices", where))
    if shape == "partial_scoring":
        contexts, end = texts_of(row, "context_options", where, least=2), text_of(row, "continuation", where)
        return Item(line, tuple((context, end) for context in contexts), _gold(row, "context_options", where))
    if shape == "cloze":
        return Item(line, ((text_of(row, "context", where, empty=True), text_of(row, "continuation", where)),))
    question = text_of(row, "question" if "question" in row else "query", where)
    answers = texts_of(row, "answers", where) if "answers" in row else (text_of(row, "answer", where),)
    return Item(line, ((question, ""),), answers=answers)


def _gold(row: Mapping[str, Any], key: str, where: str) -> int:
    gold, count = row["gold"], len(row[key])
    if not isinstance(gold, int) or isinstance(gold, bool):
        raise CalibrationError(f"'gold' must be a whole number, not {kind_of(gold)}", where=where)
    if not 0 <= gold < count:
        raise CalibrationError(
            f"'gold' is {gold}, and there are {count} {key}", where=where, fix=f"count from 0 to {count - 1}"
        )
    return gold


def _words(shape: str) -> str:
    return shape.replace("_", " ")


def _shapes() -> str:
    return "expected one of: " + "; ".join(", ".join(names[0] for names in keys) for keys in SHAPES.values())
