"""Uniform integer grid: w = scale * (q - zero_point), scales by absmax or by a search of least error.

Codes are stored unsigned, `u = q + 2**(bits-1)`. The symmetric scale of `absmax` is `absmax / ((2**bits - 1) / 2)`, as
compressed-tensors defines it. Params are rounded to what is stored before any code is chosen, so the error searched is
the error after reload. The torch functions are the definition; on the CPU `int_kernel` does the same, bit for bit.
Left out: per-row choice of sign, and learned clipping (a compressor's business).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from llmc.encodings import int_kernel
from llmc.encodings.encoded import Params
from llmc.late import torch

COARSE = 7  # clip ratios tried first
FINE = 2  # then, on either side of the best one
SHRINK = {2: 0.30, 3: 0.45, 4: 0.55, 5: 0.65, 6: 0.75, 7: 0.85, 8: 0.90}  # least clip ratio worth trying
FLOAT16_MOST = 65280.0  # the largest float16 that bfloat16 holds too
SUMS = 16  # running sums of an error


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
        if int_kernel.applies(values, importance):
            return self._compiled(values, importance, None)
        low, high = self._range(values)
        if self.search == "mse":
            ratio = self._search(values, importance, low, high)
            low, high = low * ratio, high * ratio
        return self._params(low, high)

    def round(self, values: torch.Tensor, params: Params) -> torch.Tensor:
        scale, zero = params["scale"], params.get("zero_point")
        stored = zero is None or zero.dtype == torch.uint8
        if stored and int_kernel.applies(values) and scale.shape == (*values.shape[:-1], 1):
            return int_kernel.round_codes(values, scale, zero, bits=self.bits)
        scaled = values / scale.float()
        scaled.round_().add_(self._zero(params)).clamp_(0, self.alphabet - 1)
        return scaled.to(torch.uint8)

    def fit_round(self, values: torch.Tensor, importance: torch.Tensor | None, codes: torch.Tensor) -> Params:
        if int_kernel.applies(values, importance) and codes.is_contiguous():
            return self._compiled(values, importance, codes)
        values = values.float()
        params = self.fit(values, importance)
        codes.copy_(self.round(values, params))
        return params

    def _compiled(self, values: torch.Tensor, importance: torch.Tensor | None, codes: torch.Tensor | None) -> Params:
        ratios, offsets = tries(self.bits) if self.search == "mse" else ((), ())
        scale, zero = int_kernel.fit(
            values,
            importance,
            bits=self.bits,
            symmetric=self.symmetric,
            dtypes=self.scale_dtypes,
            ratios=ratios,
            offsets=offsets,
            codes=codes,
        )
        return {"scale": scale} if zero is None else {"scale": scale, "zero_point": zero}

    def value(self, codes: torch.Tensor, params: Params) -> torch.Tensor:
        return (codes.float() - self._zero(params)) * params["scale"].float()

    def nearest(self, params: Params) -> Callable[[torch.Tensor, torch.Tensor], object]:
        """`f(units, out)`: `out` = the grid's value nearest to `units`, both in multiples of the scale, `[rows]`."""
        if "zero_point" not in params:
            return lambda units, out: torch.round(units, out=out).clamp_(-self.middle, self.middle - 1)
        least = -params["zero_point"].squeeze(-1).float()
        most = least + (self.alphabet - 1)
        return lambda units, out: torch.round(units, out=out).clamp_(least.to(out.dtype), most.to(out.dtype))

    def _zero(self, params: Params) -> torch.Tensor | float:
        return params["zero_point"].float() if "zero_point" in params else float(self.middle)

    def _range(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)  # twice as fast as aminmax
        if self.symmetric:
            high = torch.maximum(high, -low)
            return -high, high
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
        half = torch.float16 in dtypes
        scale = scale.clamp(
            2.0**-24 if half else 1e-30, FLOAT16_MOST if half else 1e30
        )  # float16 subnormals are exact too
        for dtype in sorted(dtypes, key=lambda d: torch.finfo(d).eps):  # coarsest last: it decides
            scale = scale.to(dtype).float()
        return scale.to(dtypes[0])

    def _search(
        self, values: torch.Tensor, importance: torch.Tensor | None, low: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        """The clip ratio of least error, in two rounds: over the whole range, then around the best."""
        shape = (-1, *[1] * values.ndim)
        ratios, offsets = (torch.tensor(t, device=values.device).view(shape) for t in tries(self.bits))
        least, best = self._best(values, importance, low, high, ratios.expand(-1, *low.shape))
        finer, near = self._best(values, importance, low, high, best + offsets)
        return torch.where(finer < least, near, best)

    def _best(
        self,
        values: torch.Tensor,
        importance: torch.Tensor | None,
        low: torch.Tensor,
        high: torch.Tensor,
        ratios: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The least error and its ratio among `ratios: [tries, ..., 1]`."""
        params = self._params(low * ratios, high * ratios)
        scale = params["scale"].float()
        zero = params["zero_point"].float() if "zero_point" in params else None
        least = -self.middle if zero is None else 0
        units, codes = torch.empty_like(values), torch.empty_like(values)
        errors = torch.empty_like(ratios)
        for k, inverse in enumerate(1.0 / scale):
            torch.mul(values, inverse, out=units)
            if zero is not None:
                units.add_(zero[k])
            torch.round(units, out=codes).clamp_(least, least + self.alphabet - 1).sub_(units)
            torch.square(codes, out=units).mul_(codes.abs_())
            if importance is not None:
                units.mul_(importance)
            errors[k] = ordered_sum(units)
        errors *= scale * scale * scale
        error, index = errors.min(0, keepdim=True)
        return error[0], ratios.gather(0, index)[0]


@lru_cache
def tries(bits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Clip ratios of the first round, and how far from the best of them those of the second lie."""
    step = (1.0 - SHRINK[bits]) / (COARSE - 1)
    near = [k * step / (FINE + 1) for k in range(-FINE, FINE + 1) if k != 0]
    return tuple(1.0 - k * step for k in range(COARSE)), tuple(near)


def ordered_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum of `x: [..., n]` to `[..., 1]`, in an order that no machine changes.

    Element i goes to running sum i % SUMS; then the upper half of the sums is added to the lower one, and so on.
    """
    sums = x.new_zeros(*x.shape[:-1], SUMS)
    for part in torch.split(x, SUMS, -1):
        sums[..., : part.shape[-1]] += part
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums
