"""The figures of a text: functions of the sums over its windows, each with its interval."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from llmc.eval.measures.metrics import WindowSums
from llmc.eval.measures.tail import QUANTILES, binned
from llmc.eval.reports.intervals import paired_intervals
from llmc.late import LateTable, np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.reports.intervals import Figure

COMPARED = ("perplexity_ratio", "kl", "top1_agreement", *QUANTILES)
"""Figures that need an original."""

NO_TEXT = LateTable[str, Any](
    lambda: {
        **dict.fromkeys(("perplexity", "original_perplexity", "bits_per_byte", "original_bits_per_byte", *COMPARED)),
        **{"tokens": None, "text": None, "intervals": {}, "windows": WindowSums(np.zeros(0), np.zeros(0)), "worst": ()},
    }
)
"""What a text shows, under the names of the report, where there is none."""


def text_figures(sums: WindowSums, nats_to_bits_per_byte: float) -> dict[str, Any]:
    """Under their names in the report, with `intervals`.

    Args:
        nats_to_bits_per_byte: what mean nats per token are multiplied by: tokens / (bytes * ln 2).
    """
    figures: dict[str, Figure] = {
        "perplexity": lambda s: _exp(s[:, 1] / s[:, 0]),
        "bits_per_byte": lambda s: s[:, 1] / s[:, 0] * nats_to_bits_per_byte,
    }
    columns = [sums.tokens, sums.nll]
    if sums.original_nll is not None and sums.kl is not None and sums.agree is not None:
        columns += [sums.original_nll, sums.kl, sums.agree]
        figures["perplexity_ratio"] = lambda s: _exp((s[:, 1] - s[:, 2]) / s[:, 0])
        figures["kl"] = lambda s: s[:, 3] / s[:, 0]
        figures["top1_agreement"] = lambda s: s[:, 4] / s[:, 0]
    table = np.stack(columns, axis=1)  # [windows, columns]
    if sums.token_kl is not None:
        counts, quantiles = binned(sums.token_kl, sums.tokens)
        figures |= {name: partial(_of_columns, table.shape[1], figure) for name, figure in quantiles.items()}
        table = np.concatenate([table, counts], axis=1)
    total = table.sum(axis=0, keepdims=True)
    values: dict[str, Any] = dict.fromkeys(("original_perplexity", "original_bits_per_byte", *COMPARED))
    values |= {name: float(figure(total)[0]) for name, figure in figures.items()}
    if sums.original_nll is not None:
        mean = total[:, 2] / total[:, 0]
        values["original_perplexity"] = float(_exp(mean)[0])
        values["original_bits_per_byte"] = float(mean[0] * nats_to_bits_per_byte)
    return values | {"intervals": paired_intervals(table, figures)}


def _of_columns(first: int, figure: Figure, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    return figure(totals[:, first:])


def _exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.exp(x)
