"""Options of methods: fields with help, choices and range, and the grid that the quantizers share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.encodings import GRIDS
from llmc.errors import UsageError
from llmc.registry import suggest

if TYPE_CHECKING:
    from llmc.encodings.encoded import Grid


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
    share: bool = False,
) -> Any:
    """A dataclass field that says what it is for and which values it takes.

    Args:
        share: in a recipe it may be written in percent.
    """
    metadata = {"help": help, "choices": choices, "least": least, "most": most, "share": share}
    return dataclasses.field(default=default, metadata=metadata)


def check_options(method: Any) -> None:
    """Check every field of a method against its choices and range.

    Raises:
        UsageError: naming the option, its value, and what it takes.
    """
    for field in dataclasses.fields(method):
        problem = option_problem(field, getattr(method, field.name))
        if problem:
            raise UsageError(f"option {field.name}: {problem[0]}", fix=problem[1])


def option_problem(field: dataclasses.Field[Any], value: Any) -> tuple[str, str] | None:
    """What is wrong with a value for a field made by `option`, and what would do; None when it is right."""
    choices, least, most = (field.metadata.get(key) for key in ("choices", "least", "most"))
    if choices is not None and value not in choices:
        return f"unknown value {value!r}", suggest(str(value), list(choices))
    if value is None or (least is None and most is None):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{value!r} is not a number", _range(least, most)
    if not (least is None or value >= least) or not (most is None or value <= most):
        return f"{value} is out of range", _range(least, most)
    return None


def _range(least: float | None, most: float | None) -> str:
    if most is None:
        return f"use at least {least}"
    return f"use at most {most}" if least is None else f"use {least} to {most}"


@dataclass(frozen=True)
class GridOptions:
    """The grid of a quantizer.

    Raises:
        UsageError: a value is out of range, or the grid does not have what was asked for.
    """

    grid: str = option(
        "int", "values weights may take: evenly spaced integers, or normal quantiles", choices=tuple(GRIDS)
    )
    bits: int = option(4, "width of one code", least=2, most=8)
    group_size: int | None = option(128, "input columns that share a scale; null or `channel`: all of them", least=1)
    symmetric: bool = option(True, "zero fixed mid-grid; false: a zero point is fitted (int)")
    scales: str = option("mse", "scales from the largest weight, or of least error (int)", choices=("absmax", "mse"))

    def __post_init__(self) -> None:
        check_options(self)

    def make_grid(self, scale_dtypes: tuple[str, ...]) -> Grid:
        """The grid, its scales exact in every one of these dtypes.

        Raises:
            UsageError: the grid has other bits or no zero point.
        """
        kind = GRIDS.get(self.grid)
        known = {field.name for field in dataclasses.fields(kind)}
        values = {
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "search": self.scales,
            "scale_dtypes": scale_dtypes,
        }
        grid: Grid = kind(**{name: value for name, value in values.items() if name in known})
        if grid.alphabet != 1 << self.bits:
            width = (grid.alphabet - 1).bit_length()
            raise UsageError(
                f"grid {self.grid} has {width}-bit codes, not {self.bits}", fix=f"use bits {width} or grid int"
            )
        if not self.symmetric and "symmetric" not in known:
            raise UsageError(f"grid {self.grid} has no zero point", fix="leave symmetric on or use grid int")
        return grid


def check_groups(group_size: int | None, in_features: int) -> None:
    """Refuse groups that do not fill the columns.

    Raises:
        UsageError: with both numbers and the group sizes that would do.
    """
    if group_size is None or in_features % group_size == 0:
        return
    sizes = [str(n) for n in (1024, 512, 256, 128, 64, 32, 16) if n < group_size and in_features % n == 0][:3]
    fix = "use group_size " + ", ".join(sizes) + " or channel" if sizes else "use group_size channel"
    raise UsageError(f"group_size {group_size} does not divide {in_features} input columns", fix=fix)
