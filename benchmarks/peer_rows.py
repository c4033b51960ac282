"""What the comparison with peers is about: its cases, what they cost, how good they are, and the tables of that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from measuring import Usage, markdown

if TYPE_CHECKING:
    from judging import Difference

    from llmc.eval.reports.report import EvalReport

OURS = "llmc"
FIGURES = ("cpu_s", "wall_s", "peak_rss_mb")


@dataclass(frozen=True)
class Case:
    """One command to measure.

    Attributes:
        order: `natural`, or `active`: columns by decreasing activation, in the tool's own way.
        extra: options of llmc's method, `name=value`.
    """

    tool: str
    method: str
    bits: int = 4
    order: str = "natural"
    dtype: str = "float32"
    extra: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        words = [self.tool, self.method, "act-order" if self.order == "active" else "", *self.extra]
        return " ".join(filter(None, [*words, "" if self.dtype == "float32" else self.dtype]))


@dataclass
class Row:
    """What one case gave: a cost per round, and a report per text."""

    case: Case
    usages: list[Usage] = field(default_factory=list)
    reports: dict[str, EvalReport] = field(default_factory=dict)
    weight_bytes: int = 0

    @property
    def failure(self) -> str | None:
        return next((u.last_line for u in self.usages if u.code), None)

    def cost(self, figure: str) -> float:
        """The median over the rounds."""
        return median(getattr(usage, figure) for usage in self.usages)


def comparisons(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Ours against every row of a peer with the same method, bits and order of columns."""
    from judging import difference

    imports = {row.case.tool: row for row in rows if row.case.method == "imports"}
    ours = {(r.case.method, r.case.bits, r.case.order): r for r in rows if r.case.tool == OURS and not r.case.extra}
    for peer in rows:
        if peer.case.tool == OURS or peer.case.method == "imports" or peer.failure is not None:
            continue
        mine = ours[(peer.case.method, peer.case.bits, peer.case.order)]
        if mine.failure is not None:
            continue
        ratios = {figure: mine.cost(figure) / peer.cost(figure) for figure in FIGURES}
        for figure in FIGURES[:2]:
            net = [row.cost(figure) - imports[row.case.tool].cost(figure) for row in (mine, peer)]
            ratios[f"{figure}_net"] = net[0] / net[1] if min(net) > 0 else float("nan")
        kl = {text: _difference_json(difference(report, peer.reports[text])) for text, report in mine.reports.items()}
        yield {
            "ours": asdict(mine.case),
            "peer": asdict(peer.case),
            "label": peer.case.label,
            "ratios": ratios,
            "kl": kl,
        }


def _difference_json(d: Difference) -> dict[str, Any]:
    return {"value": d.value, "low": d.low, "high": d.high, "verdict": d.verdict}


def row_json(row: Row) -> dict[str, Any]:
    quality = {
        text: {
            "perplexity": report.perplexity,
            "kl": report.kl,
            "kl_interval": report.intervals.get("kl"),
            "top1_agreement": report.top1_agreement,
            "original_perplexity": report.original_perplexity,
            "tokens": report.tokens,
        }
        for text, report in row.reports.items()
    }
    costs = {} if row.failure is not None else {figure: row.cost(figure) for figure in FIGURES}
    return {
        **asdict(row.case),
        "label": row.case.label,
        **costs,
        "rounds": [usage.to_json() for usage in row.usages],
        "weight_bytes": row.weight_bytes,
        "failure": row.failure,
        "quality": quality,
    }


def report(document: dict[str, Any]) -> str:
    """Markdown: costs and quality of every row, then llmc against each peer."""
    machine, settings = document["machine"], document["settings"]
    absent = [f"{tool} is absent: {reason}" for tool, reason in document["absent"].items()]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load']} before and "
        f"{machine['load_after']} after; threads: {settings['threads'] or 'default'}.",
        f"{settings['model']}, group {settings['group_size']}, symmetric, damping {settings['damping']}, "
        f"{settings['num_samples']} x {settings['sequence_length']} tokens of {settings['calibration']}; "
        f"median of {settings['repeats']}.",
        *absent,
    ]
    parts = ["\n".join(lines), _rows_table(document), _costs_table(document), _quality_table(document)]
    return "\n\n".join(part for part in parts if part)


def _rows_table(document: dict[str, Any]) -> str:
    texts = document["settings"]["text"]
    columns = ["", "bits", "CPU s", "wall s", "peak RSS MB", "weight bytes"]
    columns += [f"{figure}, {text}" for text in texts for figure in ("KL", "perplexity")]
    rows = []
    for row in document["rows"]:
        if row["failure"] is not None:
            rows.append([row["label"], str(row["bits"]), f"failed: {row['failure']}", *[""] * (len(columns) - 3)])
            continue
        cells = [row["label"], str(row["bits"] or ""), *(f"{row[figure]:.1f}" for figure in FIGURES)]
        cells.append(f"{row['weight_bytes']:,}" if row["weight_bytes"] else "")
        quality = [row["quality"].get(text) for text in texts]
        cells += [f"{q[figure]:.5g}" if q else "" for q in quality for figure in ("kl", "perplexity")]
        rows.append(cells)
    return markdown(columns, rows)


def _costs_table(document: dict[str, Any]) -> str:
    names = {"cpu_s": "CPU", "cpu_s_net": "CPU less imports", "wall_s": "wall", "wall_s_net": "wall less imports"}
    names["peak_rss_mb"] = "peak RSS"
    rows = [
        [c["label"], str(c["peer"]["bits"]), *(_ratio(c["ratios"][name]) for name in names)]
        for c in document["comparisons"]
    ]
    return markdown(["llmc / peer", "bits", *names.values()], rows) if rows else ""


def _quality_table(document: dict[str, Any]) -> str:
    columns = ["KL of llmc - KL of peer", "bits", "text", "difference", "95 % interval", "verdict"]
    rows = [
        [
            c["label"],
            str(c["peer"]["bits"]),
            text,
            f"{d['value']:+.2e}",
            f"{d['low']:+.2e} {d['high']:+.2e}",
            d["verdict"],
        ]
        for c in document["comparisons"]
        for text, d in c["kl"].items()
    ]
    return markdown(columns, rows) if rows else ""


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
