"""Tables of what only some evaluations have: vectors of encoders, repetition in greedy text, another harness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.results import Table

if TYPE_CHECKING:
    from llmc.eval.reports.report import EvalReport

SPEED_TITLE = "speed on the machine that measured it; in brackets the lowest and highest of repeated runs"
SPEED: dict[str, tuple[str, Callable[[float], str]]] = {
    "load_seconds": ("load, s", "{:.3g}".format),
    "load_mb_per_s": ("load, MB/s", "{:,.0f}".format),
    "prefill_tokens_per_s": ("prefill, tokens/s", "{:,.0f}".format),
    "decode_tokens_per_s": ("decode, tokens/s", "{:,.1f}".format),
    "peak_memory_bytes": ("peak memory, MB", lambda value: f"{value / 1e6:,.0f}"),
}
UNRESOLVED = "-"
"""What stands where there is no figure."""
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
            (name, tuple(each.get(column, (UNRESOLVED, "")) for column in columns))
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


def speed_cell(report: EvalReport, key: str) -> tuple[str, str]:
    """A figure of `speed`, and the lowest and highest of its repetitions."""
    speed = report.speed or {}
    if speed.get(key) is None:
        return UNRESOLVED, ""
    form = SPEED[key][1]
    edges = speed.get("ranges", {}).get(key)
    return form(speed[key]), "" if edges is None else f"[{form(edges[0])}, {form(edges[1])}]"
