"""The compiled search through a trellis, and the stream of its codes (`llmc._native`)."""

from __future__ import annotations

from llmc import _native
from llmc.encodings.int_kernel import NUMBERS
from llmc.encodings.trellis import FittedTrellis
from llmc.late import torch

RATES = 32
"""Magnitudes of levels that have a rate of their own; beyond, rates grow evenly."""
TILE = 4096
"""Columns coded together: with the 256 rows of a segment a chunk of a million weights."""
BASE = -126
"""Level of the first symbol: 254 levels around zero have one."""


def search(
    running: torch.Tensor,
    unit: torch.Tensor,
    grid: FittedTrellis,
    columns: torch.Tensor,
    row_class: torch.Tensor,
    rate: torch.Tensor,
    out: tuple[torch.Tensor, torch.Tensor],
    *,
    dtype: torch.dtype,
    path: str = "auto",
) -> None:
    """Quantize columns `running: [n, rows]`, float32, one after the other; rows are in the order of `row_order`.

    What a column lacks takes its place in `running`, and `unit[j, i]` times it is taken from column i > j.

    Args:
        unit: [n, n], see `feedback.Slab.unit`.
        columns: [n], which columns of the grid they are.
        row_class: uint8 [rows].
        rate: float32 [classes, 2, RATES + 1]: what a level costs, as squared error in steps, by parity and by the
            integer part of its magnitude; the last entry is by how much it grows beyond.
        out: takes codes int16 and values float32, `[n, rows]` both.
        dtype: that the values are stored in.
    """
    codes, values = out
    bits, parity, flip = grid.machine
    _native.trellis_slab(
        bits,
        parity,
        flip,
        grid.segment,
        running.numpy(),
        unit.contiguous().numpy(),
        grid.steps[columns].numpy(),
        grid.column_class[columns].numpy(),
        row_class.numpy(),
        grid.shifts.numpy(),
        rate.numpy(),
        NUMBERS[dtype],
        codes.numpy(),
        values.numpy(),
        path,
    )


def count(codes: torch.Tensor, row_class: torch.Tensor, column_class: torch.Tensor, counts: torch.Tensor) -> None:
    """Add to `counts: [classes of rows, classes of columns, 2, levels]`, int64, the levels of `codes: [columns, rows]`.

    By parity; level 0 is in the middle, those beyond the ends count there. Classes are uint8.
    """
    _native.trellis_count(codes.numpy(), row_class.numpy(), column_class.numpy(), counts.numpy())


def tally(
    codes: torch.Tensor, errors: torch.Tensor, step: torch.Tensor, seen: torch.Tensor, lack: torch.Tensor
) -> None:
    """Add to `seen` and `lack`, float64 [SHIFTS], by magnitude of codes: how many, how far weights lay below values.

    Args:
        codes, errors: int16 and float32 [columns, rows]; errors are weights less values.
        step: float32 [columns]; `lack` is in steps.
    """
    _native.trellis_tally(codes.numpy(), errors.numpy(), step.numpy(), seen.numpy(), lack.numpy())
