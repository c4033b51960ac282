"""Trellis-coded quantization whose levels go through an entropy coder; byte spec in docs/formats/trellis.md.

Two interleaved uniform grids of one step; a small state machine, driven by the levels already sent down the rows of a
column, says which of them the next weight uses. (Trellis coded quantization: Marcellin and Fischer 1990; entropy coded:
Fischer and Wang 1992; as "dependent quantization" in VVC and ISO/IEC 15938-17.) One state is plain uniform
quantization, entropy coded.

Codes are `n = 2 * level + parity`: a weight is worth n / 2 steps, moved a little towards zero. Each column has a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from llmc.encodings.encoded import Encoded, Grid, Params, Plane
from llmc.late import torch

# States -> (bits of the state, mask of the bits whose sum is the parity, mask of those that flip the branch).
# 4 and 8: ARCHITECTURE of the codes of Ungerboeck 1982 for amplitudes, read backwards; 16 to 64 likewise.
MACHINES = {1: (0, 0, 0), 4: (2, 1, 2), 8: (3, 1, 6), 16: (4, 2, 9), 32: (5, 4, 18), 64: (6, 10, 33)}
SEGMENT = 256
"""Rows after which the machine starts again."""
SHIFTS = 31
"""Codes below this magnitude have a shift of their own."""
SHIFT_UNIT = 2.0**-8
OCTAVE = 4
"""Steps of columns are base * 2**(code / OCTAVE)."""
ROOTS = (1.0, 2.0**0.25, 2.0**0.5, 2.0**0.75)
MOST_CODE = 32766


@dataclass(frozen=True)
class TrellisGrid:
    """`states` of the machine (1: plain uniform quantization); it starts again after `segment` rows.

    `bits_per_weight` is what the matrix is meant to take, everything counted.
    """

    states: int = 8
    segment: int = SEGMENT
    bits_per_weight: float = 3.0

    group_size = None
    alphabet = 2 * MOST_CODE + 1
    columns = 1

    @property
    def machine(self) -> tuple[int, int, int]:
        """Bits of the state, mask of the parity, mask of the flips."""
        return MACHINES[self.states]


@dataclass(frozen=True)
class FittedTrellis(TrellisGrid):
    """The grid of one matrix.

    Attributes:
        step: of columns with code 0.
        step_code: uint8 [columns].
        column_class: uint8 [columns]; with the row's it names a pair of probability tables.
        shift: int8 [SHIFTS]: how far, in steps / 256, the values of codes of this magnitude lie below half of it.
    """

    step: float = 1.0
    step_code: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))
    column_class: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))
    shift: torch.Tensor = field(default_factory=lambda: torch.zeros(SHIFTS, dtype=torch.int8))

    @cached_property
    def steps(self) -> torch.Tensor:
        """float32 [columns]."""
        return column_steps(self.step, self.step_code)

    @cached_property
    def shifts(self) -> torch.Tensor:
        """float32 [SHIFTS + 1] in steps; the last one is that of all larger codes: none."""
        return torch.cat([self.shift.float() * SHIFT_UNIT, torch.zeros(1)])

    def value(self, codes: torch.Tensor, params: Params) -> torch.Tensor:
        """Values float32 of codes [..., columns]."""
        n = codes.int()
        size = n.abs()
        moved = size.float() * 0.5 - self.shifts[size.clamp(max=SHIFTS)]
        return torch.where(n < 0, -moved, moved) * self.steps


def column_steps(step: float, code: torch.Tensor) -> torch.Tensor:
    """float32 steps of columns with these codes: products are rounded once, powers of two are exact."""
    base = torch.tensor(step, dtype=torch.float32)
    roots = (base * torch.tensor(ROOTS, dtype=torch.float32))[(code % OCTAVE).long()]
    return torch.ldexp(roots, (code // OCTAVE).int())


def encoded(grid: FittedTrellis, codes: torch.Tensor, row_class: torch.Tensor, dtype: torch.dtype) -> Encoded:
    """A matrix from codes int16 [rows, columns] and the class uint8 [rows] of each row."""
    rows, columns = codes.shape
    planes = {"codes": Plane(codes, grid.alphabet)}
    return Encoded(cast("Grid", grid), planes, {"row_class": row_class.view(-1, 1)}, (rows, columns), dtype)


def row_order(row_class: torch.Tensor) -> torch.Tensor:
    """The order in which the trellis visits rows: by class, then by number."""
    return torch.argsort(row_class.view(-1).int(), stable=True)
