"""Encoders: what compression does to the vectors that a model gives for texts.

A vector is the mean over the tokens of a text of the last hidden states, or that of the first token where the folder's
`1_Pooling/config.json`, as sentence-transformers writes it, says so. What is compared is what such vectors are used
for: their direction, and the order in which they rank pairs of texts by cosine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import CheckpointError, InputError, UnsupportedError
from llmc.eval.measures.metrics import BATCH_TOKENS
from llmc.late import nn, np, torch
from llmc.models.config import safe_config
from llmc.models.open import Kind, open_as, position_limit, quiet, require_ids_fit
from llmc.results import silent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from llmc.results import Progress

POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class Embeddings:
    """Vectors `[texts, hidden]`, float64, and how many texts were cut at the model's last position."""

    vectors: NDArray[np.float64]
    truncated: int = 0


def open_encoder(folder: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """The model in `folder` without its head, with dense weights and in evaluation mode, and its tokenizer.

    Reads what `llmc.models.open.open_model` reads. Weights of a pooler may be missing: no vector runs through it.

    Raises:
        CheckpointError, UnsupportedError: as `open_model` does.
        UnsupportedError: an encoder-decoder model.
    """
    import transformers

    config = safe_config(folder)
    if config.get("is_encoder_decoder"):
        raise UnsupportedError(
            f"{config.get('model_type')!r} is an encoder-decoder model, which has no vector for a text",
            where=folder.name,
            fix="measure it on pairs of source and target",
        )
    # opened with its head, whose module names are those that its quantization_config speaks of
    name = (config.get("architectures") or ["AutoModel"])[0]
    kind = Kind(name if hasattr(transformers, name) else "AutoModel", optional="pooler")
    model, tokenizer = open_as(folder, kind, dtype=dtype, device=device)
    return model.base_model, tokenizer


def embed(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pooling: str = "mean",
    name: str = "",
    progress: Progress | None = None,
) -> Embeddings:
    """A vector for each text, computed in batches of about equal length.

    Args:
        pooling: `mean` over the tokens, or `cls`, the first.
        name: of the model, for messages.

    Raises:
        InputError: a text without a token, or a token that the model has not.
        CheckpointError: vectors that are not finite, or zero.
    """
    limit, report = _length_limit(model, tokenizer), progress or silent
    with quiet():
        rows: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    if not rows:
        raise InputError("no texts to embed", where=name)
    cut = [_cut(tokenizer, row, limit) for row in rows]
    for i, row in enumerate(cut):
        if not row:
            raise InputError(f"text {i + 1} has no token", where=name, fix="leave empty texts out")
    pad = tokenizer.pad_token_id or 0
    require_ids_fit(model, max(pad, *map(max, cut)), name)
    vectors: dict[int, NDArray[np.float64]] = {}
    for batch in _batches(cut):
        pooled = _pooled(model, [cut[i] for i in batch], pad, pooling)
        vectors |= zip(batch, pooled, strict=True)
        report(f"embed: {name}" if name else "embed", len(vectors), len(rows))
    table = np.stack([vectors[i] for i in range(len(rows))])
    length = np.linalg.norm(table, axis=1)
    if not (np.isfinite(length) & (length > 0)).all():
        raise CheckpointError(
            f"its vector of text {int(np.argmin(np.isfinite(length) & (length > 0))) + 1} is not finite, or zero",
            where=name,
            fix="look for NaN or Inf with `llmc inspect`, or evaluate with dtype float32",
        )
    return Embeddings(table, sum(len(a) > len(b) for a, b in zip(rows, cut, strict=True)))


def _pooled(model: Any, rows: Sequence[Sequence[int]], pad: int, pooling: str) -> NDArray[np.float64]:
    """Vectors of a batch, `[rows, hidden]`; rows are padded on the right and the padding is masked."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=model.device)  # [rows, longest]
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = (torch.arange(longest, device=model.device) < lengths[:, None]).long()
    with torch.inference_mode():
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state.double()  # [rows, longest, hidden]
    if pooling == "cls":
        return hidden[:, 0].cpu().numpy()
    inside = mask.bool().unsqueeze(-1)  # what stands in the padding may be anything, NaN too
    return (hidden.where(inside, 0.0).sum(1) / lengths[:, None]).cpu().numpy()


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of rows that run together, the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _cut(tokenizer: Any, row: list[int], limit: int | None) -> list[int]:
    """The row within the limit, with the end mark that the tokenizer put."""
    if limit is None or len(row) <= limit:
        return row
    return [*row[: limit - 1], row[-1]] if row[-1] in tokenizer.all_special_ids else row[:limit]


def _length_limit(model: Any, tokenizer: Any) -> int | None:
    """Most tokens of a text; of RoBERTa's positions the first ones stand for padding."""
    limits = [tokenizer.model_max_length]
    positions = position_limit(model)
    if positions is not None:
        tables = [
            m for n, m in model.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)
        ]
        unused = max((m.padding_idx + 1 for m in tables if m.padding_idx is not None), default=0)
        limits.append(positions - unused)
    shortest = min(limits)
    return shortest if shortest < 2**31 else None  # transformers writes 1e30 for no limit
