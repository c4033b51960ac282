"""GPTQ against a naive one in float64, brute force, and rounding to nearest."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import context, hessian, loss, weights

from llmc.calibration.statistics import Hessian
from llmc.compressors.cholesky import factor_upper, inverse_upper
from llmc.compressors.gptq import ROWS, Gptq
from llmc.compressors.rtn import Rtn, round_to_nearest
from llmc.encodings.encoded import Params


def of(matrix: torch.Tensor) -> Hessian:
    """A statistic whose mean is this positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix.double())
    out = Hessian(matrix.shape[0])
    out.update((vectors * values.clamp(min=0).sqrt()).t().float() * matrix.shape[0] ** 0.5)
    return out


def conditional(inverse: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """What a unit error of each column costs once the columns after it in `order` have made up for it."""
    left, out = inverse.clone(), torch.empty(len(order))
    for j in order.tolist():
        out[j] = 1 / left[j, j]
        left -= torch.outer(left[:, j], left[j]) / left[j, j]
        left[j], left[:, j] = 0, 0
    return out


def rank(activity: torch.Tensor, size: int) -> Callable[[int], tuple[float, ...]]:
    """Of a column: the most active group comes first, then the most active column."""
    totals = activity.double().view(-1, size).sum(1)
    return lambda j: (-float(totals[j // size]), j // size, -float(activity[j]), j)


def naive(w: torch.Tensor, H: torch.Tensor, method: Gptq) -> torch.Tensor:
    """Codes by the textbook: after each column, all weights to come and the whole inverse of H are updated."""
    grid, columns = method.make_grid(("bfloat16",)), w.shape[1]
    W, H, activity = w.double().clone(), H.double().clone(), H.diagonal().float()
    size = grid.group_size or columns
    dead = activity == 0
    H.diagonal().add_(method.damping * float(activity.double().sum() / (~dead).sum()))
    H[dead, dead] = 1
    W[:, dead] = 0
    inverse = torch.linalg.inv(H)
    order = torch.tensor(sorted(range(columns), key=rank(activity, columns if method.act_order else size)))
    importance = (conditional(inverse, order) * activity.sqrt()).sqrt()
    params: dict[int, Params] = {}

    def fit(group: int) -> Params:
        cut = slice(group * size, (group + 1) * size)
        return grid.fit(W[:, cut].float(), importance[cut])

    if method.act_order:
        params = {group: fit(group) for group in range(columns // size)}
    codes = torch.empty(w.shape, dtype=torch.uint8)
    left = order.tolist()
    while left:
        j = left.pop(0)
        if j // size not in params:
            params[j // size] = fit(j // size)
        code = grid.round(W[:, j : j + 1], params[j // size])
        codes[:, j] = code[:, 0]
        value = grid.value(code, params[j // size])[:, 0].to(w.dtype).double()
        W[:, left] -= ((W[:, j] - value) / inverse[j, j]).unsqueeze(1) * inverse[j, left]
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 8, 12, 16, 24, 48, 96]),
    symmetric=st.booleans(),
    scales=st.sampled_from(["absmax", "mse"]),
    act_order=st.booleans(),
    slab=st.sampled_from([16, 24, 64, 128]),
    dead=st.sampled_from([(), (0,), (5, 17, 95)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_codes_are_those_of_the_naive_algorithm(
    bits: int,
    group_size: int | None,
    symmetric: bool,
    scales: str,
    act_order: bool,
    slab: int,
    dead: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    method = Gptq(bits=bits, group_size=group_size, symmetric=symmetric, scales=scales, act_order=act_order, slab=slab)
    H, w = hessian(96, bits, dead), weights(9, 96, slab).to(dtype)
    notes = context(torch.float64)
    encoded = method(w, {"hessian": H}, notes)
    assert torch.equal(encoded.codes, naive(w, H.mean(), method))
    assert notes.notes.get("dead_columns", 0) == len(dead)


@pytest.mark.parametrize("act_order", [True, False])
def test_any_grid_of_single_columns(act_order: bool) -> None:
    method = Gptq(grid="nf4", group_size=64, act_order=act_order)
    H, w = hessian(192), weights(9, 192)
    w[3] = 0  # an absmax of zero
    assert torch.equal(method(w, {"hessian": H}, context(torch.float64)).codes, naive(w, H.mean(), method))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_is_enough(dtype: torch.dtype) -> None:
    """Also what a compute dtype of less falls back to."""
    method, H, w = Gptq(group_size=64), hessian(512), weights(64, 512)
    exact = method(w, {"hessian": H}, context(torch.float64))
    encoded = method(w, {"hessian": H}, context(dtype))
    assert float((encoded.codes != exact.codes).double().mean()) < 1e-3
    assert loss(w, encoded, H.mean()) == pytest.approx(loss(w, exact, H.mean()), rel=2e-3)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 16, 64]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    rows=st.integers(1, 20),
    uneven=st.booleans(),
)
def test_without_correlation_it_is_rounding_to_nearest(
    bits: int, group_size: int | None, symmetric: bool, act_order: bool, rows: int, uneven: bool
) -> None:
    H = Hessian(128)
    H.update(torch.diag(torch.logspace(-1, 1, 128) if uneven else torch.ones(128)))
    w, options = weights(rows, 128, bits), {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    gptq = Gptq(**options, act_order=act_order, damping=0.0)(w, {"hessian": H}, context())
    rtn = round_to_nearest(w, Rtn(**options).make_grid(("bfloat16",)), H.diagonal() ** 0.75, context())
    assert torch.equal(gptq.codes, rtn.codes)
    assert all(torch.equal(gptq.params[k], rtn.params[k]) for k in rtn.params)


def test_between_rounding_and_the_best_of_all_integers() -> None:
    """Brute force over all codes of a row bounds the error from below."""
    columns, sums = 6, torch.zeros(3)
    every = torch.tensor(list(itertools.product(range(4), repeat=columns)), dtype=torch.uint8)
    options: dict[str, Any] = {"bits": 2, "group_size": None, "scales": "absmax"}
    for seed in range(6):
        H, w = hessian(columns, seed), weights(8, columns, seed)
        encoded = Gptq(**options, damping=0.0)(w, {"hessian": H}, context(torch.float64))
        best = 0.0
        for row, scale in zip(w, encoded.params["scale"], strict=True):
            E = encoded.grid.value(every, {"scale": scale}).double() - row.double()
            best += float((E @ H.mean().double() * E).sum(1).min())
        assert best <= loss(w, encoded, H.mean()) * (1 + 1e-6)
        sums += torch.tensor([best, loss(w, encoded, H.mean()), loss(w, Rtn(**options)(w, {}, context()), H.mean())])
    assert sums[0] < sums[1] < sums[2]


def test_better_than_rounding_on_average() -> None:
    ratios = []
    for seed in range(10):
        H, w = hessian(64, seed), weights(16, 64, seed)
        errors = [loss(w, m(group_size=32)(w, {"hessian": H}, context()), H.mean()) for m in (Gptq, Rtn)]
        ratios.append(errors[0] / errors[1])
    assert max(ratios) < 1 and sum(ratios) / len(ratios) < 0.8


@pytest.mark.parametrize("act_order", [True, False])
def test_notes_the_error_of_each_part(act_order: bool) -> None:
    H, w = hessian(192, dead=(3,)), weights(30, 192).bfloat16()
    notes = context(parts=(10, 20))
    encoded = Gptq(group_size=64, bits=3, act_order=act_order)(w, {"hessian": H}, notes)
    expected = []
    for a, b in ((0, 10), (10, 30)):
        signal = float((w[a:b].double() @ H.mean().double() * w[a:b].double()).sum())
        expected.append(loss(w[a:b], encoded.rows(a, b), H.mean()) / signal)
    assert notes.notes["relative_error"] == pytest.approx(expected, rel=1e-4)
    whole = context()
    Gptq(group_size=64, bits=3, act_order=act_order)(w, {"hessian": H}, whole)
    assert min(expected) < whole.notes["relative_error"] < max(expected)


def test_rows_are_independent_and_workers_do_not_matter() -> None:
    method, H, w = Gptq(group_size=32), hessian(64), weights(2 * ROWS + 100, 64).bfloat16()
    one = method(w, {"hessian": H}, context(workers=1))
    for workers in (2, 3):
        other = method(w, {"hessian": H}, context(workers=workers))
        assert torch.equal(one.codes, other.codes) and torch.equal(one.params["scale"], other.params["scale"])
    some = method(w[500:700], {"hessian": H}, context())
    assert float((some.codes != one.codes[500:700]).double().mean()) < 1e-3


def test_torch_threads_do_not_matter() -> None:
    method, H, w = Gptq(), hessian(512, count=600), weights(300, 512)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.append(method(w, {"hessian": H}, context()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(seen[0].codes, other.codes) for other in seen[1:])


def test_damping_rises_until_it_factors() -> None:
    w = weights(4, 64)
    singular = of(torch.ones(64, 64))
    notes = context()
    Gptq(group_size=32, damping=0.0)(w, {"hessian": singular}, notes)
    assert notes.notes["damping_steps"] >= 1 and notes.notes["damping"] == 10.0 ** notes.notes["damping_steps"] / 1000
    notes = context()
    Gptq(group_size=32)(w, {"hessian": singular}, notes)
    assert "damping_steps" not in notes.notes


@pytest.mark.parametrize("broken", ["indefinite", "not finite"])
def test_falls_back_to_rounding_and_says_so(broken: str) -> None:
    H = hessian(64)
    if broken == "indefinite":
        H.add(-200 * Hessian.partial(torch.ones(1, 64)) + 300 * Hessian.partial(torch.eye(64)), 0)
    else:
        H.sum[3] = float("inf")
    notes = context()
    w = weights(4, 64)
    encoded = Gptq(group_size=32)(w, {"hessian": H}, notes)
    assert notes.notes["fallback"].startswith("rtn")
    assert torch.equal(encoded.codes, Rtn(group_size=32)(w, {}, context()).codes)


@pytest.mark.parametrize("stats", [{}, {"hessian": Hessian(64)}])
def test_inputs_never_seen_are_rounded_and_noted(stats: dict[str, Any]) -> None:
    notes, w = context(), weights(4, 64)
    encoded = Gptq(group_size=32)(w, stats, notes)
    assert notes.notes == {"uncalibrated": True}
    assert torch.equal(encoded.codes, Rtn(group_size=32)(w, {}, context()).codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 7, 128, 129, 600])
def test_the_factor(columns: int, dtype: torch.dtype) -> None:
    H = hessian(columns, count=3 * columns + 5).mean().to(dtype) + 0.1 * torch.eye(columns, dtype=dtype)
    V = H.clone()
    assert factor_upper(V)
    V = V.triu()
    eps = torch.finfo(dtype).eps
    assert float((V @ V.t() - H).abs().max()) < 100 * eps * float(H.abs().max())
    textbook = torch.linalg.cholesky(torch.linalg.inv(H.double()), upper=True)  # the paper's U
    assert float((inverse_upper(V).double() - textbook).abs().max()) < 1e4 * eps * float(textbook.abs().max())


@pytest.mark.parametrize("columns", [4, 300])
def test_what_has_no_factor(columns: int) -> None:
    H = hessian(columns).mean()
    H[1, 1] = -1.0
    assert not factor_upper(H)
    assert not factor_upper(torch.full((columns, columns), float("nan")))
