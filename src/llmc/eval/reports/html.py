"""A comparison as one HTML file: no network, no scripts, light and dark, readable on a phone and on paper.

This file says what is shown; `report.html.jinja` says how. Names, texts and notes come from models and files that
nobody vouches for: the template escapes every value, after `_one_line`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmc
from llmc.errors import printable
from llmc.eval.reports.comparison_table import (
    LOSS_NAMES,
    TASK_TITLE,
    interval_note,
    mark_note,
    measured_columns,
    named_reports,
    notes,
    short,
    task_cell,
    task_names,
    task_of,
)
from llmc.eval.reports.plots import PALETTE, plots
from llmc.eval.reports.section_tables import SPEED, SPEED_TITLE, UNRESOLVED, sections, speed_cell

if TYPE_CHECKING:
    from llmc.eval.gates import GateResult
    from llmc.eval.reports.comparison import Comparison, Row
    from llmc.eval.reports.comparison_table import Column
    from llmc.eval.reports.report import EvalReport, Source

OUTCOMES = {
    "passed": "passed",
    "failed": "failed",
    "unresolved": "unresolved: the interval holds the limit",
}


@dataclass(frozen=True)
class Name:
    """A model as a heading: beside its label the colour that it has in the plots (None: of the original)."""

    label: str
    colour: int | None = None
    control: bool = False
    filled: bool = True

    @property
    def original(self) -> bool:
        return self.colour is None


@dataclass(frozen=True)
class Cell:
    """A figure.

    Attributes:
        more: its interval, or what belongs to it.
        label: the heading of its column, for where rows are shown as cards; None shows none.
        words: it is text, which may be broken.
        kind: how it is coloured.
    """

    text: str
    more: str = ""
    label: str | None = ""
    words: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table: its heading, with more in small letters and a remark below, and its cells."""

    head: Name | str
    cells: Sequence[Cell]
    below: str = ""
    mark: str = ""
    dominated: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; `words` are the columns of text, with `cards` each row is a card of its own on a narrow page."""

    caption: str
    headings: Sequence[Name | str]
    rows: Sequence[Line]
    words: Sequence[int] = ()
    cards: bool = True


def to_html(comparison: Comparison, *, title: str, gates: Sequence[GateResult] = ()) -> str:
    """The comparison as a page.

    Args:
        comparison: what it shows.
        title: its heading.
        gates: shown above all else, where there are some.

    Raises:
        UsageError: matplotlib, which draws the plots, is not installed.
    """
    columns = measured_columns(comparison)
    first = [column for column in columns if column.first]
    others = [column for column in columns if not column.first]
    return str(
        _template().render(
            title=title,
            version=llmc.__version__,
            style=_style(),
            summary=_summary(comparison, gates),
            losses=_figures(comparison, first, "The smallest first; in brackets 95 % intervals.", marked=True),
            more_losses=_figures(comparison, others, "The same models.") if others else None,
            mark_note=mark_note(comparison),
            gates=_gates(gates) if gates else None,
            plots=plots(comparison),
            tasks=_tasks(comparison),
            speed=_speed(comparison),
            more=_more(comparison),
            notes=notes(comparison),
            columns=[(column.heading, column.says) for column in columns],
            interval_note=interval_note(comparison),
            worst=_worst(comparison),
            samples=_samples(comparison),
            blocks=_blocks(comparison),
            matrices=_matrices(comparison),
            conditions=_conditions(comparison),
            comparison=comparison.to_json(),
            gate_results=[vars(gate) for gate in gates],
        )
    )


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    made = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_one_line, trim_blocks=True, keep_trailing_newline=True
    )
    made.filters["lines"] = lambda text: Markup("\n").join(
        escape(printable(line.expandtabs())) for line in text.splitlines()
    )
    made.filters["json"] = _json
    made.filters["drawing"] = Markup  # our own
    text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    return made.from_string(text)


def _one_line(value: Any) -> Any:
    """What is shown of a string from outside: on one line, without control characters; markup of ours as it is."""
    return value if hasattr(value, "__html__") else printable(" ".join(str(value).split()))


def _json(document: Any) -> Any:
    """JSON for a block that is not run; it holds no `<` that could end the block."""
    from markupsafe import Markup

    return Markup(json.dumps(document, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c"))


def _style() -> Any:
    """The style sheet, with the colours of the models for each theme."""
    from markupsafe import Markup

    sheet = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    for theme, word in enumerate(("LIGHT", "DARK")):
        sheet = sheet.replace(word, " ".join(f"--model-{i}: {pair[theme]};" for i, pair in enumerate(PALETTE)))
    return Markup(sheet)


def _sentence(title: str) -> str:
    return f"{title[0].upper()}{title[1:]}."


def _name(comparison: Comparison, row: Row) -> Name:
    index = comparison.rows.index(row) % len(PALETTE)
    return Name(row.label, index, control=row.control_of is not None, filled=row.dominated_by is None)


def _names(comparison: Comparison) -> list[Name]:
    """Of the original, and of each row."""
    return [Name(comparison.original.model), *(_name(comparison, row) for row in comparison.rows)]


def _reports(comparison: Comparison) -> list[EvalReport]:
    return [report for _, report, _ in named_reports(comparison)]


def _summary(comparison: Comparison, gates: Sequence[GateResult]) -> list[str]:
    """What was compared, and in a sentence what came out."""
    count, original = len(comparison.rows), comparison.original
    lines = [f"{count} model{'' if count == 1 else 's'} against {original.model}: {original.conditions()}."]
    front = [row.label for row in comparison.rows if row.dominated_by is None]
    if comparison.loss is not None and count > 1:
        loss = LOSS_NAMES[comparison.loss]
        best = min(comparison.rows, key=lambda row: getattr(row.report, comparison.loss or "kl"))
        lines.append(
            f"Smallest: {comparison.rows[0].label}. Least {loss}: {best.label}. "
            f"Not dominated by another one in bytes and {loss}: {', '.join(front)}."
        )
    if gates:
        counts = [f"{sum(g.outcome == kind for g in gates)} {kind}" for kind in OUTCOMES]
        lines.append(f"Gates: {', '.join(counts)}.")
    return lines


def _gates(gates: Sequence[GateResult]) -> Grid:
    """What the models had to reach, and whether they did, in words."""
    rows = []
    for gate in gates:
        outcome = gate.outcome if gate.outcome in OUTCOMES else "failed"
        cells = [
            Cell(OUTCOMES.get(gate.outcome, gate.outcome), label=None, words=True, kind=outcome),
            Cell(_figure(gate.value), _edges(gate.interval), "value"),
            Cell(_figure(gate.limit), label="limit"),
        ]
        rows.append(Line(gate.text, cells, below=gate.model or ""))
    caption = "A gate with an interval passes or fails when its whole interval does."
    return Grid(caption, ("gate", "outcome", "value", "limit"), rows, words=(1,))


def _figure(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"


def _edges(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.5g}, {interval[1]:.5g}]"


def _figures(comparison: Comparison, columns: Sequence[Column], caption: str, *, marked: bool = False) -> Grid:
    """One row per model; with `marked`, what a reader has to know of it below its name."""
    rows = []
    for name, (_, report, words) in zip(_names(comparison), named_reports(comparison), strict=True):
        cells = [Cell(*column.cell(report, comparison.original), column.heading) for column in columns]
        mark = words if marked else ""
        rows.append(Line(name, cells, mark=mark, dominated="dominated" in mark))
    return Grid(caption, ["model", *(column.heading for column in columns)], rows)


def _tasks(comparison: Comparison) -> list[Grid]:
    """One row per task, one column per model."""
    reports, labels, rows = _reports(comparison), [name for name, _, _ in named_reports(comparison)], []
    for name in task_names(comparison):
        found = [task_of(report, name) for report in reports]
        first = next(task for task in found if task is not None)
        chance = Cell(UNRESOLVED if first.chance is None else f"{first.chance:.1%}", label="chance")
        cells = [Cell(*task_cell(task), label) for task, label in zip(found, labels, strict=True)]
        rows.append(Line(name, [chance, *cells], below=f"{first.items:,} items, {first.metric}"))
    return [Grid(_sentence(TASK_TITLE), ("task", "chance", *_names(comparison)), rows)] if rows else []


def _speed(comparison: Comparison) -> list[Grid]:
    reports = _reports(comparison)
    keys = [key for key in SPEED if any((report.speed or {}).get(key) is not None for report in reports)]
    rows = [
        Line(name, [Cell(*speed_cell(report, key), SPEED[key][0]) for key in keys])
        for name, report in zip(_names(comparison), reports, strict=True)
        if report.speed
    ]
    return [Grid(_sentence(SPEED_TITLE), ("model", *(SPEED[key][0] for key in keys)), rows)] if keys else []


def _more(comparison: Comparison) -> list[Grid]:
    """What only some evaluations have."""
    grids = []
    for section in sections([(name, report) for name, report, _ in named_reports(comparison)]):
        rows = [
            Line(name, [Cell(*pair, column) for pair, column in zip(cells, section.columns, strict=True)])
            for name, (_, cells) in zip(_names(comparison), section.rows, strict=True)
        ]
        grids.append(Grid(_sentence(section.title), ("model", *section.columns), rows))
    return grids


def _worst(comparison: Comparison) -> Grid | None:
    """The windows that each model changes most."""
    rows = []
    for row in comparison.rows:
        for place in row.report.worst:
            cells = [
                Cell(f"{place['first']:,} to {place['end'] - 1:,}", label="tokens"),
                Cell(short(place["kl"]), label="KL, nats"),
                Cell(place["text"], label=None, words=True),
            ]
            rows.append(Line(_name(comparison, row), cells))
    caption = "The windows of the text with the highest mean KL of each model."
    return Grid(caption, ("model", "tokens", "KL, nats", "how the text begins"), rows, words=(3,)) if rows else None


def _samples(comparison: Comparison) -> list[tuple[str, list[tuple[Name, str]]]]:
    """Each prompt with what each model says after it, the original first."""
    parts = []
    for prompt in dict.fromkeys(sample.prompt for row in comparison.rows for sample in row.report.samples):
        said = [(row, s) for row in comparison.rows for s in row.report.samples if s.prompt == prompt]
        texts = [(_name(comparison, row), sample.compressed) for row, sample in said]
        original = said[0][1].original
        parts.append((prompt, texts if original is None else [(_names(comparison)[0], original), *texts]))
    return parts


def _blocks(comparison: Comparison) -> Grid | None:
    """The figures of the plot of blocks."""
    errors = [row.report.layer_error for row in comparison.rows]
    caption = "Squared error of the outputs of a block, divided by their squared size."
    return _by_place(comparison, "block", caption, lambda i, block: (_error(errors[i].get(block)), ""), errors)


def _matrices(comparison: Comparison) -> Grid | None:
    """What the run that wrote each model measured of each matrix."""
    errors = [row.report.matrix_error for row in comparison.rows]
    caption = (
        "Squared error of the outputs of a matrix on calibration tokens, divided by their squared size, where the run "
        "measured it; below it the signal-to-noise ratio of the weights."
    )

    def cell(i: int, matrix: str) -> tuple[str, str]:
        found = errors[i].get(matrix, {})
        ratio = found.get("snr_db")
        return _error(found.get("output_error")), "" if ratio is None else f"{ratio:.1f} dB"

    return _by_place(comparison, "matrix", caption, cell, errors)


def _by_place(
    comparison: Comparison,
    what: str,
    caption: str,
    cell: Callable[[int, str], tuple[str, str]],
    errors: Sequence[Iterable[str]],
) -> Grid | None:
    """One row per block or matrix, one column per model."""
    places = list(dict.fromkeys(place for each in errors for place in each))
    rows = [Line(place, [Cell(*cell(i, place)) for i in range(len(errors))]) for place in places]
    return Grid(caption, (what, *_names(comparison)[1:]), rows, cards=False) if rows else None


def _error(value: float | None) -> str:
    return UNRESOLVED if value is None else short(value)


def _conditions(comparison: Comparison) -> list[tuple[str, str]]:
    """What has to be equal for the same figures."""
    original, reports = comparison.original, _reports(comparison)
    told = {
        "text": None if original.text is None else _source(original.text),
        "scored tokens": None if original.tokens is None else f"{original.tokens:,}",
        "windows": f"context {original.context:,}, stride {original.stride:,} tokens" if original.text else None,
        "tokenizer": _source(original.tokenizer),
        "computed in": _each(reports, lambda report: report.dtype),
        "llmc": llmc.__version__,
    }
    told |= {f"task {task.name}": f"{task.items:,} items, SHA-256 {task.sha256}" for task in original.tasks}
    return [(key, value) for key, value in told.items() if value is not None]


def _source(source: Source) -> str:
    return source.name if source.sha256 is None else f"{source.name}, SHA-256 {source.sha256}"


def _each(reports: Sequence[EvalReport], what: Callable[[EvalReport], str]) -> str:
    """What holds for all reports, or each value with the models it holds for."""
    owners: dict[str, list[str]] = {}
    for report in reports:
        owners.setdefault(what(report), []).append(report.model)
    return next(iter(owners)) if len(owners) == 1 else "; ".join(f"{k}: {', '.join(v)}" for k, v in owners.items())
