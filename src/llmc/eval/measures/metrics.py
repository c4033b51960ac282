"""Perplexity, token KL divergence and top-1 agreement of one model, or of two on the same tokens, window by window.

Perplexity is the usual strided one: windows of `context` tokens start every `stride` tokens, and each scores the tokens
that no earlier window scored, given what precedes them inside the window. The first token of a window has nothing
before it and is scored only if an earlier window holds it. Sums are float64 and kept per window, for paired intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from llmc.calibration.losses import cross_entropy, paired_losses
from llmc.errors import CheckpointError, InputError
from llmc.eval.measures.halves import Halves, halve
from llmc.eval.measures.nonfinite import first_nonfinite
from llmc.late import np, torch
from llmc.results import silent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from llmc.results import Progress

BATCH_TOKENS = 4096
BATCH_LOGITS = 2**25  # elements of one model's logits; 128 MiB in float32
HEAD_ROWS = {"cpu": 128, "cuda": 512}  # states that become logits together
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


class Reference(Protocol):
    """The original: in memory, or what was kept of it."""

    @property
    def name(self) -> str: ...

    def states(self, batch: Sequence[Window], tokens: Tensor) -> list[Tensor]:
        """The states that predict the scored tokens of each window, `[scored, width]`.

        Args:
            batch, tokens: the windows, and their tokens `[windows, length]`.
        """
        ...

    def logits(self, states: Tensor) -> Tensor:
        """`[rows, vocab]` of `[rows, width]`."""
        ...


@dataclass(frozen=True)
class Scored:
    """A model in memory, and the name that messages call it by."""

    name: str
    model: Any

    @cached_property
    def halves(self) -> Halves:
        return halve(self.model)

    def states(self, batch: Sequence[Window], tokens: Tensor) -> list[Tensor]:
        """See `Reference`."""
        states = self.halves.states(tokens)  # token t is predicted at t - 1
        return [states[i, w.first - 1 - w.start : w.end - 1 - w.start] for i, w in enumerate(batch)]

    def logits(self, states: Tensor) -> Tensor:
        """See `Reference`."""
        return self.halves.logits(states)


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
    original: Reference | None = None,
    *,
    ids: Tensor,
    context: int,
    stride: int,
    keep: Callable[[Tensor], None] | None = None,
    progress: Progress | None = None,
) -> WindowSums:
    """Run the windows of `ids` `[tokens]` through the candidate, and through the original when there is one.

    Memory is that of the states of one batch and the logits of a few of its tokens, whatever the length of the text.
    `keep` is given the candidate's states of each window, `[scored, width]`, in order.

    Raises:
        InputError: the two vocabularies differ in size.
        CheckpointError: logits that are not finite; the window is named, and the layer where they first appear.
    """
    report = progress or silent
    rows: list[list[float]] = []
    # made at once: many small tensors between the temporaries would keep the allocator from giving memory back
    token_kl = torch.empty(sum(w.end - w.first for w in windows(len(ids), context, stride)))
    at = 0  # tokens scored
    running = [each for each in (candidate, original) if isinstance(each, Scored)]
    for batch, tokens in _batched(running, ids, context, stride):
        mine = candidate.states(batch, tokens)
        theirs = [None] * len(batch) if original is None else original.states(batch, tokens)
        for window, states, reference in zip(batch, mine, theirs, strict=True):
            targets = ids[window.first : window.end]
            row = _score_window(targets, (candidate, states), (original, reference), token_kl[at : at + len(targets)])
            _require_finite(row, window, len(rows), ids, candidate, original)
            rows.append(row)
            at += len(targets)
            if keep is not None:
                keep(states)
        report(f"evaluate {candidate.name}", batch[-1].end, len(ids))
    counts, nll, *compared = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    if not compared:
        return WindowSums(counts, nll)
    original_nll, kl, agree = compared
    return WindowSums(counts, nll, original_nll, kl, agree, token_kl.numpy())


def _batched(
    running: Sequence[Scored], ids: Tensor, context: int, stride: int
) -> Iterator[tuple[list[Window], Tensor]]:
    """The windows of `ids` in batches that every model which runs can take, and their tokens `[windows, length]`."""
    limit = min(_windows_per_batch(scored, context) for scored in running)
    for batch in _batches(windows(len(ids), context, stride), limit):
        yield batch, torch.stack([ids[w.start : w.end] for w in batch])


def _score_window(
    targets: Tensor,
    mine: tuple[Scored, Tensor],
    theirs: tuple[Reference | None, Tensor | None],
    token_kl: Tensor,
) -> list[float]:
    """`[tokens, nll]`, and with a reference `[tokens, nll, original nll, kl, agree]`, of one window.

    `mine` and `theirs` are a model and its states `[tokens, width]`. Their KL goes into `token_kl` `[tokens]`.
    """
    (candidate, states), (original, reference) = mine, theirs
    sums = [float(len(targets)), 0.0] + ([] if reference is None else [0.0, 0.0, 0.0])
    rows = HEAD_ROWS[states.device.type]
    for begin in range(0, len(targets), rows):
        part = slice(begin, begin + rows)
        logits = candidate.logits(states[part])
        wanted = targets[part].to(logits.device)
        before = None
        if original is not None and reference is not None:
            before = original.logits(reference[part].to(logits.device))
            require_same_vocabulary(candidate.name, logits, original.name, before)
        add_scores(sums, wanted, logits, before, token_kl[part])
    return sums


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Rows whose float64 temporaries fit into a cache: a KL of 1e-5 is lost in the rounding of float32."""
    step = max(1, CHUNK_ELEMENTS[logits.device.type] // logits.shape[-1])
    return (slice(begin, begin + step) for begin in range(0, len(logits), step))


def add_scores(sums: list[float], targets: Tensor, logits: Tensor, before: Tensor | None, token_kl: Tensor) -> None:
    """Add what tokens cost to the sums of a window: `[tokens, nll]`, with an original also `[original nll, kl, agree]`.

    Args:
        targets: `[tokens]`; their number is not added.
        logits, before: `[tokens, vocab]`, of the candidate and of the original.
        token_kl: `[tokens]`, filled where there is an original.
    """
    for rows in _chunks(logits):
        if before is None:
            sums[1] += cross_entropy(logits[rows].double(), targets[rows]).sum().item()
            continue
        original_nll, nll, kl, agree = paired_losses(before[rows], logits[rows], targets[rows])
        token_kl[rows] = kl
        for i, figure in enumerate((nll, original_nll, kl, agree), 1):
            sums[i] += figure.sum().item()


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


def _windows_per_batch(scored: Scored, context: int) -> int:
    limit = BATCH_TOKENS // context
    if scored.halves.head is None:  # all its logits at once
        vocabulary = scored.model.config.get_text_config().vocab_size
        limit = min(limit, BATCH_LOGITS // (context * vocabulary))
    return max(1, limit)


def require_same_vocabulary(name: str, logits: Tensor, original: str, before: Tensor) -> None:
    """Raise InputError where the logits `[..., vocab]` of two models are not over as many tokens."""
    if logits.shape[-1] != before.shape[-1]:
        raise InputError(
            f"its vocabulary has {logits.shape[-1]} tokens and that of {original} {before.shape[-1]}",
            where=name,
            fix="compare it with the model it was made from",
        )


def _require_finite(
    row: list[float], window: Window, index: int, ids: Tensor, candidate: Scored, original: Reference | None
) -> None:
    if np.isfinite(row).all():
        return
    guilty = candidate if original is None or np.isfinite(row[2]) else original
    place = first_nonfinite(guilty.model, ids[window.start : window.end]) if isinstance(guilty, Scored) else ""
    span = f"window {index} (tokens {window.start} to {window.end - 1})"
    raise CheckpointError(
        f"its logits give no finite loss in {span}{place and '; first in ' + place}",
        where=guilty.name,
        fix="look for NaN, Inf or masked weights with `llmc inspect`, or evaluate with dtype float32",
    )
