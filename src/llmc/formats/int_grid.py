"""Uniform integer grid: w = scale * (q - zero_point), scales by absmax or by a search of least squared error.

Codes are stored unsigned, `u = q + 2**(bits-1)`. The symmetric scale of `absmax` is `absmax / ((2**bits - 1) / 2)`, as
compressed-tensors defines it. Params are rounded to what is stored before any code is chosen, so the error searched is
the error after reload. Left out: per-row choice of sign, and learned clipping (a compressor's business).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmc.formats.encoded import Params

COARSE = 12  # clip ratios tried first
FINE = 4  # then, on either side of the best one
SHRINK = {2: 0.30, 3: 0.45, 4: 0.55, 5: 0.65, 6: 0.75, 7: 0.85, 8: 0.90}  # least clip ratio worth trying


@dataclass(frozen=True)
class IntGrid:
    """`bits` 2-8; `group_size` input columns share a scale (None: the row); `search` is `absmax` or `mse`.

    `scale_dtypes`: scales are exact in every one of these dtypes ("bfloat16", "float16", "float32").
    """

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    search: str = "absmax"
    scale_dtypes: tuple[str, ...] = ("bfloat16",)

    columns = 1

    @property
    def alphabet(self) -> int:
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The unsigned code of the symmetric grid's zero."""
        return 1 << (self.bits - 1)

    def fit(self, values: torch.Tensor, importance: torch.Tensor | None = None) -> Params:
        """See `Grid.fit`; works on any `[..., n]` and returns `[..., 1]`."""
        low, high = self._range(values)
        if self.search == "absmax":
            return self._params(low, high)
        return self._search(values, importance, low, high)

    def round(self, values: torch.Tensor, params: Params) -> torch.Tensor:
        scaled = values / params["scale"].float()
        scaled.round_().add_(self._zero(params)).clamp_(0, self.alphabet - 1)
        return scaled.to(torch.uint8)

    def value(self, codes: torch.Tensor, params: Params) -> torch.Tensor:
        return (codes.float() - self._zero(params)) * params["scale"].float()

    def _zero(self, params: Params) -> torch.Tensor | float:
        return params["zero_point"].float() if "zero_point" in params else float(self.middle)

    def _range(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.symmetric:
            high = values.abs().amax(-1, keepdim=True)
            return -high, high
        low, high = torch.aminmax(values, dim=-1, keepdim=True)
        return low.clamp(max=0), high.clamp(min=0)

    def _params(self, low: torch.Tensor, high: torch.Tensor) -> Params:
        scale = self._stored((high - low) / (self.alphabet - 1))
        if self.symmetric:
            return {"scale": scale}
        zero = (-low / scale.float()).round().clamp(0, self.alphabet - 1)
        return {"scale": scale, "zero_point": zero.to(torch.uint8)}

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Round to a value that every asked dtype holds exactly; never zero, never infinite."""
        dtypes = [getattr(torch, name) for name in self.scale_dtypes]
        least = max(2.0**-24 if d is torch.float16 else 1e-30 for d in dtypes)  # float16 subnormals are scales too
        most = min(torch.finfo(d).max for d in dtypes)
        scale = scale.clamp(least, most)
        for dtype in sorted(dtypes, key=lambda d: torch.finfo(d).eps):  # coarsest last: it decides
            scale = scale.to(dtype).float()
        return scale.to(dtypes[0])

    def _error(self, values: torch.Tensor, importance: torch.Tensor | None, params: Params) -> torch.Tensor:
        difference = self.value(self.round(values, params), params).sub_(values).square_()
        return (difference if importance is None else difference.mul_(importance)).sum(-1, keepdim=True)

    def _search(
        self, values: torch.Tensor, importance: torch.Tensor | None, low: torch.Tensor, high: torch.Tensor
    ) -> Params:
        floor = SHRINK[self.bits]
        width = (1.0 - floor) / (COARSE - 1)
        best = torch.ones_like(high)
        params = self._params(low, high)
        least = self._error(values, importance, params)
        shifts = [width * -i for i in range(1, COARSE)]
        fine = [width * s * (i + 1) / (FINE + 1) for i in range(FINE) for s in (-1, 1)]
        for stage in (shifts, fine):
            centre = best.clone()
            for shift in stage:
                ratio = centre + shift
                trial = self._params(low * ratio, high * ratio)
                error = self._error(values, importance, trial)
                better = error < least
                least = torch.where(better, error, least)
                best = torch.where(better, ratio, best)
                params = {k: torch.where(better, trial[k], params[k]) for k in params}
        return params
