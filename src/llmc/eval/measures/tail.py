"""What a mean KL hides: its median and 99th percentile over tokens, and where a text suffers most.

A bootstrap of quantiles would sort all tokens for each draw. Counts of tokens in narrow bins are sums like all others:
they are drawn with their windows, and a quantile is read off their running total.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llmc.late import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.measures.metrics import Window
    from llmc.eval.reports.intervals import Figure

QUANTILES = {"kl_median": 0.5, "kl_p99": 0.99}
BINS = 512
WORST = 5
SHOWN = 80  # characters of a place


def binned(token_kl: NDArray[np.float32], tokens: NDArray[np.float64]) -> tuple[NDArray[np.float64], dict[str, Figure]]:
    """Counts of tokens by their KL, `[windows, bins]`, and the figures that quantiles are of totals of such counts.

    Args:
        token_kl: `[tokens]`, window after window.
        tokens: `[windows]`, how many each has.
    """
    ranks = np.concatenate([np.linspace(0, 1, BINS), 1 - np.geomspace(1e-5, 0.1, BINS), list(QUANTILES.values())])
    edges = np.unique(np.quantile(token_kl, ranks, method="inverted_cdf"))  # with the exact quantiles among them
    bins = np.searchsorted(edges, token_kl)
    window = np.repeat(np.arange(len(tokens)), tokens.astype(np.int64))
    counts = np.bincount(window * len(edges) + bins, minlength=len(tokens) * len(edges))
    figures: dict[str, Figure] = {name: partial(_quantile, share, edges) for name, share in QUANTILES.items()}
    return counts.reshape(len(tokens), len(edges)).astype(np.float64), figures


def _quantile(share: float, edges: NDArray[np.float32], totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least edge up to which there are `share` of the tokens, for totals `[resamples, bins]`."""
    until = totals.cumsum(axis=1)
    # As many tokens as inverted_cdf asks for: the rounding of share * n must not ask for one more.
    wanted = np.ceil(share * until[:, -1:] - 1e-9)
    return edges[(until < wanted).sum(axis=1)].astype(np.float64)


def worst(
    spans: Sequence[Window], kl: NDArray[np.float64], tokens: NDArray[np.float64], read: Callable[[int, int], str]
) -> list[dict[str, Any]]:
    """The windows of the highest mean KL: which tokens, how high, and how the text there begins.

    `read(first, end)` gives the text of tokens.
    """
    mean = kl / tokens
    order = np.argsort(-mean, kind="stable")[:WORST]
    return [
        {
            "first": spans[i].first,
            "end": spans[i].end,
            "kl": float(mean[i]),
            "text": " ".join(read(spans[i].first, spans[i].end).split())[:SHOWN],
        }
        for i in order
        if mean[i] > 0
    ]
