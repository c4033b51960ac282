"""Encoder-decoders: the likelihood of a target given its source, token by token, and what compression does to it.

The decoder is given the right target up to each token (teacher forcing), as in training. Every token that the tokenizer
makes of a target counts, its end mark too. Sums are float64 and kept per pair, so that intervals are over pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import CheckpointError, InputError, UnsupportedError
from llmc.eval.measures.metrics import (
    BATCH_LOGITS,
    BATCH_TOKENS,
    Scored,
    WindowSums,
    add_scores,
    require_same_vocabulary,
)
from llmc.late import np, torch
from llmc.models.config import safe_config
from llmc.models.open import Kind, open_as, position_limit, quiet, require_ids_fit
from llmc.results import silent

if TYPE_CHECKING:
    from torch import Tensor

    from llmc.eval.tasks.text_pairs import TextPair
    from llmc.results import Progress

KIND = Kind("AutoModelForSeq2SeqLM")


@dataclass(frozen=True)
class _Example:
    """Token ids of a pair; `inputs` are the targets moved on by one, behind the token that begins a target."""

    source: list[int]
    inputs: list[int]
    targets: list[int]
    where: str


def open_seq2seq(folder: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """The encoder-decoder in `folder` with dense weights, in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError, UnsupportedError: as `llmc.models.open.open_model` does.
        UnsupportedError: a model of another kind.
    """
    from transformers.models.auto import modeling_auto as auto

    kind = safe_config(folder).get("model_type")
    if kind not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedError(
            f"{kind!r} is not an encoder-decoder model of text",
            where=folder.name,
            fix="measure a decoder on a text, an encoder by its vectors",
        )
    return open_as(folder, KIND, dtype=dtype, device=device)


def score_pairs(
    candidate: Scored,
    original: Scored | None,
    pairs: Sequence[TextPair],
    tokenizer: Any,
    *,
    progress: Progress | None = None,
) -> WindowSums:
    """Run the pairs, source and target, through the candidate, and through the original when there is one.

    Returns:
        One row of sums per pair, in their order, over the tokens of its target.

    Raises:
        InputError: a text too long for the model, or without a token; vocabularies that differ in size.
        CheckpointError: logits that are not finite; the pair is named.
    """
    report = progress or silent
    examples = _examples(candidate, pairs, tokenizer)
    rows: dict[int, tuple[list[float], Tensor]] = {}
    for batch in _batches(examples, candidate.model.config.get_text_config().vocab_size):
        chosen = [examples[i] for i in batch]
        logits = _logits(candidate, chosen)  # [pairs, longest target, vocab]
        reference = None if original is None else _logits(original, chosen)
        if reference is not None and original is not None:
            require_same_vocabulary(candidate.name, logits, original.name, reference)
        for row, i in enumerate(batch):
            rows[i] = _score(examples[i], logits[row], None if reference is None else reference[row])
            _require_finite(rows[i][0], examples[i].where, candidate, original)
        report("evaluate", len(rows), len(examples))
    ordered = [rows[i] for i in range(len(examples))]
    counts, nll, *compared = (
        np.array(column, dtype=np.float64) for column in zip(*(r[0] for r in ordered), strict=True)
    )
    if not compared:
        return WindowSums(counts, nll)
    original_nll, kl, agree = compared
    return WindowSums(counts, nll, original_nll, kl, agree, torch.cat([token_kl for _, token_kl in ordered]).numpy())


def _score(example: _Example, logits: Tensor, reference: Tensor | None) -> tuple[list[float], Tensor]:
    """`[tokens, nll]` of a pair, with a reference also `[original nll, kl, agree]`; and each token's KL."""
    count = len(example.targets)
    sums = [float(count), 0.0] + ([] if reference is None else [0.0, 0.0, 0.0])
    token_kl = torch.empty(0 if reference is None else count)
    before = None if reference is None else reference[:count]
    add_scores(sums, torch.tensor(example.targets, device=logits.device), logits[:count], before, token_kl)
    return sums, token_kl


def _examples(candidate: Scored, pairs: Sequence[TextPair], tokenizer: Any) -> list[_Example]:
    if not pairs:
        raise InputError("no pairs to score", where=candidate.name)
    with quiet():
        sources = tokenizer([pair.first for pair in pairs], verbose=False)["input_ids"]
        targets = tokenizer(text_target=[pair.second for pair in pairs], verbose=False)["input_ids"]
    limit = position_limit(candidate.model)
    made = []
    for pair, source, target in zip(pairs, sources, targets, strict=True):
        for what, ids in (("source", source), ("target", target)):
            if not ids:
                raise InputError(f"the tokenizer makes no token of the {what}", where=pair.where)
            if limit is not None and len(ids) > limit:
                raise InputError(
                    f"a {what} of {len(ids)} tokens exceeds the {limit} positions of {candidate.name}",
                    where=pair.where,
                    fix="shorten it",
                )
        made.append(_Example(source, _decoder_inputs(candidate, target), target, pair.where))
    require_ids_fit(candidate.model, max(max(*each.source, *each.inputs) for each in made), candidate.name)
    return made


def _decoder_inputs(candidate: Scored, target: list[int]) -> list[int]:
    """What the decoder is given: by the model's own rule where it has one (mBART begins with the language)."""
    rule = getattr(candidate.model, "prepare_decoder_input_ids_from_labels", None)
    if rule is not None:
        return rule(torch.tensor([target], device=candidate.model.device))[0].tolist()
    start = candidate.model.config.decoder_start_token_id
    if start is None:
        raise CheckpointError(
            "its config.json does not say with which token a target begins",
            where=candidate.name,
            fix="add decoder_start_token_id",
        )
    return [start, *target[:-1]]


def _batches(examples: Sequence[_Example], vocabulary: int) -> Iterator[list[int]]:
    """Indices of pairs that run together, the longest sources first."""
    batch: list[int] = []
    longest = 0  # target
    for i in sorted(range(len(examples)), key=lambda i: (-len(examples[i].source), -len(examples[i].targets))):
        grown = max(longest, len(examples[i].targets))
        count = len(batch) + 1
        tokens = count * (len(examples[batch[0] if batch else i].source) + grown)
        if batch and (tokens > BATCH_TOKENS or count * grown * vocabulary > BATCH_LOGITS):
            yield batch
            batch, grown = [], len(examples[i].targets)
        batch.append(i)
        longest = grown
    if batch:
        yield batch


def _logits(scored: Scored, examples: Sequence[_Example]) -> Tensor:
    """`[pairs, longest target, vocab]`: padded on the right; sources are masked there, targets need no mask."""
    ids, mask = _padded([each.source for each in examples])
    decoder, _ = _padded([each.inputs for each in examples])
    place = scored.model.device
    with torch.inference_mode():
        return scored.model(
            input_ids=ids.to(place), attention_mask=mask.to(place), decoder_input_ids=decoder.to(place), use_cache=False
        ).logits


def _padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask `[rows, longest]`."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def _require_finite(sums: list[float], where: str, candidate: Scored, original: Scored | None) -> None:
    if np.isfinite(sums).all():
        return
    name = original.name if original is not None and not np.isfinite(sums[2]) else candidate.name
    raise CheckpointError(
        f"its logits give no finite loss for {where}",
        where=name,
        fix="look for NaN, Inf or masked weights with `llmc inspect`, or evaluate with dtype float32",
    )
