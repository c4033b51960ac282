"""A whole model with its matrices decoded, for formats whose official reader is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.late import torch
from llmc.models.checkpoint import Checkpoint


def dense_model(folder: Path, dtype: torch.dtype) -> Any:
    """The transformers model in `folder`, encoded matrices decoded by the reference kernels, in `dtype`.

    Raises CheckpointError as `Checkpoint` does.
    """
    checkpoint = Checkpoint(folder, encoded=True)
    keys = [key for group in checkpoint.skeleton.groups for key in group.keys]
    checkpoint.fill(keys, dtype, "cpu", lambda name: None)
    return checkpoint.model
