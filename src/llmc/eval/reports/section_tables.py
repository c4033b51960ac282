"""Tables of what only some evaluations have: vectors of encoders, repetition in greedy text, another harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.results import Table

if TYPE_CHECKING:
    from llmc.eval.reports.report import EvalReport

ABSENT = "-"
EMBEDDINGS = {
    "cosine": "cosine to the original's",
    "rank_correlation": "rank correlation",
    "correlation": "correlation with scores",
}
DEGENERATION = {"repetition_rate": "repetition rate", **{f"distinct_{n}": f"distinct {n}-grams" for n in (1, 2, 3)}}

Cell = tuple[str, str]
"""A figure, and its interval; or its difference to the original with the interval of that."""


@dataclass(frozen=True)
class Section:
    """A row per model and a column per figure."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def table(self) -> Table:
        rows = tuple((name, *(" ".join(filter(None, cell)) for cell in cells)) for name, cells in self.rows)
        return Table(self.title, ("model", *self.columns), rows)


def sections(named: Sequence[tuple[str, EvalReport]]) -> list[Section]:
    """Those that some report has.

    Args:
        named: what a model is called, and its report.
    """
    found = (
        ("vectors of texts", [dict(_named(report.embeddings, EMBEDDINGS)) for _, report in named]),
        ("greedy continuations", [dict(_named(report.degeneration, DEGENERATION)) for _, report in named]),
        ("lm-evaluation-harness", [dict(_harness(report.lm_eval or {})) for _, report in named]),
    )
    out = []
    for title, cells in found:
        columns = tuple(dict.fromkeys(key for each in cells for key in each))
        rows = tuple(
            (name, tuple(each.get(column, (ABSENT, "")) for column in columns))
            for (name, _), each in zip(named, cells, strict=True)
        )
        out += [Section(title, columns, rows)] if columns else []
    return out


def _named(figures: Mapping[str, Any] | None, words: Mapping[str, str]) -> Iterator[tuple[str, Cell]]:
    for key, says in words.items():
        if figures is not None and figures.get(key) is not None:
            yield says, _cell(figures, key, f"{key}_difference")


def _harness(tasks: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    for task, metrics in tasks.items():
        for metric, figures in metrics.items():
            yield f"{task}, {metric}", _cell(figures, "value", "difference")


def _cell(figures: Mapping[str, Any], key: str, difference: str) -> Cell:
    intervals = figures.get("intervals", {})
    if figures.get(difference) is None:
        return f"{figures[key]:.4g}", _edges(intervals.get(key), "")
    return f"{figures[key]:.4g}", f"{figures[difference]:+.3g}{_edges(intervals.get(difference), ' ')}"


def _edges(edges: Sequence[float] | None, before: str) -> str:
    return "" if edges is None else f"{before}[{edges[0]:.3g}, {edges[1]:.3g}]"
