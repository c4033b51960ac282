"""llmc's own container: entropy-coded matrices and everything else without loss; docs/formats/lossless.md.

Every tensor of the model is a coded tensor under its own name and decodes to the dtype and orientation of the original.
Sizes are known when the codes are: `layout` says what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.encodings.coding import coded_tensor, tensor_coder
from llmc.encodings.encoded import Encoded
from llmc.encodings.trellis import TrellisGrid
from llmc.formats.container import Facts, Layout, Spec, one_grid_kind
from llmc.late import torch
from llmc.targets import Target


@dataclass(frozen=True)
class Llmc:
    name: ClassVar[str] = "llmc"
    kernel: ClassVar[str] = "coded_tensor"
    coded: ClassVar[bool] = True

    def refusals(self, specs: Sequence[Spec], facts: Facts) -> list[str]:
        return one_grid_kind(specs, TrellisGrid, self.name)

    def scale_dtype(self, target: Target) -> str | None:
        return None

    def layout(self, spec: Spec) -> Layout:
        bits = spec.grid.bits_per_weight if isinstance(spec.grid, TrellisGrid) else 8.0 * spec.target.dtype.itemsize
        return {spec.target.tensor: (torch.uint8, (math.ceil(spec.target.numel * bits / 8),))}

    def pack(self, spec: Spec, encoded: Encoded) -> dict[str, torch.Tensor]:
        coded = tensor_coder.quantized(encoded, transposed=spec.target.transposed)
        return {spec.target.tensor: torch.from_numpy(coded.joined())}

    def unpack(self, spec: Spec, tensors: dict[str, torch.Tensor]) -> Encoded:
        return coded_tensor.trellis_of(tensors[spec.target.tensor])

    def decoded_dtype(self, target: Target) -> torch.dtype:
        return target.dtype

    def config(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any] | None:
        suffix = ".index.json" if facts.sharded else ""
        weights = f"model.llmc.safetensors{suffix}"
        return {"quant_method": "llmc", "mode": "trellis", "weights": weights, "dequantize": True}

    def extra_files(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        return {}

    def runtimes(self, specs: Sequence[Spec], facts: Facts) -> dict[str, str]:
        return {
            "transformers": "yes, after `import llmc.hf`",
            "vllm": "no: turn it into a plain model with llmc export --format dense",
            "sglang": "no: turn it into a plain model with llmc export --format dense",
        }
