"""`Comparison`: several models beside one original, by size, and which of them another makes pointless."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llmc.eval.reports.intervals import paired_intervals
from llmc.late import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.reports.report import EvalReport
    from llmc.results import Table

LOSSES = ("kl", "flip_rate")
"""What a model is judged by against its bytes: the first that was measured of all."""

SCHEMA = "comparison.schema.json"


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        label: unique in the comparison; the folder's name, or more of its path where two are called so.
        report: against the original of the comparison.
        control_of: label of the row that this one is the size-matched control of.
        dominated_by: label of the row that takes no more bytes and loses no more, and less of one of them; None where
            there is none.
        resolved: whether the interval of the difference to that row keeps clear of 0, or both lose exactly the same
            everywhere; None like `dominated_by`.
    """

    label: str
    report: EvalReport
    control_of: str | None = None
    dominated_by: str | None = None
    resolved: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """Several models on the same tokens and items, the smallest first.

    Attributes:
        original: the report of the model that all are held against, itself without an original.
        rows: by weight bytes.
        loss: which of `LOSSES` says that a row is dominated; None when none was measured.
    """

    original: EvalReport
    rows: tuple[Row, ...]
    loss: str | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict, as `comparison.schema.json` describes."""
        marks = ("label", "control_of", "dominated_by", "resolved")
        rows = [{**{name: getattr(row, name) for name in marks}, **row.report.to_json()} for row in self.rows]
        return {"format_version": 1, "original": self.original.to_json(), "loss": self.loss, "rows": rows}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know beside the figures, with the labels of the rows that it is about."""
        from llmc.eval.reports.comparison_table import notes

        return tuple(notes(self))

    def tables(self) -> Sequence[Table]:
        """The comparison, then the tasks of each model, then speed where it was measured."""
        from llmc.eval.reports.comparison_table import tables

        return tables(self)

    def to_markdown(self) -> str:
        """The same tables for a pull request, with the conditions and the worst windows."""
        from llmc.eval.reports.comparison_table import markdown

        return markdown(self)


def compared(original: EvalReport, rows: Sequence[Row]) -> Comparison:
    """Order the rows by size and mark those that another one dominates."""
    ordered = sorted(rows, key=lambda row: (row.report.weight_bytes, row.label))
    shared = (name for name in LOSSES if all(getattr(row.report, name) is not None for row in ordered))
    loss = next(shared, None) if ordered else None
    marked = ordered if loss is None else [_marked(row, ordered, loss) for row in ordered]
    return Comparison(original, tuple(marked), loss)


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `Comparison.to_json()`; its `$defs/report` is the one of `EvalReport.to_json()`."""
    return json.loads(files("llmc.eval.reports").joinpath(SCHEMA).read_text(encoding="utf-8"))


def _marked(row: Row, rows: Sequence[Row], loss: str) -> Row:
    """`row`, with the one that beats it by most: smaller or equal in both, and less in one. NaN beats nothing."""

    def point(each: Row) -> tuple[int, float]:
        return each.report.weight_bytes, getattr(each.report, loss)

    mine = point(row)
    better = [r for r in rows if all(a <= b for a, b in zip(point(r), mine, strict=True)) and point(r) != mine]
    if not better:
        return replace(row, dominated_by=None, resolved=None)
    best = min(better, key=lambda each: (point(each)[1], point(each)[0]))
    return replace(row, dominated_by=best.label, resolved=_resolved(row.report, best.report, loss))


def _resolved(mine: EvalReport, other: EvalReport, loss: str) -> bool:
    """Whether the paired 95 % interval of the difference of the losses keeps clear of 0, or they do not differ at all.

    Reports of other windows or items cannot be paired: their difference is not resolved.
    """
    a, b = _by_unit(mine, loss), _by_unit(other, loss)
    if a is None or b is None or a.shape != b.shape or not np.array_equal(a[:, 0], b[:, 0]):
        return False
    if np.array_equal(a, b):
        return True  # only the bytes differ, and those are known
    table = np.concatenate([a, b[:, 1:]], axis=1)
    edges = paired_intervals(table, {"difference": lambda s: (s[:, 1] - s[:, 2]) / s[:, 0]}).get("difference")
    return edges is not None and edges[0] > 0


def _by_unit(report: EvalReport, loss: str) -> NDArray[np.float64] | None:
    """`[units, (tokens or items, loss)]`: what is drawn in a bootstrap; None where the report does not hold it."""
    if loss == "kl":
        tokens, kl = report.windows.tokens, report.windows.kl
        return None if kl is None else np.stack([tokens, kl], axis=1).astype(np.float64)
    flipped = [task.flipped for task in report.tasks if task.flipped is not None]
    if not flipped:
        return None
    every = np.concatenate(flipped).astype(np.float64)
    return np.stack([np.ones(len(every)), every], axis=1)
