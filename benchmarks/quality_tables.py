"""The tables of `quality_per_byte.py`, and its plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from judging import Difference
from measuring import markdown
from quality_judging import Judgement, Row, comparable, pairs
from quality_settings import OURS

SIZES = {"weight_bytes": "all weight files", "block_bytes": "block matrices with their params, embedding as it was"}


def report(document: dict[str, Any], rows: Sequence[Row]) -> str:
    """Markdown: conditions, every row, and ours beside each peer."""
    texts = document["settings"]["text"]
    parts = ["## Conditions\n\n" + _conditions(document, rows), "## Every setting\n\n" + _rows_table(rows, texts)]
    for size, words in SIZES.items():
        found = _pairs_table(rows, texts, size)
        parts += [f"## Ours in at most as many bytes: {words}\n\n{found}"] if found else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _conditions(document: dict[str, Any], rows: Sequence[Row]) -> str:
    machine, settings = document["machine"], document["settings"]
    originals = {text: j.original_perplexity for row in rows for text, j in row.judgements.items()}
    lines = [
        f"{machine['processor']}, {machine['cores']} cores; threads: {settings['threads']}.",
        f"{settings['model']}; {settings['num_samples']} x {settings['sequence_length']} tokens of "
        f"{settings['calibration']} (SHA-256 {settings['tokens_sha256'][:16]}); judged on the first "
        f"{settings['max_tokens']:,} tokens of each text in float32.",
        "Perplexity of the original: " + ", ".join(f"{text} {value:.5g}" for text, value in originals.items()) + ".",
        "Versions: " + "; ".join(_versions(rows)) + ".",
        *(f"{tool} is left out: {reason}." for tool, reason in document["absent"].items()),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _versions(rows: Sequence[Row]) -> Iterator[str]:
    """Of each tool and what it stands on, the tool's own first."""
    by_tool = {row.setting.tool: row.result["versions"] for row in rows if not row.failed}
    for packages in by_tool.values():
        first, *others = (f"{package} {version}" for package, version in packages.items())
        yield first + (f" ({', '.join(others)})" if others else "")


def _rows_table(rows: Sequence[Row], texts: Sequence[str]) -> str:
    columns = ["", "weight file bytes", "block bytes", "bits per block weight", "bits per embedding weight"]
    columns += [f"{figure}, {text}" for text in texts for figure in ("KL", "95 %", "perplexity")]
    columns += ["KL own forward / judged", "CPU s"]
    return markdown(columns, [_cells(row, texts, len(columns)) for row in rows]) + "\n" + _notes(rows)


def _cells(row: Row, texts: Sequence[str], width: int) -> list[str]:
    if row.failed:
        return [row.setting.label, f"failed: {row.result['failure']}", *[""] * (width - 2)]
    sizes = [f"{row.result[size]:,}" for size in SIZES]
    cells = [row.setting.label, *sizes, f"{row.bits_per_weight:.3f}", f"{row.embedding_bits:.2f}"]
    for text in texts:
        cells += _quality(row.judgements[text])
    own = "" if row.own_kl is None else f"{row.own_kl:.1e}"
    return [*cells, own, f"{row.result['cpu_s']:.0f}"]


def _quality(j: Judgement) -> list[str]:
    low, high = j.kl_interval
    return [f"{j.kl:.4g}", f"{low:.4g} {high:.4g}", f"{j.perplexity:.4g}"]


def _notes(rows: Sequence[Row]) -> str:
    """One line for each line of the plot that has something to say; settings that differ are named."""
    lines = []
    for line in dict.fromkeys(row.setting.line for row in rows):
        said = {row.setting.name: row.result["notes"] for row in rows if row.setting.line == line and not row.failed}
        if len(set(said.values())) > 1:
            lines.append(f"- {line}: " + "; ".join(f"{name} {notes}" for name, notes in said.items()))
        elif any(said.values()):
            lines.append(f"- {line}: {next(iter(said.values()))}")
    return "\n".join(lines) + "\n"


def _pairs_table(rows: Sequence[Row], texts: Sequence[str], size: str) -> str:
    columns = ["peer", "bytes", "ours", "bytes"]
    columns += [f"{words}, {text}" for text in texts for words in ("KL of ours - KL of peer", "95 %", "verdict")]
    table = [
        [
            pair.peer.setting.label,
            f"{pair.peer.result[size]:,}",
            pair.ours.setting.label,
            f"{pair.ours.result[size]:,}",
            *(cell for text in texts for cell in _difference_cells(pair.differences[text])),
        ]
        for pair in pairs(rows, size)
    ]
    return markdown(columns, table) if table else ""


def _difference_cells(d: Difference) -> list[str]:
    return [f"{d.value:+.2e}", f"{d.low:+.2e} {d.high:+.2e}", d.verdict]


def plot(rows: Sequence[Row], texts: Sequence[str], file: Path) -> None:
    """KL on a logarithmic scale against bytes: a column for each text, a row for each way to count bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "llmc"  # the same rows, the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(SIZES), len(texts), figsize=(7 * len(texts), 11), squeeze=False)
    lines = list(_lines(rows))
    for down, (size, words) in enumerate(SIZES.items()):
        for across, text in enumerate(texts):
            panel = axes[down][across]
            for number, (line, points) in enumerate(lines):
                _draw(panel, number, line, comparable(points, size), size, text)
            panel.set(yscale="log", title=f"{text}: {words}", xlabel="10⁶ bytes", ylabel="KL, nats")
            panel.grid(True, which="both", alpha=0.2)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize="small")
    figure.tight_layout(rect=(0, 0.02 + 0.018 * ((len(lines) + 3) // 4), 1, 1))
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    done = [row for row in rows if not row.failed]
    for line in dict.fromkeys(row.setting.line for row in done):
        yield line, [row for row in done if row.setting.line == line]


def _draw(panel: Any, number: int, line: str, rows: Sequence[Row], size: str, text: str) -> None:
    if not rows:
        return
    points = [(row.result[size] / 1e6, row.judgements[text]) for row in sorted(rows, key=lambda r: r.result[size])]
    kl = [j.kl for _, j in points]
    spread = [[j.kl - j.kl_interval[0] for _, j in points], [j.kl_interval[1] - j.kl for _, j in points]]
    ours = rows[0].setting.tool == OURS
    panel.errorbar(
        [x for x, _ in points],
        kl,
        yerr=spread,
        label=line,
        color=f"C{number % 10}" if not ours else ("black" if number == 0 else "dimgray"),
        marker="osv^D*PX<>"[number % 10],
        linestyle="-" if ours else "--",
        linewidth=2 if ours else 1,
        markersize=5,
        capsize=2,
    )
