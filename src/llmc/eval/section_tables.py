"""Tables of what only some evaluations have: vectors of encoders, repetition in greedy text, another harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmc.structure import Table

if TYPE_CHECKING:
    from llmc.eval.report import EvalReport

ABSENT = "-"
EMBEDDINGS = {
    "cosine": "cosine to the original's vector",
    "rank_correlation": "rank correlation of similarities",
    "correlation": "correlation with the scores",
    "correlation_difference": "difference to the original's",
}
DEGENERATION = {
    key: words
    for name, what in (
        ("repetition_rate", "repetition rate"),
        *((f"distinct_{n}", f"distinct {n}-grams") for n in (1, 2, 3)),
    )
    for key, words in ((name, what), (f"{name}_difference", f"{what}, difference to the original"))
}


def section_tables(named: Sequence[tuple[str, EvalReport]]) -> list[Table]:
    """One per section that some report has, a row per figure and a column per report.

    Args:
        named: what a column is called, and its report.
    """
    names = tuple(name for name, _ in named)
    sections = (
        ("vectors of texts", [_rows(report.embeddings, EMBEDDINGS) for _, report in named]),
        ("greedy continuations", [_rows(report.degeneration, DEGENERATION) for _, report in named]),
        ("lm-evaluation-harness", [dict(_harness(report.lm_eval or {})) for _, report in named]),
    )
    tables = []
    for title, columns in sections:
        keys = list(dict.fromkeys(key for column in columns for key in column))
        rows = tuple((key, *(column.get(key, ABSENT) for column in columns)) for key in keys)
        tables += [Table(title, ("", *names), rows)] if rows else []
    return tables


def _rows(figures: Mapping[str, Any] | None, words: Mapping[str, str]) -> dict[str, str]:
    """Words -> cell of each figure that is there."""
    found = figures or {}
    return {says: _cell(found, key) for key, says in words.items() if found.get(key) is not None}


def _harness(tasks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for task, metrics in tasks.items():
        for metric, figures in metrics.items():
            yield f"{task}, {metric}", _cell(figures, "value")
            if figures.get("difference") is not None:
                yield f"{task}, {metric}, difference", _cell(figures, "difference")


def _cell(figures: Mapping[str, Any], key: str) -> str:
    edges = figures.get("intervals", {}).get(key)
    return f"{figures[key]:.4g}" + ("" if edges is None else f" [{edges[0]:.4g}, {edges[1]:.4g}]")
