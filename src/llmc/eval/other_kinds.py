"""What encoders and encoder-decoders show, under the names of the report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmc.eval.conditions import Conditions
from llmc.eval.measures.embeddings import Embeddings, embed
from llmc.eval.measures.metrics import Scored
from llmc.eval.measures.seq2seq import score_pairs
from llmc.eval.measures.similarity import similarity
from llmc.eval.measures.text_figures import NO_TEXT, text_figures
from llmc.models.pooling import pooling_of

if TYPE_CHECKING:
    from llmc.eval.subject import Subject
    from llmc.results import Progress


def vectors(subject: Subject, conditions: Conditions, pooling: str, progress: Progress | None) -> Embeddings:
    """Those of the pairs, first and second in turn, or of the text's lines."""
    if conditions.pairs is not None:
        texts = [text for pair in conditions.pairs for text in (pair.first, pair.second)]
    else:
        texts = [line for line in (conditions.text or "").splitlines() if line.strip()][: conditions.limit]
    return embed(subject.model, subject.tokenizer, texts, pooling=pooling, name=subject.name, progress=progress)


def pooling_for(subject: Subject) -> str:
    """Of the original, where there is one: its folder says how its vectors are meant."""
    return pooling_of(subject.folder) or "mean"


def on_vectors(mine: Embeddings, original: Embeddings | None, conditions: Conditions) -> dict[str, Any]:
    """Figures of an encoder."""
    gold = None if conditions.pairs is None else [pair.score or 0.0 for pair in conditions.pairs]
    found = similarity(mine.vectors, None if original is None else original.vectors, gold=gold)
    return {**NO_TEXT, "text": conditions.source, "embeddings": {**found, "truncated": mine.truncated}}


def on_pairs(
    subject: Subject, original: Subject | None, conditions: Conditions, progress: Progress | None
) -> dict[str, Any]:
    """Figures of an encoder-decoder; the original runs beside it."""
    pairs = conditions.pairs or ()
    theirs = None if original is None else Scored(original.name, original.model)
    mine = Scored(subject.name, subject.model)
    sums = score_pairs(mine, theirs, pairs, subject.tokenizer, progress=progress)
    tokens = int(sums.tokens.sum())
    content = sum(len(pair.second.encode()) for pair in pairs)
    figures = text_figures(sums, tokens / (content * math.log(2)))
    return {**figures, "tokens": tokens, "text": conditions.source, "windows": sums, "worst": ()}
