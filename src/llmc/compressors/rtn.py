"""Round to nearest: every weight to the nearest value of its group's grid.

Scales are fitted to the weights alone ("absmax"), or searched for the least error ("mse"), in which the columns
count by their mean squared activation where a Hessian is at hand. Left out: anything that looks at outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.compressors.method import Context, Outlook
from llmc.compressors.options import GridOptions, check_groups
from llmc.encodings.encoded import Encoded, Grid, Params, Plane
from llmc.late import torch
from llmc.threads import ordered_map, row_tiles

TILE = 1 << 19  # weights at once


@dataclass(frozen=True)
class Rtn(GridOptions):
    """Round to nearest."""

    needs: ClassVar[tuple[str, ...]] = ()
    by_rows: ClassVar[bool] = True

    def outlook(self, scale_dtypes: tuple[str, ...]) -> Outlook:
        return Outlook(self.make_grid(scale_dtypes), keeps_zeros=True)

    def __call__(self, weight: torch.Tensor, stats: dict[str, Any], context: Context) -> Encoded:
        """Round `weight: [out_features, in_features]`; `stats["hessian"]` is used when it is there.

        Raises:
            UsageError: the group size does not divide the columns, or the grid cannot be had.
        """
        check_groups(self.group_size, weight.shape[1])
        hessian = stats.get("hessian")
        importance = hessian.diagonal() if hessian is not None and hessian.tokens else None
        return round_to_nearest(weight, self.make_grid(context.scale_dtypes), importance, context)


def round_to_nearest(weight: torch.Tensor, grid: Grid, importance: torch.Tensor | None, context: Context) -> Encoded:
    """Round `weight: [rows, columns]`; `importance: [columns]` weighs the errors of the scale search."""
    rows, columns = weight.shape
    group = grid.group_size or columns
    if importance is not None:
        importance = importance.to(context.device, torch.float32).view(columns // group, group)
    codes = torch.empty(rows, columns, dtype=torch.uint8)

    def tile(bounds: tuple[int, int]) -> Params:
        a, b = bounds
        values = weight[a:b].to(context.device).reshape(b - a, columns // group, group)
        params = grid.fit_round(values, importance, codes[a:b].view_as(values))
        return {name: value.squeeze(-1).cpu() for name, value in params.items()}  # [rows, groups]

    parts = list(ordered_map(tile, row_tiles(rows, TILE // columns), context.workers))
    params = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, (rows, columns), weight.dtype)
