"""Wanda (Sun et al. 2024, arXiv 2306.11695): weights that matter least by magnitude times activation become zero.

The score of a weight is |W_ij| |X_j|, |X_j| the root mean square of its input over calibration tokens, compared within
each output row. No weight is updated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from llmc.calibration.statistics import Hessian
from llmc.compressors.method import Context, Outlook
from llmc.compressors.options import check_options, option
from llmc.encodings.values import Values
from llmc.errors import UsageError
from llmc.late import torch
from llmc.threads import ordered_map, row_tiles

TILE = 1 << 20  # weights at once
PATTERN = re.compile(r"([1-9]\d?):([1-9]\d?)")


@dataclass(frozen=True)
class Wanda:
    """Zeros where a weight times its input is small; what is left is for the next stage, or stays as it is."""

    sparsity: float = option(0.5, "share of each row that becomes zero: 0.5, or 50%", least=0.0, most=1.0, share=True)
    pattern: str | None = option(None, "N:M, such as 2:4: N of M columns side by side are kept, in place of sparsity")

    needs: ClassVar[tuple[str, ...]] = ("hessian",)
    by_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_options(self)
        if self.pattern is not None:
            kept, of = self._pattern()
            if kept >= of:
                raise UsageError(f"option pattern: {self.pattern} removes nothing", fix="write it like 2:4")

    def outlook(self, scale_dtypes: tuple[str, ...]) -> Outlook:
        return Outlook(Values(), divides=1 if self.pattern is None else self._pattern()[1])

    def __call__(self, weight: torch.Tensor, stats: dict[str, Any], context: Context) -> torch.Tensor:
        """`weight: [out_features, in_features]` with zeros, in its own dtype.

        Notes `uncalibrated` where there is no Hessian: magnitudes alone count then.
        """
        hessian: Hessian | None = stats.get("hessian")
        if hessian is None or not hessian.tokens:
            context.note("uncalibrated", True)
            scale = torch.ones(weight.shape[1])
        else:
            scale = hessian.diagonal().sqrt()
        bounds = row_tiles(weight.shape[0], max(1, TILE // weight.shape[1]))
        parts = ordered_map(lambda place: self._pruned(weight[slice(*place)], scale), bounds, context.workers)
        return torch.cat(list(parts))

    def _pruned(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        scores = weight.abs().float() * scale
        if self.pattern is None:
            groups, dropped = scores.unsqueeze(1), round(self.sparsity * weight.shape[1])
        else:
            kept, of = self._pattern()
            groups, dropped = scores.view(len(scores), -1, of), of - kept
        least = torch.argsort(groups, dim=-1, stable=True)[..., :dropped]
        keep = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, least, False)
        return torch.where(keep.view(weight.shape), weight, 0)

    def _pattern(self) -> tuple[int, int]:
        match = PATTERN.fullmatch(self.pattern or "")
        if match is None:
            raise UsageError(f"option pattern: cannot read {self.pattern!r}", fix="write it like 2:4")
        return int(match[1]), int(match[2])
