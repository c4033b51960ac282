"""Perplexity, token KL divergence and top-1 agreement of one model, or of two on the same tokens, window by window.

Perplexity is the usual strided one: windows of `context` tokens start every `stride` tokens, and each scores the tokens
that no earlier window scored, given what precedes them inside the window. The first token of a window has nothing
before it and is scored only if an earlier window holds it. Sums are float64 and kept per window, for paired intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmc.calibration.losses import cross_entropy, kl_divergence, top1
from llmc.errors import CheckpointError, InputError
from llmc.structure import silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.structure import Progress

BATCH_TOKENS = 4096
BATCH_LOGITS = 2**25  # elements of one model's logits; 128 MiB in float32
CHUNK_ELEMENTS = {"cpu": 2**17, "cuda": 2**22}  # elements of a float64 temporary: 1 MiB stays in a CPU cache


@dataclass(frozen=True)
class Window:
    """Tokens `start:end` go through the model; `first:end` are scored."""

    start: int
    first: int
    end: int


@dataclass(frozen=True)
class WindowSums:
    """Sums over the scored tokens of each window, `[windows]` float64, in nats; without an original four are None.

    `token_kl` is the KL of each scored token, `[tokens]` float32, window after window.
    """

    tokens: NDArray[np.float64]
    nll: NDArray[np.float64]
    original_nll: NDArray[np.float64] | None = None
    kl: NDArray[np.float64] | None = None
    agree: NDArray[np.float64] | None = None
    token_kl: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Scored:
    """A model and the name that messages call it by."""

    name: str
    model: Any


def windows(tokens: int, context: int, stride: int) -> Iterator[Window]:
    """The windows over a text of `tokens` tokens, in order; one without a scored token is left out."""
    scored = 1
    for start in range(0, tokens, stride):
        end = min(start + context, tokens)
        first = max(scored, start + 1)
        if first < end:
            yield Window(start, first, end)
        if end == tokens:
            return
        scored = end


def score(
    candidate: Scored,
    original: Scored | None = None,
    *,
    ids: Tensor,
    context: int,
    stride: int,
    progress: Progress | None = None,
) -> WindowSums:
    """Run the windows of `ids` `[tokens]` through the candidate, and through the original when there is one.

    Memory is that of one batch of logits per model, whatever the length of the text.

    Raises:
        InputError: the two vocabularies differ in size.
        CheckpointError: logits that are not finite; the window is named.
    """
    report = progress or silent
    rows: list[list[float]] = []
    token_kl: list[Tensor] = []
    limit = _windows_per_batch(candidate.model, context)
    for batch in _batches(windows(len(ids), context, stride), limit):
        tokens = torch.stack([ids[w.start : w.end] for w in batch])  # [windows, length]
        logits = _logits(candidate, tokens)
        reference = None if original is None else _logits(original, tokens)
        if reference is not None and original is not None:
            _require_same_vocabulary(candidate, logits, original, reference)
        for i, window in enumerate(batch):
            row = _score_window(window, ids, logits[i], None if reference is None else reference[i], token_kl)
            _require_finite(row, window, len(rows), candidate, original)
            rows.append(row)
        report("evaluate", batch[-1].end, len(ids))
    counts, nll, *compared = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    if not compared:
        return WindowSums(counts, nll)
    original_nll, kl, agree = compared
    return WindowSums(counts, nll, original_nll, kl, agree, torch.cat(token_kl).numpy())


def _score_window(
    window: Window, ids: Tensor, logits: Tensor, reference: Tensor | None, token_kl: list[Tensor]
) -> list[float]:
    """`[tokens, nll]`, and with a reference `[tokens, nll, original nll, kl, agree]`, of one window.

    The KL of its tokens is added to `token_kl`.

    The temporaries are float64 and a few tokens long: a KL of 1e-5 is lost in the rounding of float32.
    """
    sums = [float(window.end - window.first), 0.0] + ([] if reference is None else [0.0, 0.0, 0.0])
    step = max(1, CHUNK_ELEMENTS[logits.device.type] // logits.shape[-1])
    for begin in range(window.first, window.end, step):
        end = min(begin + step, window.end)
        rows = slice(begin - 1 - window.start, end - 1 - window.start)  # token t is predicted at t - 1
        targets = ids[begin:end].to(logits.device)
        mine = logits[rows].double()  # [chunk, vocab]
        sums[1] += cross_entropy(mine, targets).sum().item()
        if reference is not None:
            theirs = reference[rows].double()
            sums[2] += cross_entropy(theirs, targets).sum().item()
            kl = kl_divergence(theirs, mine)
            sums[3] += kl.sum().item()
            token_kl.append(kl.float().cpu())
            sums[4] += top1(theirs, mine).sum().item()
    return sums


def _logits(scored: Scored, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return scored.model(input_ids=tokens.to(scored.model.device), use_cache=False).logits


def _batches(items: Iterator[Window], limit: int) -> Iterator[list[Window]]:
    """Neighbours of equal length, at most `limit` together."""
    batch: list[Window] = []
    for item in items:
        if batch and (len(batch) == limit or item.end - item.start != batch[0].end - batch[0].start):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _windows_per_batch(model: Any, context: int) -> int:
    vocabulary = model.config.get_text_config().vocab_size
    return max(1, min(BATCH_TOKENS // context, BATCH_LOGITS // (context * vocabulary)))


def _require_same_vocabulary(candidate: Scored, logits: Tensor, original: Scored, reference: Tensor) -> None:
    if logits.shape[-1] != reference.shape[-1]:
        raise InputError(
            f"its vocabulary has {logits.shape[-1]} tokens and that of {original.name} {reference.shape[-1]}",
            where=candidate.name,
            fix="compare it with the model it was made from",
        )


def _require_finite(row: list[float], window: Window, index: int, candidate: Scored, original: Scored | None) -> None:
    if np.isfinite(row).all():
        return
    span = f"window {index} (tokens {window.start} to {window.end - 1})"
    name = original.name if original is not None and not np.isfinite(row[2]) else candidate.name
    raise CheckpointError(
        f"its logits give no finite loss in {span}",
        where=name,
        fix="look for NaN, Inf or masked weights with `llmc inspect`, or evaluate with dtype float32",
    )
