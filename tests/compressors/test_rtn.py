"""Rounding to nearest against a loop over groups; options and the thread pool, which all quantizers share."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.calibration.statistics import Hessian
from llmc.compressors import METHODS
from llmc.compressors.method import Context
from llmc.compressors.options import GridOptions, check_groups
from llmc.compressors.rtn import TILE, Rtn
from llmc.encodings.encoded import Encoded
from llmc.errors import UsageError
from llmc.threads import ordered_map, row_tiles, run_single


def context(**fields: Any) -> Context:
    return Context(torch.float32, **{"scale_dtypes": ("bfloat16",), **fields})


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw) * torch.exp(torch.randn(rows, 1, generator=draw) / 4)


def loop(method: Rtn, w: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Values, one group of one row at a time."""
    grid = method.make_grid(("bfloat16",))
    size = method.group_size or w.shape[1]
    out = torch.empty(w.shape)
    for i, row in enumerate(w.float()):
        for a in range(0, w.shape[1], size):
            group = row[a : a + size].unsqueeze(0)
            params = grid.fit(group, None if importance is None else importance[a : a + size])
            out[i, a : a + size] = grid.value(grid.round(group, params), params)
    return out.to(w.dtype)


def same(a: Encoded, b: Encoded) -> bool:
    return torch.equal(a.codes, b.codes) and all(torch.equal(a.params[k], b.params[k]) for k in a.params)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 16, 32, 96]),
    symmetric=st.booleans(),
    scales=st.sampled_from(["absmax", "mse"]),
    rows=st.integers(1, 7),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_equals_a_loop_over_groups(
    bits: int, group_size: int | None, symmetric: bool, scales: str, rows: int, dtype: torch.dtype
) -> None:
    method = Rtn(bits=bits, group_size=group_size, symmetric=symmetric, scales=scales)
    w = weights(rows, 96, bits).to(dtype)
    encoded = method(w, {}, context())
    assert encoded.dtype == dtype and encoded.shape == (rows, 96)
    assert encoded.params["scale"].shape == (rows, 96 // (group_size or 96))
    assert torch.equal(encoded.dequantize(), loop(method, w))


def test_nf4_equals_a_loop_over_groups() -> None:
    method = Rtn(grid="nf4", group_size=64)
    w = weights(5, 128).bfloat16()
    assert torch.equal(method(w, {}, context()).dequantize(), loop(method, w))


def test_a_hessian_weighs_the_columns() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, 64)
    hessian = Hessian(64)
    hessian.update(x)
    method, w = Rtn(bits=3, group_size=32), weights(40, 64)
    informed = method(w, {"hessian": hessian}, context())
    assert torch.equal(informed.dequantize(), loop(method, w, hessian.diagonal()))
    blind = method(w, {"hessian": Hessian(64)}, context())  # saw no token
    assert same(blind, method(w, {}, context()))

    def loss(encoded: Encoded) -> float:
        return float(((encoded.dequantize() - w).square() * hessian.diagonal()).sum())

    assert loss(informed) < loss(blind)


@pytest.mark.parametrize("scales", ["absmax", "mse"])
def test_the_same_for_any_number_of_workers(scales: str) -> None:
    w = weights(3 * TILE // 512 + 5, 512).bfloat16()
    method = Rtn(scales=scales)
    one = method(w, {}, context(workers=1))
    assert all(same(one, method(w, {}, context(workers=n))) for n in (2, 3))


def test_leaves_the_weights_alone() -> None:
    w = weights(4, 128)
    before = w.clone()
    Rtn()(w, {}, context())
    assert torch.equal(w, before)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"bits": 9}, "option bits: 9 is out of range; use 2 to 8"),
        ({"bits": "four"}, "option bits: 'four' is not a number; use 2 to 8"),
        ({"group_size": 0}, "option group_size: 0 is out of range; use at least 1"),
        ({"scales": "msee"}, "option scales: unknown value 'msee'; did you mean 'mse'?"),
        ({"grid": "fp4"}, "option grid: unknown value 'fp4'; did you mean 'nf4'?"),
    ],
)
def test_options_out_of_range(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        Rtn(**fields)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"bits": 3}, "grid nf4 has 4-bit codes, not 3; use bits 4 or grid int"),
        ({"symmetric": False}, "grid nf4 has no zero point; leave symmetric on or use grid int"),
    ],
)
def test_what_a_grid_does_not_have(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        GridOptions(grid="nf4", **fields).make_grid(("float32",))
    assert str(caught.value) == line


@pytest.mark.parametrize("name", [name for name in METHODS if issubclass(METHODS.get(name), GridOptions)])
def test_groups_that_do_not_fit(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        METHODS.get(name)()(weights(2, 64), {}, context())
    assert str(caught.value) == "group_size 128 does not divide 64 input columns; use group_size 64, 32, 16 or channel"
    with pytest.raises(UsageError, match="use group_size channel"):
        check_groups(128, 65)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_option_explains_itself(name: str) -> None:
    for field in dataclasses.fields(METHODS.get(name)):
        assert field.metadata["help"], field.name


def test_results_come_in_order_and_errors_come_out() -> None:
    assert list(ordered_map(lambda i: i * i, range(50), 3)) == [i * i for i in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda i: 1 // (i - 7), range(50), 3))
    nested = ordered_map(lambda i: sum(ordered_map(lambda j: i * j, range(4), 3)), range(4), 2)
    assert list(nested) == [6 * i for i in range(4)]


def test_parts_run_on_one_thread_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run_single(torch.get_num_threads) == 1
        assert list(ordered_map(lambda _: torch.get_num_threads(), range(4), 2)) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@given(rows=st.integers(1, 5000), size=st.integers(0, 3000))
def test_tiles_cover_the_rows(rows: int, size: int) -> None:
    tiles = row_tiles(rows, size)
    assert [a for a, _ in tiles] == [0, *[b for _, b in tiles[:-1]]] and tiles[-1][1] == rows
    lengths = [b - a for a, b in tiles]
    assert max(lengths) <= max(size, 1) and max(lengths) - min(lengths) <= 1
