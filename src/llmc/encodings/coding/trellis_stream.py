"""A trellis-coded matrix as a stream of bytes, and back."""

from __future__ import annotations

from typing import Any

from llmc import _native
from llmc.encodings.coding import rans
from llmc.encodings.encoded import Encoded
from llmc.encodings.int_kernel import NUMBERS
from llmc.encodings.trellis import MACHINES, SHIFTS, FittedTrellis, encoded
from llmc.encodings.trellis_search import BASE, TILE
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import torch


def layout_for(rows: int, columns: int, segment: int) -> tuple[int, int]:
    """Segments of a tile (a power of two), and lanes: chunks of up to a million weights, as those of `rans.encode`."""
    segments, width = 1, min(columns, TILE)
    while segments * segment < rows and 2 * segments * segment * width <= rans.CHUNK_SYMBOLS:
        segments *= 2
    return segments, rans.lanes_for(min(rows, segments * segment) * width)


def pack(matrix: Encoded, *, threads: int = 1) -> Bytes:
    """The stream of a matrix on a `FittedTrellis`. Raises InputError when its codes do not follow the trellis."""
    grid = fitted(matrix)
    bits, parity, flip = grid.machine
    segments, lanes = layout_for(*matrix.shape, grid.segment)
    with rans.refusals("trellis"):
        return _native.trellis_encode(
            matrix.codes.contiguous().numpy(),
            bits,
            parity,
            flip,
            lanes.bit_length() - 1,
            grid.segment,
            segments.bit_length() - 1,
            TILE,
            grid.step,
            BASE,
            grid.step_code.numpy(),
            matrix.params["row_class"].view(-1).contiguous().numpy(),
            grid.column_class.numpy(),
            grid.shift.numpy(),
            threads,
        )


def describe(stream: Any, shape: tuple[int, int]) -> tuple[dict[str, Any], FittedTrellis, torch.Tensor]:
    """What the head of a stream says, as the grid and the class of each row too. Raises InputError when it is damaged.

    Among it: `lanes`, `segments` of a `tile` of so many columns, `base`, `machine`, `tables` [tables, 256] and
    `chunks`, the offset, words and escapes of each.
    """
    with rans.refusals("trellis"):
        about = _native.trellis_describe(as_bytes(stream), *shape)
    states = next(
        (n for n, machine in MACHINES.items() if machine == tuple(about["machine"])), 1 << about["machine"][0]
    )
    shift = torch.tensor([*about["shifts"], *[0] * (SHIFTS - len(about["shifts"]))], dtype=torch.int8)
    step_code, column_class, row_class = (
        torch.tensor(about[name], dtype=torch.uint8) for name in ("step_code", "column_class", "row_class")
    )
    grid = FittedTrellis(
        states, about["segment"], step=about["step"], step_code=step_code, column_class=column_class, shift=shift
    )
    return about, grid, row_class


def unpack(stream: Any, shape: tuple[int, int], dtype: torch.dtype, *, threads: int = 1) -> Encoded:
    """The matrix that `pack` made a stream of. Raises InputError when it is damaged."""
    _, grid, row_class = describe(stream, shape)
    codes = torch.empty(shape, dtype=torch.int16)
    with rans.refusals("trellis"):
        _native.trellis_codes(as_bytes(stream), codes.numpy(), threads, "auto")
    return encoded(grid, codes, row_class, dtype)


def decode_into(
    stream: Any, shape: tuple[int, int], dtype: torch.dtype, out: Bytes, *, threads: int, path: str
) -> None:
    """Write the values `[rows, columns]` of a stream to `out`. Raises InputError when it is damaged."""
    with rans.refusals("trellis"):
        _native.trellis_decode(as_bytes(stream), *shape, NUMBERS[dtype], out, threads, path)


def fitted(matrix: Encoded) -> FittedTrellis:
    """The grid of a matrix, which has to be a `FittedTrellis`."""
    if not isinstance(matrix.grid, FittedTrellis):
        raise TypeError(f"codes of {type(matrix.grid).__name__} do not follow a trellis")
    return matrix.grid
