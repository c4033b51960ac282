"""bitsandbytes 4-bit NF4, as transformers' bitsandbytes quantizer reads it (bitsandbytes 0.50, `QuantState`).

`weight` uint8 `[out * in / 2, 1]`, the high nibble first; `weight.absmax` float32 per block of the flattened matrix;
`weight.quant_map` the table; `weight.quant_state.bitsandbytes__nf4` a JSON text as uint8.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.encodings.encoded import Encoded, Plane
from llmc.encodings.nf4_grid import TABLE, Nf4Grid
from llmc.formats.container import Facts, Layout, Spec, one_grid_kind, prefix_of
from llmc.late import torch
from llmc.targets import Target

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class BitsAndBytes:
    name: ClassVar[str] = "bitsandbytes"
    kernel: ClassVar[str] = "bitsandbytes"
    coded: ClassVar[bool] = False

    def refusals(self, specs: Sequence[Spec], facts: Facts) -> list[str]:
        out = one_grid_kind(specs, Nf4Grid, self.name)
        if out:
            return [out[0] + "; add -O grid=nf4 --group-size 64"]
        for spec in specs:
            target = spec.target
            if target.kind not in ("linear", "conv1d"):
                return [f"bitsandbytes' reader loads linear layers only and {target.name} is {_a(target.kind)}"]
            if target.name.endswith(facts.keep_float32):
                return [f"transformers keeps {target.name} in float32 and does not load it packed; add it to --ignore"]
            if spec.grid.group_size not in BLOCKS:
                return [f"bitsandbytes takes a group_size of {', '.join(map(str, BLOCKS))}, not {spec.grid.group_size}"]
        return []

    def scale_dtype(self, target: Target) -> str | None:
        return None

    def layout(self, spec: Spec) -> Layout:
        at, numel = prefix_of(spec.target), spec.target.numel
        return {
            at + "weight": (torch.uint8, (numel // 2, 1)),
            at + "weight.absmax": (torch.float32, (numel // _block(spec),)),
            at + "weight.quant_map": (torch.float32, (16,)),
            at + "weight.quant_state.bitsandbytes__nf4": (torch.uint8, (len(_state(spec)),)),
        }

    def pack(self, spec: Spec, encoded: Encoded) -> dict[str, torch.Tensor]:
        at, codes = prefix_of(spec.target), encoded.codes.reshape(-1)
        return {
            at + "weight": ((codes[0::2] << 4) | codes[1::2]).view(-1, 1),
            at + "weight.absmax": encoded.params["scale"].reshape(-1).float(),
            at + "weight.quant_map": torch.tensor(TABLE, dtype=torch.float32),
            at + "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(_state(spec)), dtype=torch.uint8),
        }

    def unpack(self, spec: Spec, tensors: dict[str, torch.Tensor]) -> Encoded:
        at, (rows, columns) = prefix_of(spec.target), spec.target.shape
        packed = tensors[at + "weight"].reshape(-1)
        codes = torch.empty(rows * columns, dtype=torch.uint8)
        codes[0::2], codes[1::2] = packed >> 4, packed & 15
        params = {"scale": tensors[at + "weight.absmax"].view(rows, -1)}
        plane = Plane(codes.view(rows, columns), 16)
        return Encoded(spec.grid, {"codes": plane}, params, (rows, columns), spec.target.dtype)

    def decoded_dtype(self, target: Target) -> torch.dtype:
        return target.dtype

    def config(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": str(facts.dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": sorted(facts.raw_linears),
        }

    def extra_files(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        return {}

    def runtimes(self, specs: Sequence[Spec], facts: Facts) -> dict[str, str]:
        return {
            "transformers": "yes, with bitsandbytes installed",
            "vllm": "yes, with --quantization bitsandbytes",
            "sglang": "partly",
        }


def _a(kind: str) -> str:
    return {"embedding": "an embedding", "expert": "a slice of fused experts"}[kind]


def _block(spec: Spec) -> int:
    return spec.grid.group_size or spec.target.shape[1]


def _state(spec: Spec) -> bytes:
    state = {
        "quant_type": "nf4",
        "blocksize": _block(spec),
        "dtype": str(spec.target.dtype).removeprefix("torch."),
        "shape": list(spec.target.shape),
    }
    return json.dumps(state).encode()
