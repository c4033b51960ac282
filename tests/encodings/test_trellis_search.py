"""The search through a trellis: the best of all ways, the same on every instruction set, and near Shannon's bound."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from trellis_cases import follow

from llmc.encodings import trellis_search
from llmc.encodings.coding import rans
from llmc.encodings.trellis import MACHINES, SHIFTS, FittedTrellis

STATES = sorted(MACHINES)
PATHS = ["baseline", *(path for path in ("avx2", "avx512") if path in rans.paths())]


def grid_of(states: int, columns: int, *, segment: int = 256, step: float = 1.0, classes: int = 1) -> FittedTrellis:
    return FittedTrellis(
        states,
        segment,
        step=step,
        step_code=torch.arange(columns, dtype=torch.uint8) % 5,
        column_class=torch.arange(columns, dtype=torch.uint8) % classes,
    )


def rising_rates(seed: int, classes: int) -> torch.Tensor:
    """Rates [classes, 2, 33] that rise with the magnitude, as those of weights do."""
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0.0, 0.4, (classes, 2, trellis_search.RATES + 1)).astype(np.float32)
    rate[..., :-1] = rate[..., :-1].cumsum(-1)
    return torch.from_numpy(rate)


def search(
    W: torch.Tensor, grid: FittedTrellis, rate: torch.Tensor, *, unit: torch.Tensor | None = None, path: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, rows = W.shape
    unit = torch.eye(n) if unit is None else unit
    return searched(W, unit, grid, torch.zeros(rows, dtype=torch.uint8), rate, torch.float32, path)


def searched(
    W: torch.Tensor,
    unit: torch.Tensor,
    grid: FittedTrellis,
    row_class: torch.Tensor,
    rate: torch.Tensor,
    dtype: torch.dtype,
    path: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, values and errors [columns, rows] of `W: [columns, rows]`."""
    errors, codes, values = W.clone(), torch.empty(W.shape, dtype=torch.int16), torch.empty_like(W)
    columns = torch.arange(len(W))
    trellis_search.search(errors, unit, grid, columns, row_class, rate, (codes, values), dtype=dtype, path=path)
    return codes, values, errors


def cost_of(levels: np.ndarray, parity: np.ndarray, x: np.ndarray, grid: FittedTrellis, rate: np.ndarray) -> np.ndarray:
    """Squared error in steps and rate, of levels at weights x in steps; float64, elementwise."""
    code = 2 * levels + parity
    size = np.abs(code)
    value = np.sign(code) * (size / 2 - grid.shifts.double().numpy()[np.minimum(size, SHIFTS)])
    place = size // 2
    beyond = np.maximum(size / 2 - trellis_search.RATES + 1, 0) * rate[parity, -1] * (place >= trellis_search.RATES - 1)
    return (x - value) ** 2 + rate[parity, np.minimum(place, trellis_search.RATES - 1)] + beyond


def best_of_all(x: np.ndarray, grid: FittedTrellis, rate: np.ndarray, reach: int = 6) -> float:
    """The least cost of all ways through the machine, and of all levels within `reach`: each step branches two ways.

    A branch fixes level mod 2, so the levels of a way can be chosen one by one: all 2^n ways, the best level of each.
    """
    bits, parity_mask, flip_mask = grid.machine
    best = np.inf
    levels = np.arange(-reach, reach + 1)
    for way in itertools.product((0, 1), repeat=len(x)):
        state, total = 0, 0.0
        for weight, branch in zip(x, way, strict=True):
            parity = bin(state & parity_mask).count("1") % 2
            odd = (branch + bin(state & flip_mask).count("1")) % 2
            costs = cost_of(levels, np.full(levels.shape, parity), np.full(levels.shape, weight), grid, rate)
            total += float(costs[levels % 2 == odd].min())
            state = (2 * state + branch) % (1 << bits)
        best = min(best, total)
    return best


@pytest.mark.parametrize("states", [1, 4, 8, 16, 64])
@pytest.mark.parametrize("seed", range(3))
def test_no_way_is_better(states: int, seed: int) -> None:
    """All levels in reach are candidates of the oracle: that two of each class suffice is tested too.

    The search tries the nearest level of each class and the next one towards zero. Where rates rise with the magnitude
    that is exact but in two cases: a rate that falls by more than 8 squared steps from a level to the next of its class
    (the third is at least so much worse), and a weight within a shift of the middle between two levels of its class,
    whose outer one may be nearer by its shifted value. Rates of weights do not do the first, and rise in the second.
    """
    rng = np.random.default_rng(seed)
    W = torch.from_numpy(rng.normal(0, 1.5, (1, 8)).astype(np.float32))
    shift = torch.from_numpy(np.append(0, rng.integers(0, 20, SHIFTS - 1)).astype(np.int8))
    grid = replace(grid_of(states, 1), shift=shift)
    rate = rising_rates(seed, 1)
    codes = search(W, grid, rate)[0][0].numpy().astype(np.int64)
    x, tables = W[0].double().numpy(), rate[0].double().numpy()
    assert np.array_equal(follow((codes >> 1)[:, None], np.arange(8), states, 256)[:, 0], codes)
    found = float(cost_of(codes >> 1, codes & 1, x, grid, tables).sum())
    assert found == pytest.approx(best_of_all(x, grid, tables), abs=1e-5)


def matrix(seed: int, columns: int, rows: int) -> torch.Tensor:
    """Normal weights, some of them far out."""
    W = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed))
    W[:, ::17] *= 50
    return W


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_path_finds_the_same(states: int, dtype: torch.dtype) -> None:
    columns, rows = 37, 131  # two blocks of columns, and a few
    W, grid = matrix(states, columns, rows), grid_of(states, columns, segment=50, step=0.3, classes=2)
    unit = torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=torch.Generator().manual_seed(1)).triu(1)
    row_class = (torch.arange(rows) // 40).clamp(max=2).to(torch.uint8)
    rate = rising_rates(states, 4)
    found = [searched(W, unit, grid, row_class, rate, dtype, path) for path in PATHS]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    codes, values, errors = found[0]
    for column in codes.numpy():
        assert np.array_equal(follow((column >> 1)[:, None], np.arange(rows), states, 50)[:, 0], column)
    assert torch.equal(values, grid.value(codes.t(), {}).to(dtype).float().t())
    assert torch.equal(errors[0], W[0] - values[0])


def test_one_state_without_rates_is_plain_rounding() -> None:
    W, grid = matrix(0, 3, 500), grid_of(1, 3, step=0.7)
    codes, values, _ = search(W, grid, torch.zeros(1, 2, trellis_search.RATES + 1))
    steps = grid.steps.unsqueeze(1)
    assert torch.equal(codes >> 1, (W / steps).round().short())
    assert torch.equal(values, (W / steps).round() * steps)


@pytest.mark.parametrize("states", [1, 8])
def test_errors_go_to_later_columns(states: int) -> None:
    """`running - unit^T errors`, column by column in float64, gives the weights that were quantized."""
    columns, rows = 12, 64
    W, grid = matrix(3, columns, rows), grid_of(states, columns, step=0.5)
    unit = torch.eye(columns) + 0.2 * torch.randn(columns, columns, generator=torch.Generator().manual_seed(2)).triu(1)
    _, values, errors = search(W, grid, rising_rates(0, 5), unit=unit)
    left = W.double().clone()
    for j in range(columns):
        mistake = left[j] - values[j].double()
        assert torch.allclose(errors[j].double(), mistake, atol=1e-5 * float(W.abs().max()))
        left[j + 1 :] -= unit[j, j + 1 :].double().unsqueeze(1) * mistake


def entropy(codes: np.ndarray) -> float:
    """Bits per weight of levels given the parity."""
    bits = 0.0
    for parity in (0, 1):
        counts = np.unique((codes >> 1)[codes % 2 == parity], return_counts=True)[1]
        bits += float((counts * np.log2(counts.sum() / counts)).sum())
    return bits / codes.size


def learned(codes: np.ndarray, price: float) -> torch.Tensor:
    """Rates by magnitude, from codes of symmetric weights."""
    rate = np.zeros((1, 2, trellis_search.RATES + 1))
    size = np.abs(codes.astype(np.int64)) // 2
    for parity in (0, 1):
        counts = np.bincount(
            size[codes % 2 == parity].clip(max=trellis_search.RATES - 1), minlength=trellis_search.RATES
        )
        sides = np.full(trellis_search.RATES, 2.0)
        sides[0] = 2.0 if parity else 1.0
        rate[0, parity, :-1] = -np.log2((counts + 0.1) / sides / counts.sum())
        rate[0, parity, -1] = 1.0
    return torch.from_numpy((price * rate).astype(np.float32))


@pytest.mark.parametrize(("bits", "step"), [(1, 1.85), (2, 0.98), (3, 0.51), (4, 0.256)])
def test_eight_states_are_near_the_bound_of_shannon(bits: int, step: float) -> None:
    W = torch.randn(512, 512, generator=torch.Generator().manual_seed(bits))
    grid = replace(grid_of(8, 512, step=step), step_code=torch.zeros(512, dtype=torch.uint8))
    rate = learned((2 * (W / step).round() + (torch.arange(512) % 2)).short().numpy(), 0.45 / 4)
    few = replace(grid, step_code=grid.step_code[:16])
    codes, error = W.numpy(), 0.0
    for _ in range(4):
        found = [search(part, few, rate) for part in W.split(16)]
        codes = torch.cat([codes for codes, _, _ in found]).numpy()
        error = float(torch.cat([errors for _, _, errors in found]).square().mean())
        rate = learned(codes, 0.45 / 4)
    spent = entropy(codes)
    assert abs(spent - bits) < 0.2, "the step is not that of the rate"
    assert 0.0 < spent - 0.5 * np.log2(1.0 / error) < 0.09


def test_levels_are_counted_by_class_and_parity() -> None:
    rng = np.random.default_rng(3)
    codes = torch.from_numpy(rng.integers(-40, 40, (7, 50)).astype(np.int16))
    row_class, column_class = (torch.from_numpy(rng.integers(0, n, m, np.uint8)) for n, m in ((2, 30), (3, 7)))
    counts = torch.ones(2, 3, 2, 16, dtype=torch.int64)
    trellis_search.count(codes[:, 10:40], row_class, column_class, counts)  # a part of the rows
    expected = np.ones((2, 3, 2, 16), np.int64)
    for j, r in np.ndindex(7, 30):
        code = int(codes[j, 10 + r])
        expected[row_class[r], column_class[j], code & 1, min(max(code >> 1, -8), 7) + 8] += 1
    assert np.array_equal(counts.numpy(), expected)


def test_what_values_lack_is_tallied_by_magnitude() -> None:
    rng = np.random.default_rng(4)
    codes = torch.from_numpy(rng.integers(-40, 40, (5, 60)).astype(np.int16))
    errors, step = torch.randn(5, 60, generator=torch.Generator().manual_seed(0)), torch.rand(5) + 0.5
    seen, lack = torch.zeros(2, SHIFTS, dtype=torch.float64)
    trellis_search.tally(codes, errors, step, seen, lack)
    outwards = (errors / step[:, None] * torch.where(codes < 0, -1, 1)).double()
    for size in range(SHIFTS):
        among = codes.abs() == size
        assert float(seen[size]) == int(among.sum())
        assert float(lack[size]) == pytest.approx(-float(outwards[among].sum()), abs=1e-5)
