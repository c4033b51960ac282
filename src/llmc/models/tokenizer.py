"""The tokenizer of a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError, first_line, foreign
from llmc.models.classes import PROBE


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer, or None when it has none."""
    try:
        return open_tokenizer(folder)
    except CheckpointError:
        if any(folder.glob("tokenizer*")):
            raise
        return None


def vocabulary(model: Any) -> int:
    """How many token ids the model takes."""
    return int(model.get_input_embeddings().weight.shape[0])


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder. Raises CheckpointError for anything that transformers cannot read."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        tokenizer(PROBE, verbose=False)
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if not foreign(error):
            raise
        raise CheckpointError(
            f"no tokenizer that transformers can read: {first_line(error)}",
            where=folder.name,
            fix="copy tokenizer.json and tokenizer_config.json of the original into it",
        ) from error
    if not isinstance(tokenizer.model_max_length, int | float) or not tokenizer.model_max_length >= 1:
        raise CheckpointError("tokenizer_config.json: model_max_length is no length", where=folder.name)
    return tokenizer
