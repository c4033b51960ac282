"""The result of an evaluation: a value, and its JSON, Markdown and table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from llmc.eval.measures.metrics import WindowSums
from llmc.eval.measures.samples import Sample
from llmc.eval.reports.section_tables import UNRESOLVED, sections
from llmc.eval.reports.task_report import TaskReport
from llmc.eval.reports.task_report import columns as task_columns
from llmc.results import Table, code, plain, row, rule, size

COMPARED = ("perplexity ratio", "KL divergence, nats", "KL, median", "KL, 99th percentile", "top-1 agreement")
"""Rows that need an original."""
TASK_NOTE = (
    "Intervals of tasks: 95 %, paired bootstrap over items; of flip_rate exact. Not resolved: McNemar p of 5 % up."
)


@dataclass(frozen=True)
class Source:
    """A file the figures depend on: name without folder, and SHA-256 of its bytes (None when there is no such file)."""

    name: str
    sha256: str | None


@dataclass(frozen=True)
class EvalReport:
    """What compression cost. Everything about an original is None when there is none.

    Attributes:
        model, against: folder name or Hub id of the compressed model and of its original.
        perplexity: exp of the mean negative log-likelihood of the scored tokens.
        kl: mean per token KL(original || compressed), nats.
        kl_median, kl_p99: of the same over tokens.
        worst: the windows of the highest mean kl: first token and end, kl, how the text there begins.
        top1_agreement: share of tokens where both put the same token first.
        weight_bytes: of the weight files, headers included.
        bits_per_weight: stored bits / elements of the encoded matrices (of the model where none is encoded).
        model_bits_per_weight: the same of the whole model, a tied tensor once.
        perplexity_ratio: compressed / original.
        flip_rate: share of the items of all tasks whose correctness changed.
        intervals: 95 %, of perplexity, perplexity_ratio, kl, its quantiles and top1_agreement: paired bootstrap over
            windows; of flip_rate: exact.
        tokens: scored tokens; None, like all that a text shows, when there was none.
        dtype: of the computation.
        bits_per_byte: negative log-likelihood of the text in bits / its bytes: comparable across tokenizers.
        overhead_bits_per_weight: what of `bits_per_weight` is not codes: scales, zero points, shapes.
        layer_error: path of a block -> |y - y_original|^2 / |y_original|^2 of its outputs, each model fed by itself.
        matrix_error: name of a matrix -> `output_error` (the same of its outputs on calibration text) and `snr_db`
            (of its weights), as far as the run that wrote the model measured them.
        speed: load_seconds, load_mb_per_s, prefill_tokens_per_s, decode_tokens_per_s, peak_memory_bytes, and the
            `ranges` (lowest and highest) of what was repeated; None unless it was asked for.
        embeddings: of an encoder, see `llmc.eval.measures.similarity`; None of other models.
        degeneration: of greedy text, see `llmc.eval.measures.degeneration`; None unless it was asked for.
        lm_eval: task -> metric -> figures, see `llmc.eval.tasks.harness`; None unless it was asked for.
        notes: what a reader has to know beside the figures.
        windows: the sums everything comes from; not part of the JSON.
    """

    model: str
    against: str | None
    perplexity: float | None
    kl: float | None
    kl_median: float | None
    kl_p99: float | None
    top1_agreement: float | None
    weight_bytes: int
    bits_per_weight: float
    model_bits_per_weight: float
    original_perplexity: float | None
    perplexity_ratio: float | None
    original_weight_bytes: int | None
    original_bits_per_weight: float | None
    flip_rate: float | None
    intervals: dict[str, tuple[float, float]]
    context: int
    stride: int
    tokens: int | None
    dtype: str
    tokenizer: Source
    text: Source | None
    worst: tuple[dict[str, Any], ...]
    tasks: tuple[TaskReport, ...]
    samples: tuple[Sample, ...]
    windows: WindowSums = field(repr=False, compare=False)
    bits_per_byte: float | None = None
    original_bits_per_byte: float | None = None
    overhead_bits_per_weight: float = 0.0
    layer_error: dict[str, float] = field(default_factory=dict)
    matrix_error: dict[str, dict[str, float]] = field(default_factory=dict)
    speed: dict[str, Any] | None = None
    embeddings: dict[str, Any] | None = None
    degeneration: dict[str, Any] | None = None
    lm_eval: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; the keys are the attributes. A number too large for a float is null."""
        document: dict[str, Any] = {
            key: _number(value) for key, value in vars(self).items() if key not in ("windows", "intervals")
        }
        document["intervals"] = {name: [_number(low), _number(high)] for name, (low, high) in self.intervals.items()}
        document["layer_error"] = {block: _number(value) for block, value in self.layer_error.items()}
        document["matrix_error"] = {
            name: {key: _number(value) for key, value in found.items()} for name, found in self.matrix_error.items()
        }
        document["tokenizer"] = vars(self.tokenizer).copy()
        document["text"] = self.text and vars(self.text).copy()
        document["tasks"] = {task.name: task.to_json() for task in self.tasks}
        document["worst"] = [dict(place) for place in self.worst]
        document["notes"] = list(self.notes)
        document["samples"] = [vars(sample).copy() for sample in self.samples]
        return document

    def table_rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column headings and rows for people; the middle column is there when there is an original."""
        measured = [
            ("perplexity", _figure(self.original_perplexity), self._cell("perplexity", self.perplexity)),
            ("perplexity ratio", "1", self._cell("perplexity_ratio", self.perplexity_ratio)),
            ("KL divergence, nats", "0", self._cell("kl", self.kl)),
            ("KL, median", "0", self._cell("kl_median", self.kl_median)),
            ("KL, 99th percentile", "0", self._cell("kl_p99", self.kl_p99)),
            ("top-1 agreement", "1", self._cell("top1_agreement", self.top1_agreement)),
        ]
        sizes = [
            ("weights", _size(self.original_weight_bytes), _size(self.weight_bytes)),
            ("bits/weight", _figure(self.original_bits_per_weight), _figure(self.bits_per_weight)),
            ("bits/weight, model", _figure(self.original_bits_per_weight), _figure(self.model_bits_per_weight)),
        ]
        rows = (measured if self.perplexity is not None else []) + sizes
        if self.against is None:
            return ("", self.model), [(name, mine) for name, _, mine in rows if name not in COMPARED]
        if self.kl is None and self.bits_per_byte is not None:  # all that tokenizers which differ leave to compare
            mine = self._cell("bits_per_byte", self.bits_per_byte)
            rows.insert(1, ("bits per byte", _figure(self.original_bits_per_byte), mine))
        if self.flip_rate is not None:
            rows.insert(len(rows) - len(sizes), ("flip_rate", "0", self._cell("flip_rate", self.flip_rate)))
        return ("", f"original ({self.against})", self.model), list(rows)

    def table(self) -> Table:
        """The same as one value, titled with what was measured on."""
        columns, rows = self.table_rows()
        return Table(self.conditions(), columns, tuple(rows))

    def tables(self) -> list[Table]:
        """The table, those of tasks and other sections, and the greedy continuations of each prompt side by side."""
        tasks = [self.task_table()] if self.tasks else []
        return [self.table(), *tasks, *self.section_tables(), *(sample.table() for sample in self.samples)]

    def section_tables(self) -> list[Table]:
        """What only some evaluations have."""
        from llmc.eval.reports.section_tables import SPEED, speed_cell

        speed = [(heading, " ".join(speed_cell(self, key)).strip()) for key, (heading, _) in SPEED.items()]
        tables = [section.table() for section in sections([(self.model, self)])]
        return [*tables, Table("speed", ("", self.model), tuple(speed))] if self.speed else tables

    def task_table(self) -> Table:
        """One row per task."""
        columns = task_columns(self.model, self.against)
        return Table("tasks", columns, tuple(task.row() for task in self.tasks))

    def to_markdown(self) -> str:
        """A Markdown table, its conditions below it, and the samples."""
        columns, rows = self.table_rows()
        lines = [row([*map(plain, columns)]), rule(len(columns)), *map(row, rows), "", f"{plain(self.conditions())}."]
        if self.text is not None and self.intervals:
            lines.append(f"Intervals: 95 %, paired bootstrap over {len(self.windows.tokens)} windows.")
        if self.tasks:
            table = self.task_table()
            width = len(table.columns)
            lines += ["", row([*map(plain, table.columns)]), rule(width, left=(0, width - 1))]
            lines += [*(row([plain(cells[0]), *cells[1:]]) for cells in table.rows), "", TASK_NOTE]
        for table in self.section_tables():
            drawn = [row([*map(plain, cells)]) for cells in (table.columns, *table.rows)]
            lines += ["", f"{plain(table.title)}:", "", drawn[0], rule(len(table.columns)), *drawn[1:]]
        for sample in self.samples:
            lines += ["", f"Greedy continuation of {code(sample.prompt)}:", ""]
            if sample.original is not None:
                lines.append(f"- original: {code(sample.original)}")
            lines.append(f"- compressed: {code(sample.compressed)}")
        return "\n".join(lines) + "\n"

    def conditions(self) -> str:
        """What was measured on, and how, in one line."""
        how = f"tokenized by {self.tokenizer.name}, computed in {self.dtype}"
        if self.text is None:
            return how
        if self.tokens is None:
            return f"{self.text.name}, {how}"
        return f"{self.text.name}, {self.tokens:,} scored tokens, context {self.context}, stride {self.stride}, {how}"

    def _cell(self, name: str, value: float | None) -> str:
        if name not in self.intervals:
            return _figure(value)
        low, high = self.intervals[name]
        return f"{_figure(value)} [{_figure(low)}, {_figure(high)}]"


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(value: float | None) -> str:
    return UNRESOLVED if value is None else f"{value:.5g}"


def _size(value: int | None) -> str:
    return UNRESOLVED if value is None else size(value)
