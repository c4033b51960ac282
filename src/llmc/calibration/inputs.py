"""Token batches as the keyword inputs of any model."""

from __future__ import annotations

import inspect
from typing import Any

from llmc.late import torch


def model_inputs(model: Any, token_ids: torch.Tensor, batch: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Cut `token_ids: int64 [samples, length]` into batches of keyword inputs.

    A model whose main input is not text (Whisper, vision encoders) gets seeded Gaussian features there: its text side
    is calibrated by the text, the other side by noise; `noise_note` says so.
    """
    accepts = inspect.signature(model.forward).parameters
    shape = _feature_shape(model)
    generator = torch.Generator().manual_seed(seed)
    limit = getattr(model.config, "max_target_positions", None) if model.config.is_encoder_decoder else None
    batches = []
    for start in range(0, token_ids.shape[0], batch):
        ids = token_ids[start : start + batch, :limit]
        inputs: dict[str, Any] = {}
        if shape is None:
            inputs["input_ids"] = ids
        else:
            inputs[model.main_input_name] = torch.randn(ids.shape[0], *shape, generator=generator)
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        if "use_cache" in accepts:
            inputs["use_cache"] = False
        batches.append(inputs)
    return batches


def noise_note(model: Any) -> str:
    """A line saying that calibration has no text for the model's main input, or ""."""
    if model.main_input_name == "input_ids":
        return ""
    return f"{model.main_input_name} was Gaussian noise: calibration text has none of its own"


def _feature_shape(model: Any) -> tuple[int, ...] | None:
    """Shape of one sample of the main input, or None when it is text."""
    name, config = model.main_input_name, model.config
    if name == "input_ids":
        return None
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        return (config.num_mel_bins, 2 * config.max_source_positions)
    return tuple(model.dummy_inputs[name].shape[1:])
