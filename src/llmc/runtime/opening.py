"""Which class of transformers a folder's model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.checkpoint import read_config
from llmc.errors import CheckpointError, UnsupportedError


def model_class(folder: Path) -> Any:
    """The class that config.json names.

    Raises:
        CheckpointError: it names none that transformers has.
        UnsupportedError: it asks to run code from the folder.
    """
    import transformers

    config = read_config(folder)
    if "auto_map" in config:
        message = "config.json asks to run code from the model folder (auto_map), which llmc never does"
        raise UnsupportedError(message, where=folder.name)
    names = config.get("architectures") or []
    found = getattr(transformers, str(names[0]), None) if names else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(f"transformers has no model {names[0] if names else 'for it'}", where=folder.name)
    return found
