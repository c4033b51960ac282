"""Decode one dense matrix: it is stored as it is."""

import torch


def dequantize(tensors: dict[str, torch.Tensor], bits: int = 16) -> torch.Tensor:
    """The tensor itself."""
    return tensors["weight"]
