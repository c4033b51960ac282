"""The tensors of a model folder as they lie in it, coded without loss or not, and the encoded matrices among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.encodings.coding.coded_head import TRELLIS
from llmc.files.safetensors import TensorEntry, load, read_folder
from llmc.formats.coded_files import CodedTensors, held_config, is_coded
from llmc.formats.read import READABLE, Packed, Read, split
from llmc.late import torch


@dataclass(frozen=True)
class Stored:
    """What a folder holds.

    Attributes:
        entries: name -> dtype and shape of the tensor; of a coded one those of what it decodes to.
        sizes: name -> bytes on disk.
        packed, plain: the encoded matrices, and the other tensors.
        read: gives the tensor of an entry.
        weight_bytes: of the files, headers included.
        coded: what decodes the tensors of a coded folder.
    """

    entries: dict[str, TensorEntry]
    sizes: dict[str, int]
    packed: dict[str, Packed]
    plain: dict[str, TensorEntry]
    read: Read
    weight_bytes: int
    coded: CodedTensors | None = None

    def decode(self, row: Mapping[str, Any]) -> torch.Tensor:
        """The matrix `[out, in]` of a manifest's row, by its reference kernel. Raises KeyError when it is not there."""
        if row["target"] in self.packed:
            return self.packed[row["target"]].decode()
        tensor = self.read(self.entries[row["tensor"]])
        return tensor.t().contiguous() if row["transposed"] else tensor

    @property
    def trellises(self) -> list[TensorEntry]:
        """Those of `plain` that are matrices encoded by a trellis."""
        coded = self.coded
        return [] if coded is None else [e for name, e in self.plain.items() if coded.head(name).kind == TRELLIS]

    def bytes_of(self, packed: Packed) -> int:
        """Bytes on disk of an encoded matrix."""
        return sum(self.sizes[entry.name] for entry in packed.parts.values())


def encoded_parts(
    config: Mapping[str, Any], entries: dict[str, TensorEntry], coded: CodedTensors | None
) -> tuple[dict[str, Packed], dict[str, TensorEntry]]:
    """The encoded matrices among `entries` and the other tensors; of a coded folder, where its method is known.

    Args:
        config: as `held_config` gives it.
    """
    known = coded is None or (config.get("quantization_config") or {}).get("quant_method") in READABLE
    return split(entries, config, coded.read if coded else load) if known else ({}, entries)


def stored(path: Path, config: Mapping[str, Any]) -> Stored:
    """The tensors of the folder `path` with this config.json. Raises CheckpointError where they cannot be read."""
    coded = CodedTensors(path) if is_coded(path) else None
    on_disk = coded.entries if coded else read_folder(path)
    entries = coded.dense_entries() if coded else on_disk
    read = coded.read if coded else load
    packed, plain = encoded_parts(held_config(config), entries, coded)
    sizes = {name: entry.nbytes for name, entry in on_disk.items()}
    weight_bytes = sum(file.stat().st_size for file in {entry.file for entry in on_disk.values()})
    return Stored(entries, sizes, packed, plain, read, weight_bytes, coded)
