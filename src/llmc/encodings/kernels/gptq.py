"""Decode one GPTQ v1 matrix: W = scale * (u - (z + 1)), z stored minus one, columns mapped to groups by `g_idx`."""

import torch

from .bits import TILE, unpack


def dequantize(tensors: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    """The matrix `[out_features, in_features]`, float16, of `qweight`, `qzeros`, `scales` and `g_idx`."""
    group = tensors["g_idx"].long()  # [in_features]
    packed = tensors["qweight"].t()  # [out_features, words]
    scale = tensors["scales"].t()  # [out_features, groups]
    columns, rows = group.numel(), scale.shape[0]
    zero = unpack(tensors["qzeros"], bits, rows).t() + 1  # [out_features, groups]
    step = max(1, TILE // columns)
    out = torch.empty(rows, columns, dtype=scale.dtype, device=packed.device)
    for a in range(0, rows, step):
        part = slice(a, a + step)
        codes = unpack(packed[part].contiguous(), bits, columns)
        out[part] = (codes - zero[part][:, group]) * scale[part].float()[:, group]
    return out
