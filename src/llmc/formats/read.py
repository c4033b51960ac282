"""Matrices that a folder stores encoded, whoever wrote it: found by their names, decoded by the reference kernels."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from llmc.encodings.coding.packing import words_per_row
from llmc.errors import CheckpointError, UnsupportedError
from llmc.files.header import DTYPES, nbytes
from llmc.files.safetensors import KIND_OF, TensorEntry, load, load_bytes
from llmc.files.strict_json import misfit
from llmc.late import torch

READABLE = ("compressed-tensors", "gptq", "bitsandbytes")
"""Quantization methods among whose tensors encoded matrices are looked for in a coded folder."""
QUANT_STATE = {"shape": [int], "blocksize": int, "dtype": str}
Read: TypeAlias = "Callable[[TensorEntry], torch.Tensor]"
INTEGERS = {"U8": ("B", 1), "I32": ("i", 4), "I64": ("q", 8)}
"""Kind -> its code in `struct`, and bytes."""

# The tensor that gives an encoding away -> (container, its kernel, all local names)
MARKS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "weight_packed": (
        "compressed-tensors",
        "compressed_tensors",
        ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"),
    ),
    "qweight": ("gptq", "gptq", ("qweight", "qzeros", "scales", "g_idx")),
    "weight.quant_state.bitsandbytes__nf4": (
        "bitsandbytes",
        "bitsandbytes",
        ("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"),
    ),
}


@dataclass(frozen=True)
class Packed:
    """One encoded matrix on disk.

    Attributes:
        name: its name without any ending.
        container: the standard it follows.
        kernel: the reference decoder, in `llmc.encodings.kernels`.
        parts: local name -> entry.
        shape: `(out_features, in_features)`.
        bits, group_size, symmetric: of its codes.
        kind: of the decoded values, as safetensors names dtypes.
        read: gives the tensor of an entry.
    """

    name: str
    container: str
    kernel: str
    parts: dict[str, TensorEntry]
    shape: tuple[int, int]
    bits: int
    group_size: int | None
    symmetric: bool
    kind: str
    read: Read = load

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]

    @property
    def stored_bytes(self) -> int:
        return sum(e.nbytes for e in self.parts.values())

    @property
    def codes(self) -> TensorEntry:
        """The entry of its codes, with their padding."""
        return next(self.parts[name] for name in ("weight_packed", "qweight", "weight") if name in self.parts)

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by local name."""
        return {name: self.read(entry) for name, entry in self.parts.items()}

    def decode(self) -> torch.Tensor:
        """The matrix `[out_features, in_features]`, by the reference kernel.

        Raises CheckpointError when the stored tensors contradict each other.
        """
        kernel: Any = import_module(f"llmc.encodings.kernels.{self.kernel}")
        try:
            values: torch.Tensor = kernel.dequantize(self.tensors(), self.bits)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise CheckpointError(f"does not decode: {' '.join(str(error).split())[:200]}", where=self.name) from error
        if tuple(values.shape) != self.shape:
            raise CheckpointError(f"decodes to {list(values.shape)}, not {list(self.shape)}", where=self.name)
        return values


def find_packed(
    entries: Mapping[str, TensorEntry], config: Mapping[str, Any] | None = None, read: Read = load
) -> dict[str, Packed]:
    """Name of a matrix -> how it is stored, for every encoded matrix among `entries`.

    Args:
        config: config.json; it settles the width of codes where few columns leave several possible.
        read: gives the tensor of an entry: those of a coded folder are decoded.

    Raises CheckpointError when an encoding lacks a tensor or its shapes contradict each other.
    """
    out = {}
    for full in entries:
        for mark in MARKS:
            if full.endswith("." + mark):
                name = full.removesuffix("." + mark)
                out[name] = _packed(name, mark, entries, declared_bits(config or {}, name), read)
    return out


def declared_bits(config: Mapping[str, Any], name: str) -> set[int]:
    """The widths that the compressed-tensors groups of config.json give matrix `name`: by name, else any other's.

    Patterns are not matched: a hostile one takes forever.
    """
    quantization = config.get("quantization_config")
    groups = quantization.get("config_groups") if isinstance(quantization, dict) else None
    named, other = set[int](), set[int]()
    for group in groups.values() if isinstance(groups, dict) else ():
        weights, targets = (group.get(k) if isinstance(group, dict) else None for k in ("weights", "targets"))
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
        if not isinstance(targets, list) or not isinstance(bits, int):
            continue
        (named if name in targets else other).add(bits)
    return named or other


def _packed(name: str, mark: str, entries: Mapping[str, TensorEntry], declared: set[int], read: Read) -> Packed:
    container, kernel, locals_ = MARKS[mark]
    parts = {local: entries[f"{name}.{local}"] for local in locals_ if f"{name}.{local}" in entries}
    missing = [local for local in locals_ if local not in parts and local != "weight_zero_point"]
    if missing:
        raise CheckpointError(f"the encoding lacks {missing[0]}", where=name, fix="download the model again")
    facts = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "bitsandbytes": _bitsandbytes}[container]
    try:
        shape, bits, groups, symmetric, kind = facts(parts, declared, read)
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"the encoding is damaged: {error}", where=name) from error
    group_size = None if groups == 1 else shape[1] // max(groups, 1)
    return Packed(name, container, kernel, parts, shape, bits, group_size, symmetric, kind, read)


Facts = tuple[tuple[int, int], int, int, bool, str]


def _compressed_tensors(parts: dict[str, TensorEntry], declared: set[int], read: Read) -> Facts:
    rows, words = parts["weight_packed"].shape
    stored = integers(parts["weight_shape"], read)
    if parts["weight_shape"].shape != (2,) or stored[0] != rows or not 0 < stored[1] <= 16 * words:
        raise ValueError(f"weight_shape says {stored}, weight_packed has {rows} rows of {words} words")
    scale = parts["weight_scale"]
    return (
        (rows, stored[1]),
        _bits(words, stored[1], declared),
        scale.shape[1],
        "weight_zero_point" not in parts,
        scale.kind,
    )


def _bits(words: int, columns: int, declared: set[int]) -> int:
    """The width of codes that take `words` words, the declared one if that fits.

    Padding makes no two widths alike from 32 columns on.
    """
    fits = [b for b in (4, 8, 2, 3, 5, 6, 7) if words_per_row(columns, b) == words]
    if not fits:
        raise ValueError(f"{words} words do not hold {columns} codes of 2 to 8 bits")
    return next((b for b in fits if b in declared), fits[0])


def _gptq(parts: dict[str, TensorEntry], declared: set[int], read: Read) -> Facts:
    groups, rows = parts["scales"].shape
    columns = parts["g_idx"].shape[0]
    bits = parts["qweight"].shape[0] * 32 // columns
    if not 2 <= bits <= 8:
        raise ValueError(f"qweight has {parts['qweight'].shape[0]} rows for {columns} columns")
    zeros = integers(parts["qzeros"], read, most=1)
    middle = (1 << (bits - 1)) - 1
    first = zeros[0] & ((1 << bits) - 1) if zeros else middle
    return (rows, columns), bits, groups, first == middle, parts["scales"].kind


def _bitsandbytes(parts: dict[str, TensorEntry], declared: set[int], read: Read) -> Facts:
    import json

    state = json.loads(bytes(integers(parts["weight.quant_state.bitsandbytes__nf4"], read)))
    wrong = misfit(state, QUANT_STATE, "quant_state")
    dtype = str(state["dtype"]) if wrong is None else ""
    if dtype not in KIND_OF or "float" not in dtype or state["blocksize"] < 1:
        raise ValueError(f"{wrong or 'quant_state'} is not what bitsandbytes writes")
    rows, columns = state["shape"]
    if parts["weight"].numel * 2 != rows * columns or rows < 1 or columns < 1:
        raise ValueError(f"quant_state says {rows} x {columns}, weight has {parts['weight'].numel} bytes")
    return (rows, columns), 4, max(1, columns // state["blocksize"]), True, KIND_OF[dtype]


def integers(entry: TensorEntry, read: Read, most: int = 1 << 20) -> list[int]:
    """The first numbers of a tensor of integers; where it lies in a file as it is, torch is not needed for it."""
    code, size = INTEGERS.get(entry.kind, ("", 0))
    if read is not load or not code:
        return [int(n) for n in read(entry).flatten()[:most].tolist()]
    return [n for (n,) in struct.iter_unpack(f"<{code}", load_bytes(entry, most * size))]


def split(
    entries: Mapping[str, TensorEntry], config: Mapping[str, Any], read: Read = load
) -> tuple[dict[str, Packed], dict[str, TensorEntry]]:
    """The encoded matrices of a folder and the tensors that stay as they are."""
    packed = find_packed(entries, config, read)
    used = {e.name for p in packed.values() for e in p.parts.values()}
    return packed, {name: e for name, e in entries.items() if name not in used}


def refuse_undecodable(
    config: Mapping[str, Any], entries: Mapping[str, TensorEntry], packed: Mapping[str, Packed]
) -> None:
    """Raise UnsupportedError where the weights of a quantized model are more than what `packed` decodes."""
    own = config.get("quantization_config")
    if not isinstance(own, dict) or not own:
        return
    method, reason = own.get("quant_method"), None
    names = {matrix.name: {entry.name for entry in matrix.parts.values()} for matrix in packed.values()}
    if not packed or own.get("checkpoint_format", "gptq") != "gptq":
        reason = f"its weights were quantized in a way that llmc does not decode ({method})"
    for name in entries if reason is None else ():
        stem, dot, local = name.rpartition(".")
        while dot and stem not in names:
            stem, dot, more = stem.rpartition(".")
            local = f"{more}.{local}"
        if dot and name not in names[stem] and local != "bias":
            reason = f"{name} belongs to an encoding that llmc does not decode ({method})"
            break
    if reason is None and method == "compressed-tensors" and _has_floats(own):
        reason = "some of its weights are quantized to floats"
    if reason is not None:
        raise UnsupportedError(reason, fix="turn it into what it was with llmc decompress")


def _has_floats(quantization: Mapping[str, Any]) -> bool:
    groups = quantization.get("config_groups")
    weights = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    return any(isinstance(own, dict) and own.get("type", "int") != "int" for own in weights)


def bits_by_encoding(packed: Mapping[str, Packed]) -> dict[str, float]:
    """Encoding -> stored bits per weight."""
    stored: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    for p in packed.values():
        key = describe(p)
        stored[key] += 8 * p.stored_bytes
        count[key] += p.numel
    return {key: stored[key] / count[key] for key in stored}


def describe(p: Packed) -> str:
    """An encoding in words: `int4 g128`, `int8 channel asymmetric`, `nf4 g64`."""
    kind = "nf" if p.container == "bitsandbytes" else "int"
    group = "channel" if p.group_size is None else f"g{p.group_size}"
    return f"{kind}{p.bits} {group}" + ("" if p.symmetric else " asymmetric")


def dense_entry(p: Packed, transposed: bool) -> TensorEntry:
    """The entry that the decoded matrix would have in a plain checkpoint; its file and offsets are those of a part."""
    first = next(iter(p.parts.values()))
    shape = (p.shape[1], p.shape[0]) if transposed else p.shape
    return TensorEntry(f"{p.name}.weight", p.kind, shape, first.file, 0, nbytes(p.dtype, shape))
