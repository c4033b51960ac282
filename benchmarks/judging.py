"""Judge the folders of all tools by the same code: llmc's evaluation against the original, on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import llmc
from llmc.eval.reports.intervals import paired_intervals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.reports.report import EvalReport


@dataclass(frozen=True)
class Difference:
    """KL of one folder minus KL of another on the same windows, nats, with its 95 % paired bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`above` when the interval excludes zero in the other's favour."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "not above"


def set_threads(threads: int | None) -> None:
    """Threads of the evaluation."""
    if threads is not None:
        torch.set_num_threads(threads)


def judge(folder: Path, original: str, text: str, max_tokens: int | None) -> EvalReport:
    """Perplexity and KL of a quantized folder, whatever tool and container it is of."""
    return llmc.evaluate(folder, text=text, against=original, max_tokens=max_tokens)


def difference(mine: EvalReport, other: EvalReport) -> Difference:
    """Mine minus the other's.

    Raises:
        ValueError: the two were not judged on the same windows.
    """
    a, b = mine.windows, other.windows
    if a.kl is None or b.kl is None or mine.text != other.text or not np.array_equal(a.tokens, b.tokens):
        raise ValueError(f"{mine.model} and {other.model} were not judged on the same windows")
    return difference_of(a.tokens, a.kl, b.kl)


def difference_of(tokens: NDArray[np.float64], mine: NDArray[np.float64], other: NDArray[np.float64]) -> Difference:
    """Of sums of KL over the scored tokens of each window, `[windows]`, as are `tokens`."""
    table = np.stack([tokens, mine - other], axis=1)  # [windows, 2]
    low, high = paired_intervals(table, {"kl": lambda s: s[:, 1] / s[:, 0]})["kl"]
    return Difference(float(table[:, 1].sum() / table[:, 0].sum()), low, high)
