"""One Target through its method and into every container: the step that all walks share."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmc.artifacts.artifact import Folder, raw_bytes
from llmc.encodings import int_kernel
from llmc.encodings.encoded import Encoded
from llmc.encodings.int_grid import IntGrid
from llmc.errors import CheckpointError, UnsupportedError
from llmc.formats.container import Container, Spec
from llmc.late import torch
from llmc.results import Context

TILE = 1 << 18  # weights measured at once: their float32 copies stay in the cache


@dataclass(frozen=True)
class Stored:
    """A Target as written: per folder the digests of its tensors, and its row of the report."""

    tensors: dict[str, dict[str, str]]
    row: dict[str, Any]


def encode_together(
    method: Any, weights: Sequence[torch.Tensor], stats: dict[str, Any], context: Context
) -> list[Encoded]:
    """Compress matrices `[out_i, in]` that share an input, in one call where rows are independent."""
    if not method.by_rows:
        return _one_by_one(method, weights, stats, context)
    if len(weights) == 1:
        return [method(weights[0], stats, context)]
    whole = method(torch.cat(list(weights)), stats, dataclasses.replace(context, parts=tuple(map(len, weights))))
    out, start = [], 0
    for weight in weights:
        out.append(whole.rows(start, start + weight.shape[0]))
        start += weight.shape[0]
    return out


def _one_by_one(method: Any, weights: Sequence[torch.Tensor], stats: dict[str, Any], context: Context) -> list[Encoded]:
    """Each by itself; what was noted about each goes into lists."""
    rates: list[tuple[float, ...]] = [(rate,) for rate in context.rates] or [()] * len(weights)
    alone = [dataclasses.replace(context, notes={}, rates=rate) for rate in rates]
    out = [method(w, stats, own) for w, own in zip(weights, alone, strict=True)]
    for key in dict.fromkeys(key for own in alone for key in own.notes):
        values = [own.notes.get(key) for own in alone]
        context.note(key, values if len(weights) > 1 else values[0])
    return out


def notes_of(context: Context, index: int, count: int) -> dict[str, Any]:
    """What a method noted about the `index`-th of `count` matrices compressed together."""
    notes = context.notes.items()
    return {key: value[index] if isinstance(value, list) and len(value) == count else value for key, value in notes}


def store(
    spec: Spec, encoded: Encoded, weight: torch.Tensor, places: Sequence[tuple[str, Container, Folder]]
) -> Stored:
    """Write an encoded Target into every container's folder; returns digests and measured error."""
    tensors, decoded_in, sizes = {}, {}, []
    for name, container, folder in places:
        packed = container.pack(spec, encoded)
        sizes.append(sum(tensor.nbytes for tensor in packed.values()))
        tensors[name] = {key: folder.write(key, value.contiguous()) for key, value in packed.items()}
        decoded_in[container.name] = container.decoded_dtype(spec.target)
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


def measure(
    encoded: Encoded, weight: torch.Tensor, dtypes: set[torch.dtype], name: str = ""
) -> dict[torch.dtype, tuple[str, float | None]]:
    """SHA-256 of the decoded values `[out, in]` and their signal-to-noise ratio in dB, for each dtype they decode to.

    None stands for no error at all. Raises UnsupportedError when the values of Target `name` overflow one of them.
    """
    hashes = {dtype: hashlib.sha256() for dtype in dtypes}
    noise = dict.fromkeys(dtypes, 0.0)
    signal = 0.0
    for start, part in tiles(encoded):
        original = weight[start : start + part.shape[0]]
        for i, (dtype, digest) in enumerate(hashes.items()):
            values, whole, lost = decoded(part, original, dtype)
            digest.update(raw_bytes(values))
            noise[dtype] += lost
            signal += 0.0 if i else whole
    for dtype, error in noise.items():
        if not math.isfinite(error):
            raise UnsupportedError(
                f"its values do not fit {str(dtype).removeprefix('torch.')}, in which its readers decode",
                where=name,
                fix="use another --format, or --ignore it",
            )
    return {dtype: (digest.hexdigest(), decibels(signal, noise[dtype])) for dtype, digest in hashes.items()}


def bond(weight: torch.Tensor, decoded: str) -> str:
    """SHA-256 that ties decoded values, given by their own, to the matrix `[out, in]` that they stand for."""
    original = hashlib.sha256(raw_bytes(weight))
    return hashlib.sha256(original.digest() + bytes.fromhex(decoded)).hexdigest()


def decoded(part: Encoded, original: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, float, float]:
    """Values `[rows, columns]` in `dtype`; the energy of the weights they stand for, and of their errors."""
    rows, columns = part.shape
    grid = part.grid
    if isinstance(grid, IntGrid) and int_kernel.applies(original) and dtype in int_kernel.NUMBERS:
        codes = part.codes.view(rows, -1, grid.group_size or columns)
        scale, zero = part.params["scale"], part.params.get("zero_point")
        values, *sums = int_kernel.decode(codes, scale, zero, original, bits=grid.bits, dtype=dtype)
        if all(plain(total, original.numel()) for total in sums):
            return values.view(rows, columns), sums[0], sums[1]
    values, original = part.grouped_value().to(dtype), original.float()
    return values, energy(original), energy(original, values.float())


def energy(one: torch.Tensor, other: torch.Tensor | None = None) -> float:
    """Sum of squares of `one`, or of `one - other`, float32 both."""
    total = float((one if other is None else one - other).square().sum(dtype=torch.float64))
    if plain(total, one.numel()):
        return total
    exact = one.double() if other is None else one.double() - other.double()  # squares that float32 cannot hold
    return float(exact.square().sum())


def plain(energy: float, count: int) -> bool:
    """Whether the squares of `count` values were such that float32 holds them."""
    return 1e-20 * count < energy < math.inf


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise), None when there is no noise (or nothing at all)."""
    return round(10 * math.log10(signal / noise), 4) if noise and signal else None


def tiles(encoded: Encoded) -> Iterator[tuple[int, Encoded]]:
    """Slabs of rows small enough for the cache: (first row, slab)."""
    rows, columns = encoded.shape
    step = max(1, TILE // max(columns, 1))
    for start in range(0, rows, step):
        yield start, encoded.rows(start, min(start + step, rows))


def require_finite(weight: torch.Tensor, name: str) -> None:
    """Raise CheckpointError naming the tensor, the first index and the count of NaN and Inf."""
    bad = nonfinite(weight)
    if bad is not None:
        count, first = bad
        raise CheckpointError(
            f"{count} of {weight.numel()} values are NaN or Inf, the first at {first}",
            where=name,
            fix="--allow-nonfinite keeps that tensor as it is",
        )


def nonfinite(tensor: torch.Tensor) -> tuple[int, list[int]] | None:
    """How many values are NaN or Inf, and the index of the first; None when all are finite."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return None
    # NaN and Inf show in the limits as in a sum, in a third of the time; torch has no limits of float8.
    wide = tensor.dtype.itemsize > 1
    witness = torch.stack(torch.aminmax(tensor)) if wide else tensor.sum(dtype=torch.float32)
    if bool(torch.isfinite(witness).all()):
        return None
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    return (count, bad.nonzero()[0].tolist()) if count else None
