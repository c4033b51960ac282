"""Greedy continuations of a prompt, for the eye."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmc.errors import InputError
from llmc.late import torch
from llmc.models.open import position_limit, quiet
from llmc.results import Table

NEW_TOKENS = 64


@dataclass(frozen=True)
class Sample:
    """A prompt and how each model goes on, the most probable token each time."""

    prompt: str
    compressed: str
    original: str | None = None

    def table(self) -> Table:
        """The continuations, one below the other."""
        rows = [("original", self.original)] if self.original is not None else []
        return Table(f"greedy continuation of {self.prompt!r}", ("", "text"), (*rows, ("compressed", self.compressed)))


def greedy(model: Any, tokenizer: Any, prompt: str, *, new_tokens: int = NEW_TOKENS) -> str:
    """The model's own `new_tokens` tokens after `prompt`, as text, ending early at its end-of-text token.

    Raises InputError when the prompt is empty or does not fit.
    """
    import transformers

    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)  # [1, tokens]
    limit = position_limit(model)
    if ids.numel() == 0:
        raise InputError("the prompt is empty", where="--prompt")
    if limit is not None and ids.shape[1] + new_tokens > limit:
        raise InputError(
            f"a prompt of {ids.shape[1]} tokens and {new_tokens} new ones exceed the model's {limit} positions",
            where="--prompt",
            fix=f"shorten it to {limit - new_tokens} tokens",
        )
    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    pad = end[0] if isinstance(end, list) else end
    make: Any = transformers.GenerationConfig
    settings = make(max_new_tokens=new_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad)
    with quiet(), torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
