"""What a compressed matrix is: a grid, planes of integers, and the params that give them values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from llmc.late import torch

Params: TypeAlias = "dict[str, torch.Tensor]"

TILE = 1 << 20  # weights decoded at once


class Grid(Protocol):
    """Which values weights may take, as arithmetic on `[rows, columns]` tensors.

    A grid is a frozen dataclass. `group_size` input columns share params (None: a whole row does); `alphabet` is the
    number of codes; `columns` the number of input columns coded together.
    """

    @property
    def group_size(self) -> int | None: ...

    @property
    def alphabet(self) -> int: ...

    @property
    def columns(self) -> int: ...

    def fit(self, values: torch.Tensor, importance: torch.Tensor | None = None) -> Params:
        """Params of one group: `values: float32 [rows, n]`, `importance: [n]` -> `{name: [rows, 1]}`, as stored."""
        ...

    def round(self, values: torch.Tensor, params: Params) -> torch.Tensor:
        """Codes `uint8 [rows, n]` of `values: float32 [rows, n]` under params `[rows, 1]`."""
        ...

    def fit_round(self, values: torch.Tensor, importance: torch.Tensor | None, codes: torch.Tensor) -> Params:
        """`fit`, then `round` into `codes`, of `values: [rows, n]` of any float dtype."""
        ...

    def value(self, codes: torch.Tensor, params: Params) -> torch.Tensor:
        """Values `float32 [rows, n]` of codes under params `[rows, 1]`."""
        ...


@dataclass(frozen=True)
class Plane:
    """Integers below `alphabet`. `context` names the plane that selects a coder's table, if any."""

    integers: torch.Tensor
    alphabet: int
    context: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A compressed `[out_features, in_features]` matrix; `dequantize()` is its definition.

    Attributes:
        grid: the grid of the codes.
        planes: `codes` and whatever else the grid needs, `[rows, columns]` each.
        params: the grid's params as stored, `[rows, groups]` each.
        shape: `(out_features, in_features)`.
        dtype: dtype of the decoded values.
        terms: further matrices of the same shape that are added.
    """

    grid: Grid
    planes: dict[str, Plane]
    params: Params
    shape: tuple[int, int]
    dtype: torch.dtype
    terms: tuple[Encoded, ...] = field(default=())

    @property
    def codes(self) -> torch.Tensor:
        return self.planes["codes"].integers

    def rows(self, start: int, stop: int) -> Encoded:
        """The encoding of rows `[start, stop)`."""
        cut = slice(start, stop)
        planes = {k: replace(p, integers=p.integers[cut]) for k, p in self.planes.items()}
        params = {k: v[cut] for k, v in self.params.items()}
        terms = tuple(t.rows(start, stop) for t in self.terms)
        return replace(self, planes=planes, params=params, shape=(stop - start, self.shape[1]), terms=terms)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The decoded matrix `[out_features, in_features]`: values computed in float32, rounded once to `dtype`."""
        rows, columns = self.shape
        out = torch.empty(rows, columns, dtype=dtype or self.dtype)
        step = max(1, TILE // max(columns, 1))
        for a in range(0, rows, step):
            part = self.rows(a, min(a + step, rows)) if step < rows else self
            out[a : a + step] = part.value()
        return out

    def value(self) -> torch.Tensor:
        """Values in float32, all terms added up in their order."""
        values = self.grouped_value()
        for term in self.terms:
            values = values + term.value()
        return values

    def grouped_value(self) -> torch.Tensor:
        """Values of the codes alone, without terms, in float32: all groups of all rows at once."""
        rows, columns = self.shape
        group = self.grid.group_size or columns
        params: dict[str, Any] = {k: v.unsqueeze(-1) for k, v in self.params.items()}
        return self.grid.value(self.codes.view(rows, -1, group), params).view(rows, columns)


def group_count(columns: int, group_size: int | None) -> int:
    """Groups along `columns` input columns."""
    return 1 if group_size is None else -(-columns // group_size)
