"""Values as they are: what a method that prunes gives, and how a matrix is held that nothing encodes afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from llmc.encodings.encoded import Encoded, Params, Plane
from llmc.late import torch


@dataclass(frozen=True)
class Values:
    """The grid that holds every value: its codes are the values themselves."""

    @property
    def group_size(self) -> int | None:
        return None

    @property
    def alphabet(self) -> int:
        return 0

    @property
    def columns(self) -> int:
        return 1

    def fit(self, values: torch.Tensor, importance: torch.Tensor | None = None) -> Params:
        return {}

    def round(self, values: torch.Tensor, params: Params) -> torch.Tensor:
        return values

    def fit_round(self, values: torch.Tensor, importance: torch.Tensor | None, codes: torch.Tensor) -> NoReturn:
        raise TypeError("values have no codes to be rounded to")

    def value(self, codes: torch.Tensor, params: Params) -> torch.Tensor:
        return codes.float()


def held(values: torch.Tensor) -> Encoded:
    """A matrix `[rows, columns]` as it is, in its own dtype."""
    rows, columns = values.shape
    return Encoded(Values(), {"codes": Plane(values, 0)}, {}, (rows, columns), values.dtype)
