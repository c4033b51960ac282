"""What a container is: the names, layouts and config of one public standard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from llmc.encodings.encoded import Encoded, Grid
from llmc.encodings.values import Values
from llmc.late import torch
from llmc.targets import Target

Layout: TypeAlias = "dict[str, tuple[torch.dtype, tuple[int, ...]]]"


@dataclass(frozen=True)
class Spec:
    """One Target and the grid it is to be written on; `Values`: as it is."""

    target: Target
    grid: Grid


@dataclass(frozen=True)
class Facts:
    """What a container may ask about the model.

    Attributes:
        dtype: dtype of the model's weights.
        raw_linears: module names of the matrices that stay as they are, as on disk and, where it differs, in the model;
            among them a tied head that has no tensor of its own, and routed experts under their names on disk.
        fuse_groups: names of Targets that inference engines merge into one matrix.
        moe: the model has routed experts.
        initializes_by_name: transformers' class initializes matrices through their parents (T5), which fails where a
            packed module has no `weight`.
        keep_float32: name endings that transformers keeps in float32 and never loads packed (T5's `wo`).
        sharded: the weights came to lie in several files.
    """

    dtype: torch.dtype
    raw_linears: tuple[str, ...] = ()
    fuse_groups: tuple[tuple[str, ...], ...] = ()
    moe: bool = False
    initializes_by_name: bool = False
    keep_float32: tuple[str, ...] = ()
    sharded: bool = False


def encoded(specs: Iterable[Spec]) -> list[Spec]:
    """Those that a container holds as codes; the others are values, which it holds as they are."""
    return [spec for spec in specs if not isinstance(spec.grid, Values)]


class Container(Protocol):
    """Bytes on disk. Frozen, stateless; everything about one format lives in its file.

    `coded`: every tensor is a coded one, also those that are kept as they are.
    """

    name: ClassVar[str]
    kernel: ClassVar[str]
    coded: ClassVar[bool]

    def refusals(self, specs: Sequence[Spec], facts: Facts) -> list[str]:
        """Why this container cannot hold these, one line each; empty when it can. Asked before any computing."""
        ...

    def scale_dtype(self, target: Target) -> str | None:
        """The dtype scales are stored in, or None when any will do."""
        ...

    def layout(self, spec: Spec) -> Layout:
        """Names on disk, dtypes and shapes of the tensors that `pack` gives."""
        ...

    def pack(self, spec: Spec, encoded: Encoded) -> dict[str, torch.Tensor]:
        """The tensors to store, under their names on disk."""
        ...

    def unpack(self, spec: Spec, tensors: dict[str, torch.Tensor]) -> Encoded:
        """Inverse of `pack`."""
        ...

    def decoded_dtype(self, target: Target) -> torch.dtype:
        """The dtype its readers decode to."""
        ...

    def config(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any] | None:
        """`quantization_config` for config.json, or None."""
        ...

    def extra_files(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        """Further JSON files: name -> content."""
        ...

    def runtimes(self, specs: Sequence[Spec], facts: Facts) -> dict[str, str]:
        """Runtime -> `yes ...` or `no: reason`, with the flag it needs."""
        ...


def prefix_of(target: Target) -> str:
    """The name on disk up to and including the dot before `weight`."""
    return target.tensor.removesuffix("weight")


def one_grid_kind(specs: Sequence[Spec], kind: type, container: str) -> list[str]:
    """A refusal for every Target whose grid is not of this kind."""
    wrong = [s for s in specs if not isinstance(s.grid, kind)]
    return [
        f"{container} cannot hold {s.target.name} on grid {type(s.grid).__name__}; it holds {kind.__name__} only"
        for s in wrong[:3]
    ]
