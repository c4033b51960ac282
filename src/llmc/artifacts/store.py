"""One Target through its method and into every container: the step that all walks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.artifacts.folder import Folder
from llmc.encodings.encoded import Encoded
from llmc.encodings.measuring import bond, measure
from llmc.formats.container import Container, Spec
from llmc.formats.dense import holder
from llmc.late import torch


@dataclass(frozen=True)
class Stored:
    """A Target as written: per folder the digests of its tensors, and its row of the report."""

    tensors: dict[str, dict[str, str]]
    row: dict[str, Any]


def store(
    spec: Spec, encoded: Encoded, weight: torch.Tensor, places: Sequence[tuple[str, Container, Folder]]
) -> Stored:
    """Write an encoded Target into every container's folder; returns digests and measured error."""
    tensors, decoded_in, sizes = {}, {}, []
    for name, container, folder in places:
        packed = holder(container, spec).pack(spec, encoded)
        sizes.append(sum(tensor.nbytes for tensor in packed.values()))
        tensors[name] = {key: folder.write(key, value.contiguous()) for key, value in packed.items()}
        decoded_in[container.name] = holder(container, spec).decoded_dtype(spec.target)
    measured = measure(encoded, weight, set(decoded_in.values()), spec.target.name)
    row = {
        "target": spec.target.name,
        "tensor": spec.target.tensor,
        "shape": list(spec.target.shape),
        "transposed": spec.target.transposed,
        "grid": {"name": type(spec.grid).__name__, **dataclasses.asdict(spec.grid)},  # type: ignore[call-overload]
        "bits_per_weight": round(8 * sizes[0] / spec.target.numel, 6),
        "snr_db": {name: measured[dtype][1] for name, dtype in decoded_in.items()},
        "decoded": {name: measured[dtype][0] for name, dtype in decoded_in.items()},
        "bond": {name: bond(weight, measured[dtype][0]) for name, dtype in decoded_in.items()},
    }
    return Stored(tensors, row)
