"""Matrices whose codes follow a trellis, made by a plain loop, and streams of them with every choice an encoder has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from llmc import _native
from llmc.encodings.coding import rans, trellis_stream
from llmc.encodings.encoded import Encoded
from llmc.encodings.trellis import MACHINES, SHIFTS, FittedTrellis, encoded
from llmc.files.bytes import Bytes

PATHS = [path for path in rans.paths() if path != "avx512-search"]
"""Searching in registers is not for streams of a trellis: that path means `avx512` there."""


@dataclass(frozen=True)
class Shape:
    """What a matrix is like; `spread` is that of its levels."""

    rows: int = 40
    columns: int = 9
    states: int = 8
    segment: int = 16
    row_classes: int = 1
    column_classes: int = 1
    spread: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Layout:
    """How a stream cuts it."""

    lanes: int = 4
    segments: int = 1
    tile: int = 4096
    base: int = -126
    fields: dict[str, Any] = field(default_factory=dict)


def follow(levels: np.ndarray, order: np.ndarray, states: int, segment: int) -> np.ndarray:
    """Codes int16 of levels [rows, columns]: the machine as it is written down, one weight after the other."""
    bits, parity_mask, flip_mask = MACHINES[states]
    codes = np.zeros(levels.shape, np.int16)
    for column in range(levels.shape[1]):
        state = 0
        for place, row in enumerate(order):
            state = 0 if place % segment == 0 else state
            level = int(levels[row, column])
            parity = bin(state & parity_mask).count("1") % 2
            branch = (level + bin(state & flip_mask).count("1")) % 2
            codes[row, column] = 2 * level + parity
            state = (2 * state + branch) % (1 << bits)
    return codes


def matrix(shape: Shape) -> Encoded:
    """Levels of heavy tails, and all that a grid has."""
    rng = np.random.default_rng(shape.seed)
    row_class = rng.integers(0, shape.row_classes, shape.rows, np.uint8)
    column_class = rng.integers(0, shape.column_classes, shape.columns, np.uint8)
    levels = (rng.standard_t(3, (shape.rows, shape.columns)) * shape.spread).round().clip(-16384, 16383)
    order = np.argsort(row_class, kind="stable")
    codes = follow(levels, order, shape.states, shape.segment)
    grid = FittedTrellis(
        shape.states,
        shape.segment,
        step=float(np.float32(rng.uniform(0.001, 0.1))),
        step_code=torch.from_numpy(rng.integers(3, 20, shape.columns, np.uint8)),
        column_class=torch.from_numpy(column_class),
        shift=torch.from_numpy(np.append(0, rng.integers(-20, 60, SHIFTS - 1)).astype(np.int8)),
    )
    return encoded(grid, torch.from_numpy(codes), torch.from_numpy(row_class), torch.bfloat16)


def stream_of(made: Encoded, layout: Layout | None = None, *, threads: int = 1) -> Bytes:
    """The stream of a matrix, cut as `layout` says."""
    grid, layout = trellis_stream.fitted(made), layout or Layout()
    bits, parity, flip = grid.machine
    arguments: dict[str, Any] = {
        "codes": made.codes.numpy(),
        "bits": bits,
        "parity": parity,
        "flip": flip,
        "lanes_log2": layout.lanes.bit_length() - 1,
        "segment": grid.segment,
        "segments_log2": layout.segments.bit_length() - 1,
        "tile": layout.tile,
        "step": grid.step,
        "base": layout.base,
        "step_code": grid.step_code.numpy(),
        "row_class": made.params["row_class"].view(-1).numpy(),
        "column_class": grid.column_class.numpy(),
        "shifts": grid.shift.numpy(),
        "threads": threads,
    }
    with rans.refusals("trellis"):
        return _native.trellis_encode(**{**arguments, **layout.fields})
