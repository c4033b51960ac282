"""Pairs of texts: source and target of an encoder-decoder, or two sentences and how alike they are.

A JSONL file, a .parquet file or a data set, as for tasks. Keys or columns beyond those needed are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import CalibrationError
from llmc.eval.tasks.json_lines import json_rows, kind_of, read_lines, text_of
from llmc.eval.tasks.sources import is_table, table_rows
from llmc.files.line_ends import LineEnds


@dataclass(frozen=True)
class TextPair:
    """Two texts; `score` says how alike they are, where people judged that; `where` is for messages."""

    first: str
    second: str
    where: str
    score: float | None = None


def load_translations(path: str | Path, ends: LineEnds | None = None) -> list[TextPair]:
    """Rows of `{"source", "target"}`. Raises CalibrationError, NetworkError as `tasks.load_task` does."""
    return [
        TextPair(text_of(row, "source", where, empty=True), text_of(row, "target", where), where)
        for where, row in _rows(path, ("source", "target"), ends or LineEnds())
    ]


def load_similarities(path: str | Path, ends: LineEnds | None = None) -> list[TextPair]:
    """Rows of `{"sentence1", "sentence2", "score"}`, the score any finite number. Raises as `load_translations`."""
    return [
        TextPair(text_of(row, "sentence1", where), text_of(row, "sentence2", where), where, _score(row, where))
        for where, row in _rows(path, ("sentence1", "sentence2", "score"), ends or LineEnds())
    ]


def _rows(path: str | Path, keys: tuple[str, ...], ends: LineEnds) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row and where it stands; there is one at least, and all have the keys."""
    expected = f"its keys are {', '.join(keys)}"
    empty = True
    if is_table(path):
        places = ((f"{path}:row {i}", row) for i, row in enumerate(table_rows(str(path)), 1))
    else:
        places = ((f"{path}:{i}", row) for i, row in json_rows(read_lines(path), str(path), expected=expected))
    for where, row in places:
        empty = False
        missing = next((key for key in keys if key not in row), None)
        if missing is not None:
            raise CalibrationError(f"missing key {missing!r}", where=where, fix=expected)
        yield where, ends.value(row, str(path))
    if empty:
        raise CalibrationError("holds no pairs", where=str(path), fix=expected)


def _score(row: dict[str, Any], where: str) -> float:
    score = row["score"]
    if not isinstance(score, int | float) or isinstance(score, bool):
        raise CalibrationError(f"'score' must be a number, not {kind_of(score)}", where=where)
    if not math.isfinite(score):
        raise CalibrationError(f"'score' is {score}", where=where, fix="give a finite number")
    return float(score)
