"""Where every byte of the weight files goes, before anything is computed: the one function of sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from llmc.files.header import nbytes
from llmc.files.safetensors import write_header
from llmc.formats.coded_files import coded_name
from llmc.late import torch

OVERHEAD = 64  # more than the head of a tensor that was not made smaller, its shape left out


SHARD = 5_000_000_000
METADATA = {"format": "pt"}

Shapes: TypeAlias = "Mapping[str, tuple[torch.dtype, tuple[int, ...]]]"


@dataclass(frozen=True)
class Slot:
    """The place of one tensor: bytes `[start, stop)` of `file`."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a folder: sizes and headers by file, slots by tensor name.

    `coded`: tensors are coded ones, whose sizes are a plan until they are written.
    """

    sizes: dict[str, int]
    headers: dict[str, bytes]
    slots: dict[str, Slot]
    coded: bool = False

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def index(self) -> dict[str, object] | None:
        """The content of the index, or None for a single file."""
        if len(self.sizes) == 1:
            return None
        payload = sum(s.stop - s.start for s in self.slots.values())
        return {
            "metadata": {"total_size": payload},
            "weight_map": {name: slot.file for name, slot in sorted(self.slots.items())},
        }


def arrange(tensors: Shapes, shard_bytes: int = SHARD) -> WeightFiles:
    """Lay tensors out in shards of at most `shard_bytes` (a larger tensor has one to itself), in the given order.

    Inside a shard wider dtypes come first, so that every tensor is aligned to its element size.
    """
    shards: list[list[str]] = [[]]
    used = 0
    for name, (dtype, shape) in tensors.items():
        size = nbytes(dtype, shape)
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    sizes, headers, slots = {}, {}, {}
    for i, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        names.sort(key=lambda n: (-tensors[n][0].itemsize, n))
        header, offsets = write_header([(n, *tensors[n]) for n in names], METADATA)
        headers[file] = header
        for name in names:
            slots[name] = Slot(file, *tensors[name], *offsets[name])
        sizes[file] = max([len(header), *(slots[n].stop for n in names)])
    return WeightFiles(sizes, headers, slots)


def coded_files(files: WeightFiles) -> WeightFiles:
    """The same files under the names that coded tensors have: `model.llmc.safetensors`."""
    names = {file: file.removesuffix(".safetensors") + ".llmc.safetensors" for file in files.sizes}
    return WeightFiles(
        {names[file]: size for file, size in files.sizes.items()},
        {names[file]: header for file, header in files.headers.items()},
        {name: replace(slot, file=names[slot.file]) for name, slot in files.slots.items()},
        coded=True,
    )


def at_most(files: WeightFiles) -> dict[str, int]:
    """Coded file -> bytes that the coding of plain files cannot exceed."""
    heads = dict.fromkeys(files.sizes, 512)
    for slot in files.slots.values():
        heads[slot.file] += OVERHEAD + 10 * len(slot.shape)
    return {coded_name(name): size + 3 * len(files.headers[name]) + heads[name] for name, size in files.sizes.items()}
