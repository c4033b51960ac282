"""The compiled loops of the integer grid: the same bits as the torch functions of `int_grid`, which define them.

One pass over memory fits, searches and rounds. Results do not depend on the instruction set. Values must be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmc import _native
from llmc.files.bytes import as_bytes
from llmc.late import LateTable, np, torch

NUMBERS = LateTable(lambda: {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2})


def paths() -> list[str]:
    """The code that this processor can run, simplest first: values of `path`, besides "auto"."""
    return _native.grid_paths()


def applies(values: torch.Tensor, importance: torch.Tensor | None = None) -> bool:
    """Whether the loops take `values: [..., n]`, and `importance` as long as the last dimensions of it."""
    if values.device.type != "cpu" or values.dtype not in NUMBERS or not values.is_contiguous() or not values.numel():
        return False
    return importance is None or (
        importance.device.type == "cpu"
        and importance.dtype == torch.float32
        and importance.dim() > 0
        and importance.shape == values.shape[-importance.dim() :]
    )


def fit(
    values: torch.Tensor,
    importance: torch.Tensor | None,
    *,
    bits: int,
    symmetric: bool,
    dtypes: Sequence[str],
    ratios: Sequence[float] = (),
    offsets: Sequence[float] = (),
    codes: torch.Tensor | None = None,
    path: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale `[..., 1]` and zero point (of asymmetric grids) of `values: [..., n]`; where given, `codes` is filled.

    `ratios` and `offsets` are what a search tries, by the cubes of errors; without them scales are absmax.
    """
    shape = (*values.shape[:-1], 1)
    scale = torch.empty(shape, dtype=torch.float32)
    zero = None if symmetric else torch.empty(shape, dtype=torch.uint8)
    _native.grid_fit(
        as_bytes(values),
        NUMBERS[values.dtype],
        values.shape[-1],
        None if importance is None else importance.contiguous().view(-1).numpy(),
        bits,
        symmetric,
        "float16" in dtypes,
        "bfloat16" in dtypes,
        ratios,
        offsets,
        scale.view(-1).numpy(),
        _flat(zero),
        _flat(codes),
        path,
    )
    return scale.to(getattr(torch, dtypes[0])), zero


def round_codes(
    values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, *, bits: int, path: str = "auto"
) -> torch.Tensor:
    """Codes of `values: [..., n]` under params `[..., 1]`."""
    codes = torch.empty(values.shape, dtype=torch.uint8)
    _native.grid_round(
        as_bytes(values),
        NUMBERS[values.dtype],
        values.shape[-1],
        bits,
        scale.float().contiguous().view(-1).numpy(),
        _flat(None if zero is None else zero.contiguous()),
        as_bytes(codes),
        path,
    )
    return codes


def _flat(codes: torch.Tensor | None) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    return None if codes is None else as_bytes(codes)


def round_columns(
    running: torch.Tensor,
    unit: torch.Tensor,
    scale: torch.Tensor,
    least: torch.Tensor | None,
    group: Sequence[int],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    bits: int,
    dtype: torch.dtype,
    path: str = "auto",
) -> None:
    """Round at most 16 columns `running: [columns, rows]` in order; each error is carried on to the columns after it.

    `out` takes levels, values as stored in `dtype`, and errors. Column j has row `group[j]` of `scale` and of `least`
    (the least level; None: the symmetric grid), and `unit[j, i]` times its error is taken from column i > j.
    """
    levels, values, errors = out
    _native.grid_slab(
        running.numpy(),
        unit.contiguous().numpy(),
        scale.numpy(),
        None if least is None else least.numpy(),
        group,
        bits,
        NUMBERS[dtype],
        levels.numpy(),
        values.numpy(),
        errors.numpy(),
        path,
    )


def decode(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    weights: torch.Tensor,
    *,
    bits: int,
    dtype: torch.dtype,
    path: str = "auto",
) -> tuple[torch.Tensor, float, float]:
    """Values in `dtype` of `codes: [..., n]` under params `[..., 1]`; sums of squares of `weights` and of their errors.

    As torch has it, squares are of float32 and their sums of float64, whose order alone differs.
    """
    values = torch.empty(codes.shape, dtype=dtype)
    signal, noise = _native.grid_decode(
        as_bytes(codes),
        scale.float().contiguous().view(-1).numpy(),
        _flat(None if zero is None else zero.contiguous()),
        bits,
        as_bytes(weights),
        NUMBERS[weights.dtype],
        codes.shape[-1],
        NUMBERS[dtype],
        as_bytes(values),
        path,
    )
    return values, signal, noise
