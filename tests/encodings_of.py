"""Encoded matrices of random codes and params, and the Targets they belong to."""

from __future__ import annotations

import torch

from llmc.encodings.encoded import Encoded, Grid, Plane, group_count
from llmc.encodings.int_grid import IntGrid
from llmc.formats.container import Container, Spec
from llmc.targets import Target


def target(name: str, shape: tuple[int, int], dtype: torch.dtype, kind: str = "linear") -> Target:
    """A Target outside of any block, `[out_features, in_features]`."""
    return Target(name, f"{name}.weight", shape, dtype, kind == "conv1d", kind, None, None)


def encode(grid: Grid, shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> Encoded:
    """Every code and zero point as likely; scales exact in bfloat16 and float16, so that any dtype holds them."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = shape
    groups = (rows, group_count(columns, grid.group_size))
    codes = torch.randint(0, grid.alphabet, shape, generator=draw, dtype=torch.uint8)
    scale = (torch.rand(groups, generator=draw) * 0.01 + 0.001).to(torch.bfloat16)
    params = {"scale": scale.to(dtype) if isinstance(grid, IntGrid) else scale.float()}
    if isinstance(grid, IntGrid) and not grid.symmetric:
        params["zero_point"] = torch.randint(0, grid.alphabet, groups, generator=draw, dtype=torch.uint8)
    return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, shape, dtype)


def packed(container: Container, grid: Grid, encoded: Encoded) -> dict[str, torch.Tensor]:
    """The stored tensors of one matrix under their names without the module's prefix."""
    spec = Spec(target("m", encoded.shape, encoded.dtype), grid)
    return {name.removeprefix("m."): tensor for name, tensor in container.pack(spec, encoded).items()}
