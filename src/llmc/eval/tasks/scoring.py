"""Log-likelihoods of continuations given contexts: what decides the items of a task.

The border between the two is where lm-evaluation-harness (EleutherAI) puts it: blanks at the end of the context move
to the continuation, whose tokens are those of both texts together beyond as many as the context has alone. One space is
put there where neither text has a blank at the border.

Rows are padded on the right and no mask is given: a causal model's token never sees what comes after it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llmc.calibration.losses import cross_entropy
from llmc.errors import CheckpointError, InputError
from llmc.eval.measures.metrics import BATCH_LOGITS, BATCH_TOKENS, CHUNK_ELEMENTS, Scored
from llmc.late import torch
from llmc.models.open import position_limit, quiet
from llmc.results import silent

if TYPE_CHECKING:
    from torch import Tensor

    from llmc.results import Progress

Batch = dict[tuple[int, ...], list[int]]
"""Inputs of the rows, and for each the indices of the requests that share it."""

TEXTS_AT_ONCE = 1024  # handed to the tokenizer together


@dataclass(frozen=True)
class Request:
    """Score the last `scored` of `tokens` given those before them.

    Attributes:
        where: `file:line`, for messages.
        truncated: tokens of the context were left out, for it to fit.
    """

    tokens: tuple[int, ...]
    scored: int
    where: str = ""
    truncated: bool = False

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model is given: the last token is only predicted."""
        return self.tokens[:-1]


@dataclass(frozen=True)
class Likelihood:
    """Sum of the log-probabilities in nats, and whether each token was the most probable one."""

    total: float
    greedy: bool


def joined(context: str, continuation: str) -> tuple[str, str]:
    """Both texts with the blanks of the border at the head of the continuation, one space where there were none.

    >>> joined("The sky is", "blue"), joined("Sky: ", "blue"), joined("", "blue")
    (('The sky is', ' blue'), ('Sky:', ' blue'), ('', 'blue'))
    """
    head = context.rstrip()
    blanks = context[len(head) :]
    if head and not blanks and not continuation[:1].isspace():
        blanks = " "
    return head, blanks + continuation


def requests(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], where: Sequence[str], name: str
) -> list[Request]:
    """Tokens of each pair `(context, continuation)`, cut from the left where they exceed the model's positions.

    The tokenizer's BOS, where it puts one before every text, stays at the front of what was cut.

    Raises:
        InputError: a continuation that has no token or does not fit; an empty context and no token to begin a text.
    """
    begin = leading_ids(tokenizer)
    limit = position_limit(model)
    texts = [joined(*pair) for pair in pairs]
    contexts = _encode(tokenizer, [context for context, _ in texts])
    wholes = _encode(tokenizer, ["".join(pair) for pair in texts])
    made = []
    for context, whole, place in zip(contexts, wholes, where, strict=True):
        end = whole[len(context) :]
        start = begin if begin or context else _text_begin(tokenizer, place, name)
        if not end:
            raise InputError("the tokenizer makes no token of the continuation", where=place)
        room = len(context) if limit is None else limit + 1 - len(start) - len(end)  # the last token is not put in
        kept = context[max(0, len(context) - room) :] if room > 0 else []
        if room < 0 or not (start or kept):
            raise InputError(
                f"a continuation of {len(end)} tokens exceeds the {limit} positions of {name}", where=place
            )
        made.append(Request((*start, *kept, *end), len(end), place, len(kept) < len(context)))
    return made


def leading_ids(tokenizer: Any) -> list[int]:
    """The BOS token, where the tokenizer puts it before a text by itself; else nothing."""
    with quiet():
        ids = tokenizer("a")["input_ids"]
    return ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []


def log_likelihoods(
    scored: Scored, asked: Sequence[Request], *, label: str = "evaluate", progress: Progress | None = None
) -> list[Likelihood]:
    """The likelihood of each request, in their order.

    Requests run in batches of about equal length, the longest first; those with the same input share one row. Memory is
    that of one batch, of which only the rows of the continuations become logits where the model can be told so.

    Raises:
        CheckpointError: logits that are not finite; file and line are named.
    """
    report = progress or silent
    narrow = "logits_to_keep" in inspect.signature(getattr(scored.model, "forward", scored.model)).parameters
    found: dict[int, Likelihood] = {}
    for batch in _batches(asked, scored.model, narrow):
        first = _first_column(asked, batch) if narrow else 0
        logits = _logits(scored, list(batch), first)  # [rows, longest - first, vocab]
        for row, same in zip(logits, batch.values(), strict=True):
            for i in same:
                found[i] = _likelihood(row, asked[i], first, scored.name)
        report(label, len(found), len(asked))
    return [found[i] for i in range(len(asked))]


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = []
    with quiet():
        for begin in range(0, len(texts), TEXTS_AT_ONCE):
            part = list(texts[begin : begin + TEXTS_AT_ONCE])
            ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _text_begin(tokenizer: Any, where: str, name: str) -> list[int]:
    """What stands before a continuation that has no context."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise InputError(f"an empty context, and the tokenizer of {name} has no token to begin a text with", where=where)


def _batches(asked: Sequence[Request], model: Any, narrow: bool) -> Iterator[Batch]:
    """Batches within the limits on tokens and logits, the longest inputs first."""
    vocabulary = model.config.get_text_config().vocab_size
    order = sorted(range(len(asked)), key=lambda i: (-len(asked[i].inputs), asked[i].inputs))
    batch: Batch = {}
    for inputs, same in groupby(order, key=lambda i: asked[i].inputs):
        grown = {**batch, inputs: list(same)}
        longest = len(next(iter(grown)))
        columns = longest - (_first_column(asked, grown) if narrow else 0)
        if batch and (len(grown) * longest > BATCH_TOKENS or len(grown) * columns * vocabulary > BATCH_LOGITS):
            yield batch
            grown = {inputs: grown[inputs]}
        batch = grown
    if batch:
        yield batch


def _first_column(asked: Sequence[Request], batch: Batch) -> int:
    """The earliest column of the batch that predicts a scored token."""
    return min(len(inputs) - max(asked[i].scored for i in same) for inputs, same in batch.items())


def _logits(scored: Scored, inputs: Sequence[tuple[int, ...]], first: int) -> Tensor:
    """Logits of the padded batch from column `first` on, `[rows, longest - first, vocab]`."""
    longest = len(inputs[0])
    ids = torch.tensor([[*row, *(0,) * (longest - len(row))] for row in inputs])  # [rows, longest]
    kept = {"logits_to_keep": longest - first} if first else {}
    with torch.inference_mode():
        return scored.model(input_ids=ids.to(scored.model.device), use_cache=False, **kept).logits


def _likelihood(logits: Tensor, request: Request, first: int, name: str) -> Likelihood:
    """From one row of logits `[columns, vocab]`, that begin at column `first`; float64, a few tokens at a time."""
    targets = torch.tensor(request.tokens[-request.scored :], device=logits.device)
    begin = len(request.inputs) - request.scored - first
    step = max(1, CHUNK_ELEMENTS[logits.device.type] // logits.shape[-1])
    total, greedy = 0.0, True
    for at in range(0, request.scored, step):
        chosen = targets[at : at + step]
        rows = logits[begin + at : begin + at + len(chosen)].double()  # [chunk, vocab]
        total -= cross_entropy(rows, chosen).sum().item()
        greedy = greedy and bool((rows.argmax(-1) == chosen).all())
    if not math.isfinite(total):
        raise CheckpointError(
            f"its logits give no finite likelihood for {request.where}",
            where=name,
            fix="look for NaN, Inf or masked weights with `llmc inspect`, or evaluate with dtype float32",
        )
    return Likelihood(total, greedy)
