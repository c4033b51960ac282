"""What an encoding decodes to, and how far that is from the matrix it stands for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from llmc.encodings import int_kernel
from llmc.encodings.encoded import Encoded
from llmc.encodings.int_grid import IntGrid
from llmc.errors import UnsupportedError
from llmc.files.bytes import raw_bytes
from llmc.late import torch

TILE = 1 << 18  # weights measured at once: their float32 copies stay in the cache


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
    if not part.terms and isinstance(grid, IntGrid) and int_kernel.applies(original) and dtype in int_kernel.NUMBERS:
        codes = part.codes.view(rows, -1, grid.group_size or columns)
        scale, zero = part.params["scale"], part.params.get("zero_point")
        values, *sums = int_kernel.decode(codes, scale, zero, original, bits=grid.bits, dtype=dtype)
        if all(plain(total, original.numel()) for total in sums):
            return values.view(rows, columns), sums[0], sums[1]
    values, original = part.value().to(dtype), original.float()
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
