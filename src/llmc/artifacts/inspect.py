"""`inspect`: what is inside a model folder, whoever wrote it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.encodings.coding.coded_head import KINDS
from llmc.errors import CheckpointError
from llmc.files.manifest import read_manifest
from llmc.formats.coded_files import is_coded
from llmc.formats.read import Packed, describe
from llmc.models.config import code_in, read_config
from llmc.models.hub import resolve_model
from llmc.models.tensors import Stored, stored
from llmc.public import public
from llmc.results import Table, size


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        container: `quant_method` of its config, or `dense`.
        layers: one dict per tensor that is a matrix: name, encoding, shape, bits_per_weight, bytes, snr_db (or None).
        other_bytes: of the tensors that are not matrices.
        manifest: what `llmc.json` says about the run, when there is one.
        origin: what it was made from, or why that is unknown.
        refused: why the verbs that open the model will not, where its config asks for code; else "".
    """

    name: str
    container: str
    weight_bytes: int
    bits_per_weight: float
    layers: tuple[dict[str, Any], ...]
    other_bytes: int
    manifest: dict[str, Any] | None
    origin: str = ""
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "format": self.container,
            "weight_bytes": self.weight_bytes,
            "bits_per_weight": self.bits_per_weight,
            "other_bytes": self.other_bytes,
            "layers": list(self.layers),
            "manifest": self.manifest,
            "refused": self.refused,
        }

    def tables(self) -> list[Table]:
        head = (
            ("format", self.container),
            ("weight files", size(self.weight_bytes)),
            ("bits/weight, model", f"{self.bits_per_weight:.3f}"),
            ("made from", self.origin),
            *((("other verbs refuse it", self.refused),) if self.refused else ()),
        )
        rows = tuple(
            (
                layer["name"],
                layer["encoding"],
                " x ".join(map(str, layer["shape"])),
                f"{layer['bits_per_weight']:.3f}",
                "" if layer["snr_db"] is None else f"{layer['snr_db']:.2f}",
            )
            for layer in self.layers
        )
        columns = ("matrix", "encoding", "shape", "bits/weight", "SNR dB")
        return [
            Table(self.name, ("what", ""), head),
            Table("Encodings", *_by_encoding(self.layers)),
            Table("Matrices", columns, rows),
        ]


@public()
def inspect(folder: str | Path) -> Inspection:
    """Read the headers, the config and, where there is one, the manifest of a model folder or Hub id.

    Raises CheckpointError when the folder cannot be read.
    """
    path = resolve_model(str(folder))
    config = read_config(path) if not is_coded(path) or (path / "config.json").is_file() else {}
    tensors = stored(path, config)
    manifest, origin = _origin(path)
    measured = {row["target"]: row.get("snr_db") for row in (manifest or {}).get("targets", [])}
    layers = [
        _layer(p.name, _described(tensors, p), list(p.shape), tensors.bytes_of(p), p.numel, measured.get(p.name))
        for p in tensors.packed.values()
    ]
    other = 0
    for name, entry in tensors.plain.items():
        if len(entry.shape) < 2:
            other += tensors.sizes[name]
            continue
        stem = name.removesuffix(".weight")
        kind = tensors.coded.head(name).described if tensors.coded else entry.dtype_name
        layers.append(_layer(stem, kind, list(entry.shape), tensors.sizes[name], entry.numel, measured.get(stem)))
    few = sum(entry.numel for entry in tensors.plain.values() if len(entry.shape) < 2)
    method = config.get("quantization_config") or {}
    return Inspection(
        name=path.name,
        container="llmc" if tensors.coded else str(method.get("quant_method", "dense")),
        weight_bytes=tensors.weight_bytes,
        bits_per_weight=8 * sum(tensors.sizes.values()) / max(sum(layer["elements"] for layer in layers) + few, 1),
        layers=tuple(sorted(layers, key=lambda layer: str(layer["name"]))),
        other_bytes=other,
        manifest=_summary(manifest),
        origin=origin,
        refused=(code_in(config) or ("", ""))[0],
    )


def _described(tensors: Stored, packed: Packed) -> str:
    """An encoding in words, and how its codes are coded where they are."""
    head = tensors.coded.head(packed.codes.name) if tensors.coded else None
    return describe(packed) + (f", {KINDS[head.kind]}" if head else "")


def _origin(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest, None where it is no use, and what its folder was made from."""
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return None, f"unknown: {error.message}"
    return manifest, "unknown: no llmc.json" if manifest is None else manifest.get("base_model", "unknown")


def _summary(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    return {k: manifest.get(k) for k in ("base_model", "format", "llmc", "recipe", "sizes")}


def _layer(name: str, encoding: str, shape: list[int], size: int, elements: int, snr: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "encoding": encoding,
        "shape": shape,
        "bytes": size,
        "elements": elements,
        "bits_per_weight": 8 * size / max(elements, 1),
        "snr_db": snr,
    }


def _by_encoding(layers: tuple[dict[str, Any], ...]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for layer in layers:
        groups[layer["encoding"]].append(layer)
    rows = []
    for encoding, members in groups.items():
        size, elements = sum(m["bytes"] for m in members), sum(m["elements"] for m in members)
        rows.append((encoding, str(len(members)), f"{size:,}", f"{8 * size / max(elements, 1):.3f}"))
    return ("encoding", "matrices", "bytes", "bits/weight"), tuple(rows)
