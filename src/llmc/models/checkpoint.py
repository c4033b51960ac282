"""Read side: a Hugging Face folder as Targets and blocks, one block in memory at a time.

Only this file makes Targets. Nothing from the folder is executed; weights are safetensors only.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError, UnsupportedError
from llmc.files.manifest import read_manifest
from llmc.files.safetensors import TensorEntry, load, read_folder
from llmc.formats.coded_files import CodedTensors, held_config, is_coded
from llmc.formats.read import READABLE, Packed, dense_entry, refuse_undecodable
from llmc.late import nn, torch
from llmc.models.config import open_config, safe_config
from llmc.models.skeleton import Group, Skeleton
from llmc.models.tensors import encoded_parts
from llmc.targets import InputPoint, Target

FUSED = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "w1": "gate_up",
    "w3": "gate_up",
}


class Checkpoint:
    """A model folder, read lazily.

    Args:
        folder: a local folder with config.json and safetensors.
        encoded: accept a folder whose matrices are stored encoded, and decode them as they are read.

    Raises CheckpointError for anything that cannot be read as it should be.
    """

    def __init__(self, folder: Path, *, encoded: bool = False) -> None:
        self.folder = folder
        self.original: Checkpoint | None = None  # what this is an edited view of
        self._mark = ""
        self.config_dict = safe_config(folder)
        if not encoded:
            refuse_encoded(self.config_dict, folder)
        self.coded = CodedTensors(folder) if encoded and is_coded(folder) else None
        entries = self.coded.dense_entries() if self.coded else read_folder(folder)
        self.packed: dict[str, Packed] = {}
        self.turned: set[str] = set()  # encoded matrices that are transposed in a plain checkpoint
        self.read = self.coded.read if self.coded else load
        if encoded:
            entries = self._unpack_entries(entries)
        self.entries = entries
        _check_sizes(self.config_dict, len(self.entries), folder)
        self.skeleton = Skeleton(_dense_config(folder), self.entries, folder.name)
        self.duplicates = self._duplicates()

    def edited(self, entries: Mapping[str, TensorEntry], mark: str) -> Checkpoint:
        """The same model with other values for some tensors, of the same dtype and shape.

        Args:
            entries: name on disk -> where its values lie.
            mark: what they depend on, for `fingerprint`.
        """
        sizes, other = self.file_bytes, copy.copy(self)
        other.entries = {**self.entries, **entries}
        other.__dict__["file_bytes"] = sizes
        other.original = self.original or self
        other._mark = hashlib.sha256(f"{self.fingerprint()} {mark}".encode()).hexdigest()
        return other

    def own(self, name: str) -> torch.Tensor | None:
        """The tensor `name` of the original model where this one has another, else None."""
        first = self.original
        return None if first is None or first.entries[name] == self.entries[name] else first.tensor(name)

    @property
    def model(self) -> Any:
        return self.skeleton.model

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that holds most of the weights."""
        count: dict[torch.dtype, int] = defaultdict(int)
        for entry in self.entries.values():
            count[entry.dtype] += entry.numel
        return max(count, key=lambda d: count[d])

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of the weight files, headers included."""
        return sum(file.stat().st_size for file in {entry.file for entry in self.entries.values()})

    @property
    def config_dtype(self) -> torch.dtype:
        """The dtype that config.json names; that of most weights when it names none."""
        name = self.config_dict.get("dtype") or self.config_dict.get("torch_dtype")
        found = getattr(torch, str(name), None)
        return found if isinstance(found, torch.dtype) else self.dtype

    @cached_property
    def stored(self) -> list[str]:
        """Names on disk in conversion order, each tied tensor once, without buffers that the model computes."""
        drop = {*self.duplicates, *self.skeleton.computed, *self.skeleton.leftover}
        return [n for n in self.entries if n not in drop]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a copy of the weights leaves out, and what it keeps that the model does not use."""
        kind = type(self.model).__name__
        found = {
            "left out, since the model computes it itself": self.skeleton.computed,
            f"left out, since {kind} has no use for scales of a quantization that is gone": self.skeleton.leftover,
            f"kept as it is, though {kind} of transformers has no place for it": self.skeleton.extra,
        }
        return tuple(
            f"{what}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for what, names in found.items()
            if names
        )

    @cached_property
    def targets(self) -> list[Target]:
        """Every matrix a method may be asked to compress, in the order blocks run."""
        order = {b: i for i, b in enumerate(self.skeleton.blocks)}
        drop = set(self.duplicates)
        found = [
            target for group in self.skeleton.groups for target in self._targets_of(group) if target.tensor not in drop
        ]
        return sorted(found, key=lambda t: order.get(t.block or "", len(order) if t.kind != "embedding" else -1))

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name` as stored, or as decoded."""
        packed = self.packed.get(name)
        if packed is None:
            return self.read(self.entries[name])
        values = packed.decode()
        return values.t().contiguous() if name in self.turned else values

    def matrix(self, target: Target) -> torch.Tensor:
        """The Target's weight `[out_features, in_features]` in its stored dtype."""
        tensor = self.tensor(target.tensor)
        return tensor.t().contiguous() if target.transposed else tensor

    def fingerprint(self) -> str:
        """SHA-256 over config, names, dtypes, shapes, sizes and times of the weights: what a resume checks."""
        if self._mark:
            return self._mark
        digest = hashlib.sha256(json.dumps(self.config_dict, sort_keys=True).encode())
        for name, entry in sorted(self.entries.items()):
            stat = entry.file.stat()
            digest.update(
                repr((name, str(entry.dtype), entry.shape, entry.start, stat.st_size, stat.st_mtime_ns)).encode()
            )
        return digest.hexdigest()

    def fill(
        self, keys: Iterable[str], dtype: torch.dtype, device: str, replaced: Callable[[str], torch.Tensor | None]
    ) -> None:
        """Give the parameters and buffers `keys` their values, in `dtype`.

        `replaced(name on disk)` may hand in other values than the file's (a decoded Target, as on disk).
        """
        wanted = {self._owner(key) for key in keys}
        groups = {id(g): g for g in (self.skeleton.group_of.get(k) for k in wanted) if g is not None}
        for group in groups.values():
            tensors = {}
            for name, _ in group.sources:
                other = replaced(name)
                tensors[name] = (self.tensor(name) if other is None else other).to(device)
            for key, value in group.convert(tensors, self.model).items():
                for path in self.skeleton.ties.get(key, (key,)):
                    assign(self.model, path, value.to(dtype) if value.is_floating_point() else value)

    def clear(self, keys: Iterable[str]) -> None:
        """Send parameters back to the meta device."""
        for key in keys:
            parameter = self.model.get_parameter(key)
            assign(self.model, key, torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))

    def _owner(self, key: str) -> str:
        """The path under which a tied parameter is on disk."""
        return next((k for k in self.skeleton.ties.get(key, (key,)) if k in self.skeleton.group_of), key)

    def _duplicates(self) -> list[str]:
        """Names on disk that repeat a tied tensor byte for byte: read, counted and written once.

        Tied parameters that are stored with different values are not tied: transformers loads them so.
        """
        out = []
        for union in sorted(set(self.skeleton.ties.values())):
            names = {k: self.skeleton.group_of[k].sources[0][0] for k in union if k in self.skeleton.group_of}
            first = min(names.values(), key=lambda n: "embed" not in n, default="")
            others = [k for k, n in names.items() if n != first and not self._same(first, n)]
            out += [n for k, n in names.items() if n != first and k not in others]
            if others:
                self.skeleton.untie(others)
        return out

    def _same(self, one: str, other: str) -> bool:
        first, second = self.entries[one], self.entries[other]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        return torch.equal(self.tensor(one).view(-1).view(torch.uint8), self.tensor(other).view(-1).view(torch.uint8))

    def _unpack_entries(self, entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
        """Entries as a plain checkpoint would have them; `packed` says how some of them are stored."""
        config = held_config(self.config_dict)
        found, plain = encoded_parts(config, entries, self.coded)
        if self.coded is not None:
            refuse_undecodable(config, entries, found)
        manifest = read_manifest(self.folder) or {}
        self.turned = {row["tensor"] for row in manifest.get("targets", []) if row.get("transposed")}
        self.packed = {f"{p.name}.weight": p for p in found.values()}
        return plain | {name: dense_entry(p, name in self.turned) for name, p in self.packed.items()}

    def _targets_of(self, group: Group) -> list[Target]:
        key = group.keys[0]
        path, _, parameter = key.rpartition(".")
        module = self.skeleton.modules.get(path)
        if module is None or (parameter != "weight" and not _holds_experts(module, parameter)):
            return []
        if _holds_experts(module, parameter):
            return self._experts_of(group, path, parameter, module)
        kind = _kind(module)
        if kind is None:
            return []
        point = None if kind == "embedding" else InputPoint(path)
        return [
            target
            for name, _ in group.sources
            if (target := self._target(name, key, kind, point, _columns(module, kind))) is not None
        ]

    def _experts_of(self, group: Group, path: str, parameter: str, module: Any) -> list[Target]:
        shape = getattr(module, parameter).shape  # [experts, out, in], or transposed
        columns = shape[1] if getattr(module, "is_transposed", False) else shape[2]
        seen: dict[str | None, int] = defaultdict(int)
        out = []
        for name, pattern in group.sources:
            point = InputPoint(path, seen[pattern], parameter)
            seen[pattern] += 1
            target = self._target(name, group.keys[0], "expert", point, columns)
            if target is not None and pattern is not None and "*" in pattern:
                out.append(target)
        return out

    def _target(self, name: str, key: str, kind: str, point: InputPoint | None, columns: int) -> Target | None:
        entry = self.entries[name]
        if len(entry.shape) != 2 or not entry.numel or not name.endswith("weight") or not entry.dtype.is_floating_point:
            return None
        transposed = kind == "conv1d" or entry.shape[1] != columns
        shape = (entry.shape[1], entry.shape[0]) if transposed else (entry.shape[0], entry.shape[1])
        if shape[1] != columns:
            return None
        stem = name.removesuffix(".weight")
        return Target(
            name=stem,
            tensor=name,
            shape=shape,
            dtype=entry.dtype,
            transposed=transposed,
            kind=kind,
            block=self.skeleton.block_of(key),
            point=point,
            tie=self.skeleton.ties.get(key, ()),
            fuse=_fuse(stem, kind),
        )


def refuse_encoded(config: dict[str, Any], folder: Path) -> None:
    """Refuse checkpoints that are quantized or coded already."""
    if "quantization_config" not in config:
        return
    found = config["quantization_config"]
    method = found.get("quant_method", "unknown") if isinstance(found, dict) else "unknown"
    fix = "start from the original weights"
    if method in READABLE:
        fix += ", or turn it into plain ones with llmc export --format dense"
    raise UnsupportedError(
        f"the checkpoint is {'coded' if method == 'llmc' else 'quantized'} already ({method})",
        where=folder.name,
        fix="turn it into plain weights with llmc decompress" if method == "llmc" else fix,
    )


def _check_sizes(config: dict[str, Any], tensors: int, folder: Path) -> None:
    """No config may ask for more layers than there are tensors, or for sizes no model has."""
    sections = [config, *(v for v in config.values() if isinstance(v, dict))]
    for section in sections:
        for key, value in section.items():
            bounds = _bounds(key, value, tensors)
            if bounds is None or value is None or isinstance(value, list):
                continue
            if type(value) is not int or not bounds[0] <= value <= bounds[1]:
                low, high = bounds
                raise CheckpointError(
                    f"config.json: {key} is {json.dumps(value)[:40]}, expected an integer from {low} to {high}",
                    where=folder.name,
                )


def _bounds(key: str, value: Any, tensors: int) -> tuple[int, int] | None:
    """Least and most of a number in a config, None where any will do."""
    if re.fullmatch(r"(num_(hidden_)?layers|n_layers?|(encoder|decoder)_layers)", key):
        return 1, tensors
    if re.fullmatch(r"(hidden_size|intermediate_size|vocab_size|num_attention_heads|d_model|d_ff|n_embd)", key):
        return 1, 1 << 27
    if type(value) is int and re.search("layers|blocks|experts|depth", key):  # a model may make a module of each
        return -1, max(tensors, 4096)
    return None


def _dense_config(folder: Path) -> Any:
    config = open_config(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def assign(model: nn.Module, key: str, value: torch.Tensor) -> None:
    """Put `value` in the place of the parameter or buffer `key`."""
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[name] = value


def _holds_experts(module: nn.Module, parameter: str) -> bool:
    value = getattr(module, parameter, None)
    return hasattr(module, "is_transposed") and isinstance(value, torch.Tensor) and value.ndim == 3


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "conv1d" if type(module).__name__ == "Conv1D" else None


def _columns(module: Any, kind: str) -> int:
    if kind == "linear":
        return int(module.in_features)
    return int(module.weight.shape[1] if kind == "embedding" else module.weight.shape[0])


def _fuse(stem: str, kind: str) -> str | None:
    """Inference engines merge q/k/v, gate/up and all experts of a layer."""
    parent, _, leaf = stem.rpartition(".")
    if kind == "expert":
        return parent.rpartition(".")[0] + ".experts"
    return f"{parent}.{FUSED[leaf]}" if leaf in FUSED else None
