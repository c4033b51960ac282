"""Decode one bitsandbytes NF4 matrix: table[code] * absmax of its block, two codes a byte, the high nibble first."""

import json

import torch

TILE = 1 << 20  # weights decoded at once: bounds the 8-byte temporaries


def dequantize(tensors: dict[str, torch.Tensor], bits: int = 4) -> torch.Tensor:
    """The matrix `[out_features, in_features]` of `weight` and its `weight.*` companions."""
    state = json.loads(bytes(tensors["weight.quant_state.bitsandbytes__nf4"].tolist()))
    packed = tensors["weight"].reshape(-1, state["blocksize"] // 2)  # [blocks, bytes]
    absmax, table = tensors["weight.absmax"].view(-1, 1), tensors["weight.quant_map"]
    out = torch.empty(packed.shape[0], state["blocksize"], dtype=getattr(torch, state["dtype"]), device=packed.device)
    step = max(1, TILE // state["blocksize"])
    for a in range(0, packed.shape[0], step):
        part = slice(a, a + step)
        codes = torch.stack((packed[part] >> 4, packed[part] & 15), dim=2).flatten(1)
        out[part] = table[codes.int()] * absmax[part]
    return out.view(*state["shape"])
