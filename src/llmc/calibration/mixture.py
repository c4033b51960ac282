"""Calibration text from one source or from several, each with a share of the sequences.

A source is what `CalibrationOptions` says, and may end in its weight: `a.txt:2`, `user/chats@train:0.5`. Sequences are
shared out by largest remainder, and those of several sources are put in a seeded order, so that every part of them is
of all sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.calibration.data import CalibrationOptions, CalibrationSet, load_calibration, token_sha256
from llmc.embedded.names import weighted
from llmc.errors import UsageError
from llmc.late import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_SOURCES = 64


def names_of(options: CalibrationOptions) -> tuple[str, ...]:
    """The sources as they are written, one or several."""
    return (options.source,) if isinstance(options.source, str) else options.source


def load_mixture(
    options: CalibrationOptions, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, *, beyond: int = 0
) -> CalibrationSet:
    """`load_calibration` of one source or of several.

    Args:
        beyond: if not 0, about so many sequences that the draws would have taken next.

    Raises UsageError for weights that leave a source without a sequence, and what `load_calibration` raises.
    """
    parts = [weighted(name) for name in names_of(options)]
    if len(parts) == 1:
        return load_calibration(replace(options, source=parts[0][0]), tokenizer, vocab_size, beyond=beyond)
    counts = shares([weight for _, weight in parts], options.num_samples)
    if len(parts) > MOST_SOURCES or 0 in counts:
        least = next((name for (name, _), count in zip(parts, counts, strict=True) if not count), parts[-1][0])
        fix = "use more --num-samples, or a larger weight"
        raise UsageError("its weight leaves it no sequence", where=f"--calibration {least}", fix=fix)
    loaded = [
        load_calibration(
            _for_one(options, name, count),
            tokenizer,
            vocab_size,
            beyond=math.ceil(beyond * count / options.num_samples),
        )
        for (name, _), count in zip(parts, counts, strict=True)
    ]
    token_ids = torch.cat([each.token_ids for each in loaded])  # [samples, sequence_length]
    generator = torch.Generator().manual_seed(options.seed)
    token_ids = token_ids[torch.randperm(len(token_ids), generator=generator)]
    said = [f"{each.source} ({len(each.token_ids)})" for each in loaded]
    notes = tuple(note for each in loaded for note in each.notes)
    return CalibrationSet(token_ids, token_sha256(token_ids), ", ".join(said), notes)


def shares(weights: Sequence[float], count: int) -> list[int]:
    """`count` shared out by weight, by largest remainder; of equal remainders the first.

    >>> shares([2, 1, 1], 6)
    [3, 2, 1]
    """
    total = math.fsum(weights)
    exact = [count * weight / total if total else 0.0 for weight in weights]
    out = [math.floor(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda i: (out[i] - exact[i], i))
    for i in order[: count - sum(out)] if total else []:
        out[i] += 1
    return out


def _for_one(options: CalibrationOptions, name: str, count: int) -> CalibrationOptions:
    """The options of one of several sources: a .txt file among conversations is plain text."""
    text = Path(name).suffix.lower() == ".txt"
    column = None if text else options.column
    return replace(
        options, source=name, num_samples=count, column=column, chat_template=options.chat_template and not text
    )
