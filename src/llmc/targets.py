"""What is compressed: matrices of a model, and where their inputs are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class InputPoint:
    """Where the activations that a Target multiplies pass by.

    `module` is a module path of the transformers model; `expert` and `parameter` are set for a routed expert,
    whose matrix is a slice of the fused parameter `module.parameter`.
    """

    module: str
    expert: int | None = None
    parameter: str | None = None

    @property
    def place(self) -> str:
        """Path of the module or of the fused parameter: all routed experts are in one place."""
        return self.module if self.parameter is None else f"{self.module}.{self.parameter}"


@dataclass(frozen=True)
class Target:
    """One logical `[out_features, in_features]` matrix.

    Attributes:
        name: the tensor's name on disk without its `.weight` ending; what `--targets` and `--ignore` match.
        tensor: the tensor's name on disk.
        shape: `(out_features, in_features)`.
        dtype: stored dtype.
        transposed: the tensor on disk is `[in_features, out_features]` (GPT-2's `Conv1D`).
        kind: `linear`, `conv1d`, `expert` or `embedding`.
        block: path of the block it lives in, or None outside of the blocks.
        point: where its inputs are seen; None for embeddings.
        tie: names of all uses of the tensor when it is tied, else empty.
        fuse: runtime-fuse group: inference engines need one scheme for all its members.
    """

    name: str
    tensor: str
    shape: tuple[int, int]
    dtype: torch.dtype
    transposed: bool
    kind: str
    block: str | None
    point: InputPoint | None
    tie: tuple[str, ...] = ()
    fuse: str | None = None

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]
