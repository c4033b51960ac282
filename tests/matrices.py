"""Matrices, their statistics, and what an encoding of them loses."""

from __future__ import annotations

from typing import Any

import torch

from llmc.calibration.statistics import Hessian
from llmc.compressors.method import Context
from llmc.encodings.encoded import Encoded


def context(dtype: torch.dtype = torch.float32, **fields: Any) -> Context:
    return Context(dtype, **{"scale_dtypes": ("bfloat16",), **fields})


def hessian(columns: int, seed: int = 0, dead: tuple[int, ...] = (), count: int | None = None) -> Hessian:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draw) / columns**0.5 + torch.eye(columns) / 2
    x = torch.randn(count or 2 * columns, columns, generator=draw) @ mix
    x[:, list(dead)] = 0
    out = Hessian(columns)
    out.update(x)
    return out


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def loss(w: torch.Tensor, encoded: Encoded, H: torch.Tensor) -> float:
    E = w.double() - encoded.dequantize().double()
    return float((E @ H.double() * E).sum())
