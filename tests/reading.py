"""Models as transformers reads them, compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers


def model_class(folder: Path) -> Any:
    return getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])


def equal(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k].reshape(-1).view(torch.uint8), b[k].reshape(-1).view(torch.uint8))
        for k in a
    )


def inputs(name: str, model: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 200, (2, 17), generator=torch.Generator().manual_seed(0))
    if name == "whisper":
        frames = 2 * model.config.max_source_positions
        features = torch.randn(2, model.config.num_mel_bins, frames, generator=torch.Generator().manual_seed(0))
        return {"input_features": features.to(model.dtype), "decoder_input_ids": ids}
    return {"input_ids": ids, "decoder_input_ids": ids} if name == "t5" else {"input_ids": ids}
