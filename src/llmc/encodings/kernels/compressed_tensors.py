"""Decode one compressed-tensors `pack-quantized` matrix: W = (u - zero) * scale, rounded once to the scale's dtype."""

import torch

from .bits import TILE, unpack


def dequantize(tensors: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    """The matrix `[out_features, in_features]` of `weight_packed`, `weight_scale`, `weight_shape` and, when asymmetric,
    `weight_zero_point`, whose codes are `bits` wide."""
    rows, columns = (int(n) for n in tensors["weight_shape"])
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    groups = scale.shape[1]
    zero = torch.full((rows, groups), 1 << (bits - 1), dtype=torch.int32, device=packed.device)
    if "weight_zero_point" in tensors:  # packed along the rows
        zero = unpack(tensors["weight_zero_point"].t().contiguous(), bits, rows).t()
    group = torch.arange(columns, device=packed.device) // -(-columns // groups)
    step = max(1, TILE // columns)
    out = torch.empty(rows, columns, dtype=scale.dtype, device=packed.device)
    for a in range(0, rows, step):
        part = slice(a, a + step)
        codes = unpack(packed[part], bits, columns)
        out[part] = (codes - zero[part][:, group]) * scale[part].float()[:, group]
    return out
