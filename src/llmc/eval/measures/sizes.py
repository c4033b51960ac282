"""What a model folder weighs: bytes of its weight files, and bits per weight of the model they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError, first_line
from llmc.late import torch
from llmc.models.config import open_config, safe_config, without_quantization
from llmc.models.tensors import Stored, stored


@dataclass(frozen=True)
class Sizes:
    """Sizes of a folder.

    Attributes:
        weight_bytes: of the weight files, headers included.
        stored_bits: of the tensors in them, headers left out.
        elements: weights of the model they represent, a tied tensor once.
        targeted_bits_per_weight: stored bits of the encoded matrices / their elements; None where none is encoded.
        overhead_bits_per_weight: what of these is not codes: scales, zero points, shapes, permutations.
    """

    weight_bytes: int
    stored_bits: int
    elements: int
    targeted_bits_per_weight: float | None = None
    overhead_bits_per_weight: float = 0.0

    @property
    def model_bits_per_weight(self) -> float:
        return self.stored_bits / self.elements

    @property
    def bits_per_weight(self) -> float:
        """Of the encoded matrices, or of the model where none is."""
        return self.model_bits_per_weight if self.targeted_bits_per_weight is None else self.targeted_bits_per_weight


def folder_sizes(folder: Path) -> Sizes:
    """Sizes of the model in `folder`. Raises CheckpointError where it holds no readable model."""
    tensors = stored(folder, safe_config(folder))
    return Sizes(
        weight_bytes=tensors.weight_bytes,
        stored_bits=8 * sum(tensors.sizes.values()),
        elements=represented_elements(folder),
        **_targeted(tensors),
    )


def represented_elements(folder: Path) -> int:
    """Number of weights of the model that `folder`'s config.json describes, whatever its storage; tied ones once.

    The model is built on the meta device, without memory and without weights.
    """
    import transformers

    config = open_config(folder)
    try:
        plain = without_quantization(config)
        kind: Any = getattr(transformers, (plain.architectures or ["AutoModel"])[0], transformers.AutoModel)
        build = kind._from_config if hasattr(kind, "_from_config") else kind.from_config
        with torch.device("meta"):
            model = build(plain)
    except MemoryError:
        raise
    except Exception as error:  # whatever each architecture raises
        raise CheckpointError(f"transformers cannot build it: {first_line(error)}", where=folder.name) from error
    return sum(parameter.numel() for parameter in model.parameters())


def _targeted(tensors: Stored) -> dict[str, float]:
    """What the encoded matrices take, by name of the field; empty where there are none."""
    packed = tensors.packed.values()
    trellises = tensors.trellises
    elements = sum(p.numel for p in packed) + sum(entry.numel for entry in trellises)
    if not elements:
        return {}
    codes = sum(tensors.sizes[p.codes.name] for p in packed) + sum(tensors.sizes[entry.name] for entry in trellises)
    total = codes + sum(tensors.bytes_of(p) - tensors.sizes[p.codes.name] for p in packed)
    return {
        "targeted_bits_per_weight": 8 * total / elements,
        "overhead_bits_per_weight": 8 * (total - codes) / elements,
    }
