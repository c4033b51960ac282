"""The plain model: decoded values in the original dtype, name and orientation. Loads wherever the original did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.encodings.encoded import Encoded
from llmc.encodings.values import Values
from llmc.formats.container import Container, Facts, Layout, Spec
from llmc.late import torch
from llmc.targets import Target


def holder(container: Container, spec: Spec) -> Container:
    """What holds a Target in a container's folder: values are held as the plain model holds them."""
    return Dense() if isinstance(spec.grid, Values) and not container.coded else container


@dataclass(frozen=True)
class Dense:
    name: ClassVar[str] = "dense"
    kernel: ClassVar[str] = "dense"
    coded: ClassVar[bool] = False

    def refusals(self, specs: Sequence[Spec], facts: Facts) -> list[str]:
        return []

    def scale_dtype(self, target: Target) -> str | None:
        return None

    def layout(self, spec: Spec) -> Layout:
        rows, columns = spec.target.shape
        shape = (columns, rows) if spec.target.transposed else (rows, columns)
        return {spec.target.tensor: (spec.target.dtype, shape)}

    def pack(self, spec: Spec, encoded: Encoded) -> dict[str, torch.Tensor]:
        values = encoded.dequantize(spec.target.dtype)
        return {spec.target.tensor: values.t().contiguous() if spec.target.transposed else values}

    def unpack(self, spec: Spec, tensors: dict[str, torch.Tensor]) -> Encoded:
        raise TypeError(f"{spec.target.name}: a dense artifact has no codes to unpack")

    def decoded_dtype(self, target: Target) -> torch.dtype:
        return target.dtype

    def config(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any] | None:
        return None

    def extra_files(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        return {}

    def runtimes(self, specs: Sequence[Spec], facts: Facts) -> dict[str, str]:
        return {"transformers": "yes", "vllm": "yes", "sglang": "yes"}
