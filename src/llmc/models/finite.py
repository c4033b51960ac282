"""NaN and Inf among weights."""

from __future__ import annotations

from llmc.errors import CheckpointError
from llmc.late import torch


def require_finite(weight: torch.Tensor, name: str) -> None:
    """Raise CheckpointError naming the tensor, the first index and the count of NaN and Inf."""
    bad = nonfinite(weight)
    if bad is not None:
        count, first = bad
        raise CheckpointError(
            f"{count} of {weight.numel()} values are NaN or Inf, the first at {first}",
            where=name,
            fix="--allow-nonfinite keeps that tensor as it is",
        )


def nonfinite(tensor: torch.Tensor) -> tuple[int, list[int]] | None:
    """How many values are NaN or Inf, and the index of the first; None when all are finite."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return None
    # NaN and Inf show in the limits as in a sum, in a third of the time; torch has no limits of float8.
    wide = tensor.dtype.itemsize > 1
    witness = torch.stack(torch.aminmax(tensor)) if wide else tensor.sum(dtype=torch.float32)
    if bool(torch.isfinite(witness).all()):
        return None
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    return (count, bad.nonzero()[0].tolist()) if count else None
