"""GPTQ checkpoint format v1, as GPTQModel, vLLM, SGLang, ExLlama and transformers (with optimum) read it.

`qweight` is the transpose of compressed-tensors' `weight_packed`; `qzeros` stores the zero point minus one; `scales`
are float16. Symmetric grids only: v1 cannot store every asymmetric zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.encodings.coding.packing import pack_rows, unpack_rows
from llmc.encodings.encoded import Encoded, Plane, group_count
from llmc.encodings.int_grid import IntGrid
from llmc.formats.container import Facts, Layout, Spec, one_grid_kind, prefix_of
from llmc.late import torch
from llmc.targets import Target

BITS = (2, 3, 4, 8)
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)  # and None: what GPTQModel's kernels take


@dataclass(frozen=True)
class Gptq:
    name: ClassVar[str] = "gptq"
    kernel: ClassVar[str] = "gptq"
    coded: ClassVar[bool] = False

    def refusals(self, specs: Sequence[Spec], facts: Facts) -> list[str]:
        out = one_grid_kind(specs, IntGrid, self.name)
        for spec in specs if not out else ():
            reason = _refusal(spec)
            if reason:
                return [reason]
        if not out and len({(_int(s).bits, _int(s).group_size) for s in specs}) > 1:
            out.append("gptq holds one bits and group_size for the whole model; use --format compressed-tensors")
        return out

    def scale_dtype(self, target: Target) -> str | None:
        return "float16"

    def layout(self, spec: Spec) -> Layout:
        grid, (rows, columns) = _int(spec), spec.target.shape
        at, groups = prefix_of(spec.target), group_count(columns, grid.group_size)
        return {
            at + "qweight": (torch.int32, (columns * grid.bits // 32, rows)),
            at + "qzeros": (torch.int32, (groups, rows * grid.bits // 32)),
            at + "scales": (torch.float16, (groups, rows)),
            at + "g_idx": (torch.int32, (columns,)),
        }

    def pack(self, spec: Spec, encoded: Encoded) -> dict[str, torch.Tensor]:
        grid, at = _int(spec), prefix_of(spec.target)
        rows, columns = encoded.shape
        group = grid.group_size or columns
        zeros = torch.full((group_count(columns, grid.group_size), rows), grid.middle - 1, dtype=torch.uint8)
        return {
            at + "qweight": pack_rows(encoded.codes, grid.bits).t().contiguous(),
            at + "qzeros": pack_rows(zeros, grid.bits),
            at + "scales": encoded.params["scale"].to(torch.float16).t().contiguous(),
            at + "g_idx": (torch.arange(columns) // group).to(torch.int32),
        }

    def unpack(self, spec: Spec, tensors: dict[str, torch.Tensor]) -> Encoded:
        grid, at = _int(spec), prefix_of(spec.target)
        rows, columns = spec.target.shape
        codes = unpack_rows(tensors[at + "qweight"].t().contiguous(), grid.bits, columns)
        params = {"scale": tensors[at + "scales"].t().contiguous()}
        return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, (rows, columns), torch.float16)

    def decoded_dtype(self, target: Target) -> torch.dtype:
        return torch.float16

    def config(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        grid = _int(specs[0])
        return {
            "quant_method": "gptq",
            "bits": grid.bits,
            "group_size": -1 if grid.group_size is None else grid.group_size,
            "desc_act": False,
            "sym": True,
            "lm_head": any(s.target.name.endswith("lm_head") for s in specs),
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
            "dynamic": {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in sorted(facts.raw_linears)},
        }

    def extra_files(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        return {"quantize_config.json": self.config(specs, facts)}

    def runtimes(self, specs: Sequence[Spec], facts: Facts) -> dict[str, str]:
        bits = _int(specs[0]).bits
        wide = "yes" if bits in (4, 8) else "no: 4 or 8 bits only"
        return {
            "transformers": "yes, with optimum and gptqmodel installed",
            "gptqmodel": "yes",
            "vllm": wide,
            "sglang": wide,
        }


def _int(spec: Spec) -> IntGrid:
    if not isinstance(spec.grid, IntGrid):
        raise TypeError(f"{spec.target.name}: gptq holds integer grids only")
    return spec.grid


def _refusal(spec: Spec) -> str | None:
    target, grid = spec.target, _int(spec)
    rows, columns = target.shape
    if target.kind == "embedding":
        return f"gptq holds linear layers only, not the embedding {target.name}; leave it out of --targets"
    if not grid.symmetric:
        return "gptq v1 cannot store asymmetric zero points; drop --asymmetric or use --format compressed-tensors"
    if grid.bits not in BITS:
        return f"gptq takes bits 2, 3, 4 or 8, not {grid.bits}; use --format compressed-tensors"
    if grid.group_size not in (None, *GROUP_SIZES):
        sizes = ", ".join(map(str, GROUP_SIZES))
        return f"gptq takes a group_size of {sizes} or per channel, not {grid.group_size}"
    if rows % 32 or columns % 32:
        return (
            f"gptq needs dimensions divisible by 32 and {target.name} is {rows} x {columns}; "
            "use --format compressed-tensors"
        )
    return None
