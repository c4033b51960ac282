"""NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): 16 quantiles of N(0,1) times the absmax of a block.

Left out: double quantization of the absmax values.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmc.encodings.encoded import Params
from llmc.late import torch

# The table of bitsandbytes 0.50 (functional.get_4bit_type("nf4")), float32.
TABLE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True)
class Nf4Grid:
    """`group_size` input columns share one float32 absmax."""

    group_size: int | None = 64

    columns = 1
    alphabet = 16

    def fit(self, values: torch.Tensor, importance: torch.Tensor | None = None) -> Params:
        return {"scale": values.abs().amax(-1, keepdim=True)}

    def round(self, values: torch.Tensor, params: Params) -> torch.Tensor:
        table = torch.tensor(TABLE)
        middles = (table[1:] + table[:-1]) / 2
        unit = values * (1.0 / params["scale"].clamp(min=1e-38))  # as bitsandbytes does it: the same codes at ties
        return torch.bucketize(unit, middles, out_int32=True).to(torch.uint8)

    def fit_round(self, values: torch.Tensor, importance: torch.Tensor | None, codes: torch.Tensor) -> Params:
        values = values.float()
        params = self.fit(values, importance)
        codes.copy_(self.round(values, params))
        return params

    def value(self, codes: torch.Tensor, params: Params) -> torch.Tensor:
        return torch.tensor(TABLE)[codes.int()] * params["scale"]
