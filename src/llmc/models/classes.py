"""Which class of transformers a folder's model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError, first_line, foreign
from llmc.models.config import safe_config

DECODED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config", "metal": "MetalConfig"}
"""`quant_method`s that transformers computes with kernels of the Hub where it can, unless it is told to decode."""

PROBE = "One 1\n\u00e9\u4e00\U0001f600"
"""A text that shows whether a tokenizer works at all: some fail only when they meet what they have no token for."""


def decoding(config: dict[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` that keep it from fetching kernels for the weights of a quantized folder."""
    import transformers

    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in DECODED:
        return {}
    return {"quantization_config": getattr(transformers, DECODED[method])(dequantize=True)}


def model_class(folder: Path) -> Any:
    """The class that config.json names.

    Raises:
        CheckpointError: it names none that transformers has.
        UnsupportedError: it asks to run code from the folder.
    """
    import transformers

    config = safe_config(folder)
    names = config.get("architectures") or []
    found = getattr(transformers, str(names[0]), None) if names else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(f"transformers has no model {names[0] if names else 'for it'}", where=folder.name)
    return found


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
