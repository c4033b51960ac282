"""Matrices that share an input, compressed in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from llmc.compressors.method import Context
from llmc.encodings.encoded import Encoded
from llmc.encodings.values import held
from llmc.late import torch


def encode_together(
    method: Any, weights: Sequence[torch.Tensor], stats: dict[str, Any], context: Context
) -> list[Encoded]:
    """Compress matrices `[out_i, in]` that share an input, in one call where rows are independent."""
    if not method.by_rows:
        return _one_by_one(method, weights, stats, context)
    if len(weights) == 1:
        return [_encoded(method(weights[0], stats, context))]
    whole = _encoded(
        method(torch.cat(list(weights)), stats, dataclasses.replace(context, parts=tuple(map(len, weights))))
    )
    out, start = [], 0
    for weight in weights:
        out.append(whole.rows(start, start + weight.shape[0]))
        start += weight.shape[0]
    return out


def _one_by_one(method: Any, weights: Sequence[torch.Tensor], stats: dict[str, Any], context: Context) -> list[Encoded]:
    """Each by itself; what was noted about each goes into lists."""
    rates: list[tuple[float, ...]] = [(rate,) for rate in context.rates] or [()] * len(weights)
    keeps = [None] * len(weights) if context.keep is None else torch.split(context.keep, [len(w) for w in weights])
    alone = [
        dataclasses.replace(context, notes={}, rates=rate, keep=keep) for rate, keep in zip(rates, keeps, strict=True)
    ]
    out = [_encoded(method(w, stats, own)) for w, own in zip(weights, alone, strict=True)]
    for key in dict.fromkeys(key for own in alone for key in own.notes):
        values = [own.notes.get(key) for own in alone]
        context.note(key, values if len(weights) > 1 else values[0])
    return out


def _encoded(result: Encoded | torch.Tensor) -> Encoded:
    return held(result) if isinstance(result, torch.Tensor) else result


def notes_of(context: Context, index: int, count: int) -> dict[str, Any]:
    """What a method noted about the `index`-th of `count` matrices compressed together."""
    notes = context.notes.items()
    return {key: value[index] if isinstance(value, list) and len(value) == count else value for key, value in notes}
