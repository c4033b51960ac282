"""`Comparison`: several models beside one original, by size, and which of them another makes pointless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.eval.intervals import paired_intervals
from llmc.structure import Table

if TYPE_CHECKING:
    from llmc.eval.report import EvalReport

LOSSES = ("kl", "flip_rate")
"""What a model is judged by against its bytes: the first that was measured."""


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        label: unique in the comparison; the folder's name, or more of its path where two are called so.
        report: against the original of the comparison.
        control_of: label of the row that this one is the size-matched control of.
        dominated_by: label of the row that takes no more bytes and loses less; None where there is none.
        resolved: whether the interval of the difference to that row keeps clear of 0; None like `dominated_by`.
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
        """What a reader has to know beside the figures, of all rows."""
        return tuple(
            dict.fromkeys(note for each in (self.original, *(r.report for r in self.rows)) for note in each.notes)
        )

    def tables(self) -> Sequence[Table]:
        """The comparison, then the tasks of each model."""
        raise NotImplementedError


def compared(original: EvalReport, rows: Sequence[Row]) -> Comparison:
    """Order the rows by size and mark those that another one dominates."""
    ordered = sorted(rows, key=lambda row: (row.report.weight_bytes, row.label))
    loss = next((name for name in LOSSES if all(getattr(row.report, name) is not None for row in ordered)), None)
    marked = ordered if loss is None else [_marked(row, ordered, loss) for row in ordered]
    return Comparison(original, tuple(marked), loss)


def _marked(row: Row, rows: Sequence[Row], loss: str) -> Row:
    """`row`, with the one that beats it by most: smaller or equal in both, and less in one."""
    from dataclasses import replace

    def point(each: Row) -> tuple[int, float]:
        return each.report.weight_bytes, getattr(each.report, loss)

    mine = point(row)
    better = [r for r in rows if all(a <= b for a, b in zip(point(r), mine, strict=True)) and point(r) != mine]
    if not better:
        return row
    best = min(better, key=lambda each: (point(each)[1], point(each)[0]))
    return replace(row, dominated_by=best.label, resolved=_resolved(row.report, best.report, loss))


def _resolved(mine: EvalReport, other: EvalReport, loss: str) -> bool:
    """Whether the paired 95 % interval of the difference of the losses keeps clear of 0."""
    if loss == "kl":
        a, b, units = mine.windows.kl, other.windows.kl, mine.windows.tokens
    else:
        a, b = (np.concatenate([task.flipped for task in r.tasks if task.flipped is not None]) for r in (mine, other))
        units = np.ones(len(a))
    if a is None or b is None:
        return False
    table = np.stack([units, a, b], axis=1).astype(np.float64)
    edges = paired_intervals(table, {"difference": lambda s: (s[:, 1] - s[:, 2]) / s[:, 0]}).get("difference")
    return edges is not None and (edges[0] > 0 or edges[1] < 0)
