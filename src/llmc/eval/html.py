"""A comparison as one HTML file: no network, no scripts, light and dark, readable on a phone and on paper.

Names, texts and notes come from models and files that nobody vouches for: all of them pass `_text`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import llmc
from llmc.errors import printable
from llmc.eval.comparison_table import (
    LOSS_NAMES,
    SPEED,
    SPEED_TITLE,
    TASK_TITLE,
    interval_note,
    mark_note,
    measured_columns,
    named_reports,
    notes,
    short,
    speed_cell,
    task_cell,
    task_names,
    task_of,
)
from llmc.eval.plots import PALETTE, plots
from llmc.eval.report import UNRESOLVED
from llmc.eval.section_tables import sections

if TYPE_CHECKING:
    from llmc.eval.comparison import Comparison, Row
    from llmc.eval.comparison_table import Column
    from llmc.eval.report import EvalReport, Source
    from llmc.gates import GateResult

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Nothing is fetched and nothing runs, whatever a name may hold."""

OUTCOMES = {
    "passed": "passed",
    "failed": "failed",
    "unresolved": "unresolved: the interval holds the limit",
}


def to_html(comparison: Comparison, *, title: str, gates: Sequence[GateResult] = ()) -> str:
    """The comparison as a page.

    Args:
        comparison: what it shows.
        title: its heading.
        gates: shown above all else, where there are some.

    Raises:
        UsageError: matplotlib, which draws the plots, is not installed.
    """
    parts = [
        _head(comparison, title, gates),
        _losses(comparison),
        _gates(gates),
        _plots(comparison),
        _tasks(comparison),
        _speed(comparison),
        _more(comparison),
        _notes(comparison),
        _columns(comparison),
        _worst(comparison),
        _samples(comparison),
        _layers(comparison),
        _conditions(comparison),
    ]
    body = "\n".join(filter(None, parts))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="llmc {llmc.__version__}">
<title>{_text(title)}</title>
<style>
{_style()}</style>
</head>
<body>
<main>
{body}
<footer>
<p>Written by llmc {llmc.__version__}. <code>script#comparison</code> of this file holds all figures as JSON.</p>
</footer>
</main>
{_data("comparison", comparison.to_json())}
{_data("gates", [vars(gate) for gate in gates]) if gates else ""}
</body>
</html>
"""


def _text(value: str) -> str:
    """What is shown of a string from outside: on one line, without control characters, with all markup escaped."""
    return html.escape(printable(" ".join(value.split())), quote=True)


def _lines(value: str) -> str:
    """The same, with its line breaks, for `<pre>`."""
    return "\n".join(html.escape(printable(line.expandtabs()), quote=True) for line in value.splitlines())


def _style() -> str:
    """The style sheet, with the colours of the models for each theme."""
    sheet = files("llmc.eval").joinpath("report.css").read_text(encoding="utf-8")
    for theme, word in enumerate(("LIGHT", "DARK")):
        sheet = sheet.replace(word, " ".join(f"--model-{i}: {pair[theme]};" for i, pair in enumerate(PALETTE)))
    return sheet


def _data(name: str, document: Any) -> str:
    """JSON in a block that is not run; it holds no `<` that could end the block."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _section(heading: str, *parts: str) -> str:
    inner = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{heading}</h2>\n{inner}\n</section>"


def _table(
    caption: str, headings: Sequence[str], rows: Iterable[str], *, kind: str = "cards", words: Sequence[int] = ()
) -> str:
    """A table in a box of its own, which scrolls where the page is narrow. Everything given is HTML."""
    names = [f'<th scope="col"{_words(i in words or i == 0)}>{name}</th>' for i, name in enumerate(headings)]
    return (
        f'<div class="box {kind}" role="region" aria-label="{caption}" tabindex="0">\n<table>\n'
        f"<caption>{caption}</caption>\n<thead><tr>{''.join(names)}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>\n</div>"
    )


def _sentence(title: str) -> str:
    return f"{title[0].upper()}{title[1:]}."


def _words(left: bool) -> str:
    return ' class="words"' if left else ""


def _cell(pair: tuple[str, str], label: str) -> str:
    """A figure and its interval, with the heading for where rows are shown as cards."""
    interval = f' <span class="interval">{_text(pair[1])}</span>' if pair[1] else ""
    return f'<td data-label="{label}"><span>{_text(pair[0])}{interval}</span></td>'


def _paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>" if text else ""


def _name(comparison: Comparison, row: Row) -> str:
    """The label of a row beside the colour it has in the plots."""
    index = comparison.rows.index(row) % len(PALETTE)
    kind = " control" if row.control_of else ""
    fill = "transparent" if row.dominated_by else f"var(--model-{index})"
    style = f"border-color: var(--model-{index}); background: {fill}"
    swatch = f'<span class="swatch{kind}" style="{style}" aria-hidden="true"></span>'
    return f'<span class="name">{swatch}{_text(row.label)}</span>'


def _names(comparison: Comparison) -> list[str]:
    """Of the original, and of each row."""
    return [
        f'<span class="name">{_text(comparison.original.model)} <span class="quiet">(original)</span></span>',
        *(_name(comparison, row) for row in comparison.rows),
    ]


def _reports(comparison: Comparison) -> list[EvalReport]:
    return [report for _, report, _ in named_reports(comparison)]


def _head(comparison: Comparison, title: str, gates: Sequence[GateResult]) -> str:
    """Heading, what was compared, and in a sentence what came out."""
    count, original = len(comparison.rows), comparison.original
    models = f"{count} model{'' if count == 1 else 's'} against {original.model}"
    lines = [f"{models}: {original.conditions()}."]
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
    return f"<header>\n<h1>{_text(title)}</h1>\n" + "\n".join(map(_paragraph, lines)) + "\n</header>"


def _gates(gates: Sequence[GateResult]) -> str:
    """What the models had to reach, and whether they did, in words."""
    if not gates:
        return ""
    rows = [
        f'<tr><th scope="row">{_text(gate.text)}{_of_model(gate)}</th>'
        f'<td class="words"><span class="{gate.outcome if gate.outcome in OUTCOMES else "failed"}">'
        f"{_text(OUTCOMES.get(gate.outcome, gate.outcome))}</span></td>"
        + _cell((_figure(gate.value), _edges(gate.interval)), "value")
        + _cell((_figure(gate.limit), ""), "limit")
        + "</tr>"
        for gate in gates
    ]
    caption = "A gate with an interval passes or fails when its whole interval does."
    return _section("Gates", _table(caption, ("gate", "outcome", "value", "limit"), rows, words=(1,)))


def _of_model(gate: GateResult) -> str:
    return f'<br><span class="interval">{_text(gate.model)}</span>' if gate.model else ""


def _figure(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"


def _edges(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"[{interval[0]:.5g}, {interval[1]:.5g}]"


def _losses(comparison: Comparison) -> str:
    """One row per model: what it weighs, what it lost, and whether another one makes it pointless."""
    columns = measured_columns(comparison)
    caption = "The smallest first; in brackets 95 % intervals."
    table = _figures(comparison, [column for column in columns if column.first], caption, marked=True)
    others = [column for column in columns if not column.first]
    more = [_folded("More figures", _figures(comparison, others, "The same models."))] if others else []
    return _section("Size and loss", table, _paragraph(mark_note(comparison)), *more)


def _figures(comparison: Comparison, columns: Sequence[Column], caption: str, *, marked: bool = False) -> str:
    """A table of these columns; with `marked`, what a reader has to know of a row below its name."""
    rows = []
    for name, (_, report, words) in zip(_names(comparison), named_reports(comparison), strict=True):
        told = f'<span class="mark">{_text(words)}</span>' if marked and words else ""
        kind = ' class="dominated"' if "dominated" in words and marked else ""
        cells = "".join(_cell(column.cell(report, comparison.original), column.heading) for column in columns)
        rows.append(f'<tr{kind}><th scope="row">{name}{told}</th>{cells}</tr>')
    return _table(caption, ["model", *(column.heading for column in columns)], rows)


def _plots(comparison: Comparison) -> str:
    drawn = [
        f"<figure>\n{plot.svg}\n<figcaption><b>{plot.title}.</b> {plot.says}</figcaption>\n</figure>"
        for plot in plots(comparison)
    ]
    return _section("Plots", '<div class="plots">', *drawn, "</div>") if drawn else ""


def _tasks(comparison: Comparison) -> str:
    """One row per task, one column per model."""
    names = task_names(comparison)
    if not names:
        return ""
    reports, labels, rows = _reports(comparison), [name for name, _, _ in named_reports(comparison)], []
    for name in names:
        found = [task_of(report, name) for report in reports]
        first = next(task for task in found if task is not None)
        items = f'<br><span class="interval">{first.items:,} items, {_text(first.metric)}</span>'
        chance = UNRESOLVED if first.chance is None else f"{first.chance:.1%}"
        cells = "".join(_cell(task_cell(task), _text(label)) for task, label in zip(found, labels, strict=True))
        rows.append(f'<tr><th scope="row">{_text(name)}{items}</th>{_cell((chance, ""), "chance")}{cells}</tr>')
    headings = ("task", "chance", *_names(comparison))
    return _section("Tasks", _table(_sentence(TASK_TITLE), headings, rows))


def _speed(comparison: Comparison) -> str:
    reports = _reports(comparison)
    keys = [key for key in SPEED if any((report.speed or {}).get(key) is not None for report in reports)]
    if not keys:
        return ""
    rows = [
        f'<tr><th scope="row">{name}</th>'
        + "".join(_cell(speed_cell(report, key), SPEED[key][0]) for key in keys)
        + "</tr>"
        for name, report in zip(_names(comparison), reports, strict=True)
        if report.speed
    ]
    return _section("Speed", _table(_sentence(SPEED_TITLE), ("model", *(SPEED[key][0] for key in keys)), rows))


def _more(comparison: Comparison) -> str:
    """Sections that only some evaluations have."""
    names = _names(comparison)
    parts = []
    for section in sections([(name, report) for name, report, _ in named_reports(comparison)]):
        columns = [*map(_text, section.columns)]
        rows = [
            f'<tr><th scope="row">{name}</th>{"".join(map(_cell, cells, columns))}</tr>'
            for name, (_, cells) in zip(names, section.rows, strict=True)
        ]
        parts.append(_table(_text(_sentence(section.title)), ("model", *columns), rows))
    return _section("More", *parts) if parts else ""


def _notes(comparison: Comparison) -> str:
    found = notes(comparison)
    return _section("Notes", "<ul>", *(f"<li>{_text(note)}</li>" for note in found), "</ul>") if found else ""


def _columns(comparison: Comparison) -> str:
    """How to read each column, in one sentence."""
    told = [f"<dt>{column.heading}</dt><dd>{_text(column.says)}</dd>" for column in measured_columns(comparison)]
    return _section("How to read it", "<dl>", *told, "</dl>", _paragraph(interval_note(comparison)))


def _folded(summary: str, *parts: str) -> str:
    inner = "\n".join(parts)
    return f"<details>\n<summary>{summary}</summary>\n{inner}\n</details>"


def _worst(comparison: Comparison) -> str:
    """The windows that each model changes most."""
    rows = [
        f'<tr><th scope="row">{_name(comparison, row)}</th>'
        f'<td data-label="tokens">{place["first"]:,} to {place["end"] - 1:,}</td>'
        f'<td data-label="KL, nats">{short(place["kl"])}</td><td class="words">{_text(place["text"])}</td></tr>'
        for row in comparison.rows
        for place in row.report.worst
    ]
    headings = ("model", "tokens", "KL, nats", "how the text begins")
    caption = "The windows of the text with the highest mean KL of each model."
    return _folded("Worst windows", _table(caption, headings, rows, words=(3,))) if rows else ""


def _samples(comparison: Comparison) -> str:
    """What each model says after each prompt, the original first."""
    parts: list[str] = []
    prompts = dict.fromkeys(sample.prompt for row in comparison.rows for sample in row.report.samples)
    for prompt in prompts:
        parts.append(f"<h3>After “{_text(prompt)}”</h3>")
        said = [(row, s) for row in comparison.rows for s in row.report.samples if s.prompt == prompt]
        if said[0][1].original is not None:
            parts.append(f"<div>{_names(comparison)[0]}</div><pre>{_lines(said[0][1].original)}</pre>")
        parts += [f"<div>{_name(comparison, row)}</div><pre>{_lines(s.compressed)}</pre>" for row, s in said]
    return _folded("Greedy continuations", *parts) if parts else ""


def _layers(comparison: Comparison) -> str:
    """The figures of the plot of blocks."""
    blocks = list(dict.fromkeys(block for row in comparison.rows for block in row.report.layer_error))
    rows = [
        f'<tr><th scope="row">{_text(block)}</th>'
        + "".join(_cell((_error(row.report, block), ""), "") for row in comparison.rows)
        + "</tr>"
        for block in blocks
    ]
    headings = ("block", *_names(comparison)[1:])
    caption = "Squared error of the outputs of a block, divided by their squared size."
    return _folded("Error per block", _table(caption, headings, rows, kind="")) if blocks else ""


def _error(report: EvalReport, block: str) -> str:
    value = report.layer_error.get(block)
    return UNRESOLVED if value is None else short(value)


def _conditions(comparison: Comparison) -> str:
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
    lines = [f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in told.items() if value is not None]
    return _section("How it was measured", "<dl>", *lines, "</dl>")


def _source(source: Source) -> str:
    return source.name if source.sha256 is None else f"{source.name}, SHA-256 {source.sha256}"


def _each(reports: Sequence[EvalReport], what: Callable[[EvalReport], str]) -> str:
    """What holds for all reports, or each value with the models it holds for."""
    owners: dict[str, list[str]] = {}
    for report in reports:
        owners.setdefault(what(report), []).append(report.model)
    return next(iter(owners)) if len(owners) == 1 else "; ".join(f"{k}: {', '.join(v)}" for k, v in owners.items())
