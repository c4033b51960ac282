"""Which class of transformers a folder's model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError
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
