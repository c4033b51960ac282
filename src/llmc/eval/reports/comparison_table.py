"""The columns of a comparison, defined once, and its tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmc.eval.reports.labels import clipped
from llmc.eval.reports.section_tables import SPEED, SPEED_TITLE, UNRESOLVED, sections, speed_cell
from llmc.results import Table, code, plain, row, rule, size

if TYPE_CHECKING:
    from llmc.eval.reports.comparison import Comparison, Row
    from llmc.eval.reports.report import EvalReport
    from llmc.eval.reports.task_report import TaskReport

Say = Callable[[str], str]
"""How a name from a file is written: as it is, or as code."""

LOSS_NAMES = {"kl": "KL divergence", "flip_rate": "flip_rate"}
MARK = "mark"
TERMINAL = 118
"""Columns of a terminal that tables are folded to."""
BETWEEN = 3  # blanks between two columns
TASK_TITLE = (
    "tasks: accuracy, and the difference to the original in points, with its interval; ? where it is not resolved"
)


@dataclass(frozen=True)
class Column:
    """A figure of each model.

    Attributes:
        key: attribute of EvalReport, and the name of its interval.
        heading: with blanks, where it may be broken.
        says: how to read it, in one sentence.
        form: the figure, or an edge of its interval, as text.
        of_original: the figure of the original by definition; None: as in its own report.
        first: whether it stands in a terminal and in Markdown; HTML shows all.
        share: divide by the same figure of the original.
    """

    key: str
    heading: str
    says: str
    form: Callable[[float], str]
    of_original: float | None = None
    first: bool = True
    share: bool = False

    def value(self, report: EvalReport, original: EvalReport) -> float | None:
        """The figure of `report`, which may be the original's own."""
        if report is original and self.of_original is not None:
            return self.of_original
        figure = getattr(report, self.key)
        return figure / getattr(original, self.key) if self.share and figure is not None else figure

    def cell(self, report: EvalReport, original: EvalReport) -> tuple[str, str]:
        """The figure and its interval as text; the second is empty where there is none."""
        value = self.value(report, original)
        if value is None:
            return UNRESOLVED, ""
        edges = None if self.share else report.intervals.get(self.key)
        return self.form(value), "" if edges is None else f"[{', '.join(self.form(e).rstrip('%') for e in edges)}]"


def short(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}"


def ratio(value: float) -> str:
    """Near 1 what counts are the decimals."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.5g}"


def percent(value: float) -> str:
    """A share; two decimals, so that 99.97 % is not all."""
    return f"{value:.2%}"


COLUMNS = (
    Column("weight_bytes", "weights", "Bytes of all weight files, headers included.", size),
    Column("weight_bytes", "share", "The same, divided by those of the original.", "{:.1%}".format, share=True),
    Column(
        "bits_per_weight",
        "bits/weight",
        "Stored bits of the compressed matrices, scales and zero points included, divided by their elements.",
        ratio,
    ),
    Column(
        "model_bits_per_weight",
        "bits/weight, model",
        "The same of the whole model: embeddings and norms are often left as they were.",
        ratio,
        first=False,
    ),
    Column(
        "overhead_bits_per_weight",
        "overhead, bits",
        "What of the bits/weight is scales, zero points and shapes.",
        ratio,
        first=False,
    ),
    Column(
        "kl",
        "KL, nats",
        "Mean over tokens of KL(original || model): how far the predictions moved; 0 is no change.",
        short,
        of_original=0.0,
    ),
    Column("kl_median", "KL, median", "Half of the tokens changed less.", short, of_original=0.0, first=False),
    Column(
        "kl_p99",
        "KL, 99 %",
        "99 % of the tokens changed less; what breaks a few tokens badly shows here first.",
        short,
        of_original=0.0,
    ),
    Column(
        "perplexity",
        "perplexity",
        "exp of the mean negative log-likelihood per token; lower is better.",
        ratio,
        first=False,
    ),
    Column(
        "perplexity_ratio",
        "perplexity ratio",
        "Perplexity divided by that of the original; changes that cancel out do not show.",
        ratio,
        of_original=1.0,
    ),
    Column(
        "bits_per_byte",
        "bits per byte",
        "Negative log-likelihood of the text in bits, divided by its bytes: comparable across tokenizers.",
        ratio,
        first=False,
    ),
    Column(
        "top1_agreement",
        "top-1 agreement",
        "Share of tokens where model and original put the same token first.",
        percent,
        of_original=1.0,
    ),
    Column(
        "flip_rate",
        "flip rate",
        "Share of the items of all tasks that went from right to wrong or from wrong to right.",
        percent,
        of_original=0.0,
    ),
)


def measured_columns(comparison: Comparison) -> list[Column]:
    """Those of `COLUMNS` that some row has a figure for; overhead only where there is some."""
    return [column for column in COLUMNS if any(_shown(column, row.report, comparison) for row in comparison.rows)]


def _shown(column: Column, report: EvalReport, comparison: Comparison) -> bool:
    value = column.value(report, comparison.original)
    return value is not None and (column.key != "overhead_bits_per_weight" or value > 0)


def mark(row: Row, original: EvalReport, say: Say = str) -> str:
    """What a reader has to know of the row, in words; `?` where an interval leaves it open."""
    marks = [] if row.control_of is None else [f"control of {say(row.control_of)}"]
    if row.dominated_by is not None:
        marks.append(f"dominated by {say(row.dominated_by)}{'' if row.resolved else '?'}")
    elif row.report.weight_bytes >= original.weight_bytes:
        marks.append("no smaller than the original")
    return "; ".join(marks)


def named_reports(comparison: Comparison, say: Say = str) -> Iterator[tuple[str, EvalReport, str]]:
    """Name, report and mark of the original, and of each row."""
    yield f"original ({say(comparison.original.model)})", comparison.original, ""
    for each in comparison.rows:
        yield say(each.label), each.report, mark(each, comparison.original, say)


def tables(comparison: Comparison) -> list[Table]:
    """The comparison, the tasks, and the speed, each where it was measured, in pieces that fit a terminal."""
    say = short_names(comparison).__getitem__
    return [piece for table in whole_tables(comparison, say) for piece in folded(table)]


def whole_tables(comparison: Comparison, say: Say) -> list[Table]:
    """The same in one piece each."""
    found = (loss_table(comparison, say), task_table(comparison, say), speed_table(comparison, say))
    more = sections([(name, report) for name, report, _ in named_reports(comparison, say)])
    return [*(table for table in found if table is not None), *(section.table() for section in more)]


def short_names(comparison: Comparison) -> dict[str, str]:
    """Names of models and tasks as they are, with their middle left out where they are long and stay different."""
    names = [comparison.original.model, *(row.label for row in comparison.rows), *task_names(comparison)]
    cut = {name: clipped(name) for name in dict.fromkeys(names)}
    return cut if len(set(cut.values())) == len(cut) else {name: name for name in cut}


def folded(table: Table, width: int = TERMINAL) -> list[Table]:
    """`table` as several with the first column in each, none wider than `width` where two columns fit at all."""
    widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
    pieces: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(pieces[-1]) > 1 and sum(widths[j] + BETWEEN for j in [*pieces[-1], i]) > width:
            pieces.append([0])
        pieces[-1].append(i)

    def picked(cells: Sequence[str], piece: Sequence[int]) -> tuple[str, ...]:
        return tuple(cells[i] for i in piece)

    titles = [table.title, *["continued"] * (len(pieces) - 1)]
    return [
        Table(title, picked(table.columns, piece), tuple(picked(cells, piece) for cells in table.rows))
        for title, piece in zip(titles, pieces, strict=True)
    ]


def loss_table(comparison: Comparison, say: Say = str) -> Table:
    """One row per model: bytes, what it lost, and beside the loss whether another one makes it pointless."""
    columns = [column for column in measured_columns(comparison) if column.first]
    after = next((i for i, c in enumerate(columns, 2) if c.key == comparison.loss), len(columns) + 1)
    rows = []
    for name, report, words in named_reports(comparison, say):
        cells = [name, *(" ".join(filter(None, c.cell(report, comparison.original))) for c in columns)]
        rows.append((*cells[:after], words, *cells[after:]))
    headings = ["model", *(c.heading for c in columns)]
    return Table(comparison.original.conditions(), (*headings[:after], MARK, *headings[after:]), tuple(rows))


def task_names(comparison: Comparison) -> list[str]:
    """Every task that some report has, in the order of the reports."""
    reports = (comparison.original, *(row.report for row in comparison.rows))
    return list(dict.fromkeys(task.name for report in reports for task in report.tasks))


def task_of(report: EvalReport, name: str) -> TaskReport | None:
    """The task called so, if the report has it."""
    return next((task for task in report.tasks if task.name == name), None)


def task_cell(task: TaskReport | None) -> tuple[str, str]:
    """Accuracy, and its difference to the original with interval and, where it is not resolved, `?`."""
    if task is None:
        return UNRESOLVED, ""
    accuracy = f"{task.accuracy:.1%}"
    if task.difference is None:
        return accuracy, ""
    edges = task.intervals.get("difference")
    interval = "" if edges is None or edges == (0, 0) else f" [{100 * edges[0]:+.1f}, {100 * edges[1]:+.1f}]"
    return accuracy, f"{100 * task.difference:+.1f}{interval}{' ?' if task.difference and not task.resolved else ''}"


def task_table(comparison: Comparison, say: Say = str) -> Table | None:
    """One row per task, one column per model; None without tasks."""
    names = task_names(comparison)
    if not names:
        return None
    named = list(named_reports(comparison, say))
    rows = []
    for name in names:
        found = [task_of(report, name) for _, report, _ in named]
        items = next(f"{task.items:,}" for task in found if task is not None)
        rows.append((say(name), items, *(" ".join(filter(None, task_cell(task))) for task in found)))
    return Table(TASK_TITLE, ("task", "items", *(name for name, _, _ in named)), tuple(rows))


def speed_table(comparison: Comparison, say: Say = str) -> Table | None:
    """One row per model; None where no speed was measured."""
    named = list(named_reports(comparison, say))
    keys = [key for key in SPEED if any((report.speed or {}).get(key) is not None for _, report, _ in named)]
    if not keys:
        return None
    rows = [(name, *(" ".join(filter(None, speed_cell(report, key))) for key in keys)) for name, report, _ in named]
    return Table(SPEED_TITLE, ("model", *(SPEED[key][0] for key in keys)), tuple(rows))


def notes(comparison: Comparison) -> list[str]:
    """The notes of all reports, each once: with the labels it is of, unless it is of all."""
    owners: dict[str, list[str]] = {}
    for name, report, _ in named_reports(comparison):
        for note in dict.fromkeys(report.notes):
            owners.setdefault(note, []).append(name)
    everyone = len(comparison.rows) + 1
    return [note if len(names) == everyone else f"{', '.join(names)}: {note}" for note, names in owners.items()]


def interval_note(comparison: Comparison) -> str:
    """Where the intervals come from, in one sentence; empty where there are none."""
    units = len(comparison.original.windows.tokens)
    parts = []
    if comparison.original.text is not None and units:
        parts.append(f"of a text: paired bootstrap over {units:,} windows")
    if task_names(comparison):
        parts.append("of tasks: paired bootstrap over items, of the flip rate exact")
    return f"Intervals are at 95 %; {'; '.join(parts)}." if parts else ""


def mark_note(comparison: Comparison) -> str:
    """What the marks mean, in one sentence; empty where nothing is marked."""
    if comparison.loss is None or all(row.dominated_by is None for row in comparison.rows):
        return ""
    loss = LOSS_NAMES[comparison.loss]
    return (
        f"Dominated by X: X takes no more bytes and loses no more, by {loss}; with a question mark, "
        "the 95 % interval of the difference does not settle it."
    )


def markdown(comparison: Comparison) -> str:
    """The tables, their conditions, and below a fold the worst windows."""
    lines: list[str] = []
    for i, table in enumerate(whole_tables(comparison, code)):
        lines += ["", f"{plain(table.title)}.", ""] if i else []
        left = [j for j, heading in enumerate(table.columns) if j == 0 or heading == MARK]
        lines += [row(table.columns), rule(len(table.columns), left), *map(row, table.rows)]
        lines += [] if i else ["", f"{plain(table.title)}.", interval_note(comparison), mark_note(comparison)]
    found = notes(comparison)
    lines += ["", *(f"- {plain(note)}" for note in found)] if found else []
    lines += _worst(comparison)
    return "\n".join(lines).rstrip("\n") + "\n"


def _worst(comparison: Comparison) -> list[str]:
    """The windows that each model changes most, folded away."""
    places = [
        f"- {code(each.label)}, tokens {place['first']:,} to {place['end'] - 1:,}, KL {short(place['kl'])}: "
        f"{code(place['text'])}"
        for each in comparison.rows
        for place in each.report.worst
    ]
    if not places:
        return []
    return ["", "<details>", "<summary>Windows with the highest KL</summary>", "", *places, "", "</details>"]
