"""Grids against brute force, and the integer grid's scales against compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.encodings import GRIDS
from llmc.encodings.encoded import Grid, Params
from llmc.encodings.int_grid import IntGrid, tries
from llmc.encodings.nf4_grid import Nf4Grid

BITS = range(2, 9)


def values(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    spread = torch.exp(torch.randn(rows, 1, generator=draw) * 2)
    return torch.randn(rows, columns, generator=draw) * spread + spread * 0.3


def error(grid: IntGrid, w: torch.Tensor, params: Params, importance: torch.Tensor | None = None) -> torch.Tensor:
    """What the search makes least: cubes of errors."""
    e = (grid.value(grid.round(w, params), params).double() - w.double()).abs() ** 3
    return (e if importance is None else e * importance.double()).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_round_finds_the_nearest_value(bits: int, symmetric: bool) -> None:
    grid = IntGrid(bits=bits, symmetric=symmetric)
    w = values(6, 64)
    nearest_of_all(grid, w, grid.fit(w))
    nearest_of_all(grid, w * 3, grid.fit(w))  # clipped


def test_nf4_round_finds_the_nearest_value() -> None:
    grid = Nf4Grid()
    w = values(6, 64)
    nearest_of_all(grid, w, grid.fit(w))


def nearest_of_all(grid: Grid, w: torch.Tensor, params: Params) -> None:
    every = torch.arange(grid.alphabet, dtype=torch.uint8).expand(w.shape[0], -1)
    table = grid.value(every, params).double()  # [rows, alphabet]
    best = (table.unsqueeze(1) - w.double().unsqueeze(-1)).abs().amin(-1)
    mine = (grid.value(grid.round(w, params), params).double() - w.double()).abs()
    torch.testing.assert_close(mine, best, rtol=0, atol=1e-6 * float(table.abs().max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bits", BITS)
def test_absmax_scale_is_that_of_compressed_tensors(bits: int, dtype: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
    from compressed_tensors.quantization.utils import calculate_qparams

    w = values(32, 128).to(getattr(torch, dtype))
    args = QuantizationArgs(num_bits=bits, symmetric=True, strategy=QuantizationStrategy.GROUP, group_size=128)
    theirs, _ = calculate_qparams(w.amin(-1, keepdim=True), w.amax(-1, keepdim=True), args)
    mine = IntGrid(bits=bits, scale_dtypes=(dtype,)).fit(w.float())["scale"]
    assert mine.dtype == theirs.dtype
    assert torch.equal(mine, theirs)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    columns=st.sampled_from([1, 2, 8, 32, 128, 200]),
    seed=st.integers(0, 999),
    weighted=st.booleans(),
)
def test_searched_scales_are_never_worse(bits: int, symmetric: bool, columns: int, seed: int, weighted: bool) -> None:
    w = values(16, columns, seed)
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(seed)) ** 4 if weighted else None
    plain, searched = (IntGrid(bits=bits, symmetric=symmetric, search=s) for s in ("absmax", "mse"))
    before = error(plain, w, plain.fit(w), importance)
    after = error(searched, w, searched.fit(w, importance), importance)
    floor = 1e-12 * w.double().abs().pow(3).sum(-1)  # of sums in float32
    assert bool((after <= before + floor + before * 1e-5).all())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_search_takes_the_best_ratio(bits: int, symmetric: bool, weighted: bool) -> None:
    """All ratios in float64; scales where two of them are nearly as good do not count."""
    w = values(400, 64, bits)
    importance = torch.rand(64, generator=torch.Generator().manual_seed(bits)) if weighted else None
    grid = IntGrid(bits=bits, symmetric=symmetric, search="mse", scale_dtypes=("float32",))
    low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        low, high = -torch.maximum(high, -low), torch.maximum(high, -low)
    coarse, offsets = tries(bits)
    ratio, clear = _best(grid, w, importance, low, high, torch.tensor(coarse).expand(len(w), -1))
    near, sure = _best(grid, w, importance, low, high, torch.cat([ratio, ratio + torch.tensor(offsets)], 1))
    scale = (high - low) * near / (grid.alphabet - 1)
    decided = clear & sure
    assert float(decided.double().mean()) > 0.9
    torch.testing.assert_close(grid.fit(w, importance)["scale"][decided], scale[decided], rtol=1e-6, atol=0)


def _best(
    grid: IntGrid,
    w: torch.Tensor,
    importance: torch.Tensor | None,
    low: torch.Tensor,
    high: torch.Tensor,
    ratios: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `ratios: [rows, tries]` that of least error, `[rows, 1]`, and whether no other comes near it."""
    tried = []
    for k in range(ratios.shape[1]):
        ratio = ratios[:, k : k + 1]
        params = {"scale": (high - low) * ratio / (grid.alphabet - 1)}
        if not grid.symmetric:
            params["zero_point"] = (-low * ratio / params["scale"]).round()
        tried.append(error(grid, w, params, importance))
    errors, order = torch.stack(tried, 1).sort(1)
    return ratios.gather(1, order[:, :1]), errors[:, 1] > errors[:, 0] * 1.0001


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "tolerance"), [(2, 1.008), (3, 1.008), (4, 1.008), (6, 1.03), (8, 1.045)])
def test_search_comes_near_an_exhaustive_one(bits: int, tolerance: float, symmetric: bool) -> None:
    w = torch.randn(200, 128, generator=torch.Generator().manual_seed(bits))
    grid = IntGrid(bits=bits, symmetric=symmetric, search="mse", scale_dtypes=("float32",))
    low = w.amin(-1, keepdim=True).clamp(max=0)
    high = w.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    tried = []
    for ratio in torch.linspace(0.25, 1.0, 300).tolist():
        scale = (high - low) * ratio / (grid.alphabet - 1)
        params = {"scale": scale}
        if not symmetric:
            params["zero_point"] = (-low * ratio / scale).round()
        tried.append(error(grid, w, params))
    best = float(torch.stack(tried).amin(0).sum())
    assert float(error(grid, w, grid.fit(w)).sum()) <= tolerance * best


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.integers(-40, 19),
    search=st.sampled_from(["absmax", "mse"]),
    bits=st.integers(2, 8),
    dtypes=st.permutations(["bfloat16", "float16", "float32"]).flatmap(
        lambda names: st.integers(1, 3).map(lambda n: tuple(names[:n]))
    ),
)
def test_scales_are_exact_in_every_dtype_asked_for(
    exponent: int, search: str, bits: int, dtypes: tuple[str, ...]
) -> None:
    w = values(8, 16) * 2.0**exponent
    scale = IntGrid(bits=bits, search=search, scale_dtypes=dtypes).fit(w)["scale"]
    assert scale.dtype == getattr(torch, dtypes[0])
    assert bool((scale > 0).all()) and bool(torch.isfinite(scale).all())
    for name in dtypes:
        assert torch.equal(scale.to(getattr(torch, name)).double(), scale.double())


@pytest.mark.parametrize("search", ["absmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zero(search: str, symmetric: bool) -> None:
    grid = IntGrid(search=search, symmetric=symmetric, scale_dtypes=("float16", "bfloat16"))
    w = torch.zeros(3, 128)
    params = grid.fit(w)
    assert not grid.value(grid.round(w, params), params).any()


@pytest.mark.parametrize("symmetric", [True, False])
def test_asymmetric_ranges_that_miss_zero(symmetric: bool) -> None:
    grid = IntGrid(bits=8, symmetric=symmetric, scale_dtypes=("float32",))
    w = torch.linspace(5, 6, 64).expand(2, -1)
    assert float((grid.value(grid.round(w, p := grid.fit(w)), p) - w).abs().max()) <= float(p["scale"].max()) / 2 + 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
def test_nearest_levels_are_those_of_round(symmetric: bool) -> None:
    grid = IntGrid(bits=3, symmetric=symmetric, scale_dtypes=("float32",))
    w = values(50, 1)
    params = grid.fit(values(50, 32))
    levels = torch.empty(50)
    grid.nearest(params)(w.squeeze(-1) / params["scale"].squeeze(-1), levels)
    assert torch.equal(levels.unsqueeze(-1) * params["scale"], grid.value(grid.round(w, params), params))


def test_every_registered_grid_keeps_the_protocol() -> None:
    w = values(4, 64)
    for name in GRIDS:
        grid = GRIDS.get(name)()
        params = grid.fit(w)
        codes = grid.round(w, params)
        assert codes.dtype == torch.uint8 and int(codes.max()) < grid.alphabet
        assert grid.value(codes, params).dtype == torch.float32
        assert all(p.shape == (4, 1) for p in params.values())
