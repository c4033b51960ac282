"""compressed-tensors `pack-quantized`: what transformers, vLLM and SGLang read (vllm-project/compressed-tensors 0.20).

Per matrix: `weight_packed` int32, one LSB-first stream per row; `weight_scale` in the model's dtype; `weight_shape`
int64; when asymmetric `weight_zero_point`, packed along the rows. 3, 5, 6 and 7 bits need a reader of 0.18 or later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.encodings.coding.packing import pack_rows, unpack_rows, words_per_row
from llmc.encodings.encoded import Encoded, Plane, group_count
from llmc.encodings.int_grid import IntGrid
from llmc.formats.container import Facts, Layout, Spec, one_grid_kind, prefix_of
from llmc.late import torch
from llmc.targets import Target

VERSION = "0.20.0"
EXPERTS = r"re:.*\.experts\.\d+\..*"  # transformers finds the scheme of routed experts by such a target only

Scheme = tuple[int, int | None, bool]  # bits, group_size, symmetric


@dataclass(frozen=True)
class CompressedTensors:
    name: ClassVar[str] = "compressed-tensors"
    kernel: ClassVar[str] = "compressed_tensors"
    coded: ClassVar[bool] = False

    def refusals(self, specs: Sequence[Spec], facts: Facts) -> list[str]:
        out = one_grid_kind(specs, IntGrid, self.name)
        if out:
            return out
        several = len(_schemes(specs)) > 1
        reasons = (_refusal(spec, several) for spec in specs)
        return [reason for reason in reasons if reason][:1]  # one line is enough: the rest is alike

    def scale_dtype(self, target: Target) -> str | None:
        return str(target.dtype).removeprefix("torch.")

    def layout(self, spec: Spec) -> Layout:
        grid, (rows, columns) = _int(spec), spec.target.shape
        at = prefix_of(spec.target)
        groups = group_count(columns, grid.group_size)
        layout: Layout = {
            at + "weight_packed": (torch.int32, (rows, words_per_row(columns, grid.bits))),
            at + "weight_scale": (spec.target.dtype, (rows, groups)),
            at + "weight_shape": (torch.int64, (2,)),
        }
        if not grid.symmetric:
            layout[at + "weight_zero_point"] = (torch.int32, (words_per_row(rows, grid.bits), groups))
        return layout

    def pack(self, spec: Spec, encoded: Encoded) -> dict[str, torch.Tensor]:
        grid, at = _int(spec), prefix_of(spec.target)
        out = {
            at + "weight_packed": pack_rows(encoded.codes, grid.bits),
            at + "weight_scale": encoded.params["scale"].to(spec.target.dtype),
            at + "weight_shape": torch.tensor(encoded.shape, dtype=torch.int64),
        }
        if not grid.symmetric:
            along_rows = pack_rows(encoded.params["zero_point"].t().contiguous(), grid.bits)
            out[at + "weight_zero_point"] = along_rows.t().contiguous()
        return out

    def unpack(self, spec: Spec, tensors: dict[str, torch.Tensor]) -> Encoded:
        grid, at = _int(spec), prefix_of(spec.target)
        rows, columns = spec.target.shape
        params = {"scale": tensors[at + "weight_scale"]}
        if not grid.symmetric:
            packed = tensors[at + "weight_zero_point"].t().contiguous()
            params["zero_point"] = unpack_rows(packed, grid.bits, rows).t().contiguous()
        codes = unpack_rows(tensors[at + "weight_packed"], grid.bits, columns)
        return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, (rows, columns), spec.target.dtype)

    def decoded_dtype(self, target: Target) -> torch.dtype:
        return target.dtype

    def config(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        schemes = _schemes(specs)
        groups = {
            f"group_{i}": _group(scheme, _targets(members, schemes))
            for i, (scheme, members) in enumerate(schemes.items())
        }
        return {
            "config_groups": groups,
            "format": "pack-quantized",
            "global_compression_ratio": None,
            "ignore": sorted(facts.raw_linears),
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "version": VERSION,
        }

    def extra_files(self, specs: Sequence[Spec], facts: Facts) -> dict[str, Any]:
        return {}

    def runtimes(self, specs: Sequence[Spec], facts: Facts) -> dict[str, str]:
        return {
            "transformers": _transformers(specs, facts),
            "vllm": _vllm(specs, facts),
            "sglang": _sglang(specs),
        }


def _int(spec: Spec) -> IntGrid:
    if not isinstance(spec.grid, IntGrid):
        raise TypeError(f"{spec.target.name}: compressed-tensors holds integer grids only")
    return spec.grid


def _refusal(spec: Spec, several: bool) -> str | None:
    target = spec.target
    if target.kind == "conv1d":
        return (
            f"compressed-tensors readers load Linear modules only and {target.name} is a Conv1D; "
            "use --format dense or gptq"
        )
    if target.kind == "embedding" and several:
        return (
            f"the packed embedding {target.name} loads with dequantize=True only, which takes one bits and group_size "
            "for the whole model; leave it out of --targets"
        )
    if target.kind == "expert" and not _int(spec).symmetric:
        return f"no compressed-tensors reader loads asymmetric routed experts ({target.name}); drop --asymmetric"
    return None


def _schemes(specs: Sequence[Spec]) -> dict[Scheme, list[Spec]]:
    """The Targets of every scheme, in the order of the config groups."""
    out: dict[Scheme, list[Spec]] = {}
    for spec in specs:
        grid = _int(spec)
        out.setdefault((grid.bits, grid.group_size, grid.symmetric), []).append(spec)
    return dict(sorted(out.items(), key=lambda item: str(item[0])))


def _targets(members: Sequence[Spec], schemes: dict[Scheme, list[Spec]]) -> list[str]:
    """What a config group names: the class if it is the only group, else modules; experts of one scheme by pattern."""
    if len(schemes) == 1:
        return ["Linear", *(s.target.name for s in members if s.target.kind == "embedding")]
    expert_groups = [specs for specs in schemes.values() if any(s.target.kind == "expert" for s in specs)]
    if len(expert_groups) > 1 or members not in expert_groups:
        return [s.target.name for s in members]
    return [*(s.target.name for s in members if s.target.kind != "expert"), EXPERTS]


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    bits, group_size, symmetric = scheme
    weights = {
        "dynamic": False,
        "group_size": group_size,
        "num_bits": bits,
        "strategy": "channel" if group_size is None else "group",
        "symmetric": symmetric,
        "type": "int",
    }
    return {
        "format": "pack-quantized",
        "input_activations": None,
        "output_activations": None,
        "targets": targets,
        "weights": weights,
    }


def _transformers(specs: Sequence[Spec], facts: Facts) -> str:
    """What transformers 5.23 does with these, by default or with its one flag; tested case by case."""
    no = _experts_refused(specs, facts)
    if no:
        return f"no: {no}"
    reader = "" if all(_int(s).bits in (2, 4, 8) for s in specs) else ", compressed-tensors >= 0.18"
    dense = [s for s in specs if s.target.kind != "expert"]
    reasons = {
        "an asymmetric scheme": any(not _int(s).symmetric for s in dense),
        "a packed embedding": any(s.target.kind == "embedding" for s in dense),
        "this architecture": facts.initializes_by_name,
    }
    needs = [reason for reason, holds in reasons.items() if holds]
    several = len(_schemes(dense)) > 1
    if not needs:
        return "yes" + (", without dequantize=True" if several else "") + reader
    if several:
        return f"no: {needs[0]} needs dequantize=True, which takes one scheme only"
    return "yes, with CompressedTensorsConfig(dequantize=True)" + reader


def _experts_refused(specs: Sequence[Spec], facts: Facts) -> str | None:
    """Why transformers cannot merge the routed experts, if it cannot: it decompresses them all, by one scheme."""
    raw = [name for name in facts.raw_linears if re.fullmatch(EXPERTS.removeprefix("re:"), name)]
    if raw:
        return f"it loads routed experts only when every one is packed, and {raw[0]} is not"
    if len(_schemes([s for s in specs if s.target.kind == "expert"])) > 1:
        return "it takes one scheme for all routed experts"
    return None


def _vllm(specs: Sequence[Spec], facts: Facts) -> str:
    grids = {_int(s) for s in specs}
    if any(not g.symmetric and g.bits not in (4, 8) for g in grids):
        return "no: zero points at 4 or 8 bits only"
    scheme = {s.target.name: _int(s) for s in specs}
    for group in facts.fuse_groups:
        if len({scheme.get(name) for name in group}) > 1:
            return f"no: {', '.join(group)} are one matrix there and need one scheme"
    for spec in specs:
        if spec.target.kind == "embedding":
            return f"unlikely: few of its models take a packed embedding ({spec.target.name})"
    if any(g.group_size not in (None, 32, 64, 128) for g in grids):
        return "unlikely: kernels take group_size 32, 64, 128 or channel"
    since = ", since vllm#37291 (packed lm_head)" if _packs_head(specs) else ""
    return f"yes, tensor parallel up to {_tensor_parallel_limit(specs)}{since}"


def _tensor_parallel_limit(specs: Sequence[Spec]) -> int:
    """Largest power of two that splits every input dimension into whole groups and multiples of 128 (Marlin)."""
    limit = 1
    while limit < 64 and all(
        s.target.shape[1] % (limit * 2) == 0
        and (s.target.shape[1] // (limit * 2)) % max(_int(s).group_size or 1, 128) == 0
        for s in specs
    ):
        limit *= 2
    return limit


def _sglang(specs: Sequence[Spec]) -> str:
    if any(_int(s).bits not in (4, 8) for s in specs):
        return "no: 4 or 8 bits only"
    for spec in specs:
        if spec.target.kind == "embedding":
            return f"no: it does not read the packed embedding {spec.target.name}"
    return "yes, since sglang#35228 (packed lm_head)" if _packs_head(specs) else "yes"


def _packs_head(specs: Sequence[Spec]) -> bool:
    return any(s.target.kind == "linear" and s.target.name.endswith("lm_head") for s in specs)
