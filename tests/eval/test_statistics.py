"""The Hessian against float64, and its independence of how tokens are cut into batches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.calibration.statistics import NARROW, STATISTICS, Hessian


def tokens(count: int, features: int, seed: int = 0) -> torch.Tensor:
    """Activations as they are: a few channels much larger than the rest, all correlated."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=draw) @ torch.randn(features, features, generator=draw) / features**0.5
    x[:, :: max(features // 3, 1)] *= 30
    return x


def exact(x: torch.Tensor) -> torch.Tensor:
    return x.double().t() @ x.double() / x.shape[0]


def close(H: torch.Tensor, oracle: torch.Tensor) -> None:
    """Every element to 2e-6 of the geometric mean of its diagonal elements: what Cauchy-Schwarz bounds it by."""
    d = oracle.diagonal().sqrt()
    assert float(((H.double() - oracle) / torch.outer(d, d)).abs().max()) < 2e-6


@pytest.mark.parametrize("features", [1, 5, 64, 65, 761, NARROW, NARROW + 1, 1273])
def test_mean_is_the_float64_mean(features: int) -> None:
    x = tokens(700, features)
    H = Hessian(features)
    for part in x.split(100):
        H.update(part)
    assert H.tokens == 700
    close(H.mean(), exact(x))
    assert torch.equal(H.mean(), H.mean().t())
    torch.testing.assert_close(H.diagonal(), H.mean().diagonal(), rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 299), max_size=6, unique=True), features=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_batches_do_not_matter(cuts: list[int], features: int, seed: int) -> None:
    x = tokens(300, features, seed)
    edges = [0, *sorted(cuts), 300]
    H, other = Hessian(features), Hessian(features)
    for i, (a, b) in enumerate(pairwise(edges)):
        (H if i % 2 else other).update(x[a:b])
    H.merge(other)
    assert H.tokens == 300
    close(H.mean(), exact(x))


def test_partial_sums_added_in_order_are_what_update_gives() -> None:
    x = tokens(96, 300)
    direct, in_steps = Hessian(300), Hessian(300)
    partials = [Hessian.partial(part) for part in reversed(x.split(32))]
    for part in x.split(32):
        direct.update(part)
        in_steps.add(partials.pop(), 32)
    assert torch.equal(direct.mean(), in_steps.mean())


def test_takes_any_float_and_leading_dimensions() -> None:
    x = tokens(64, 20).bfloat16()
    H = Hessian(20)
    H.update(x.view(4, 16, 20))
    assert H.tokens == 64
    close(H.mean(), exact(x))


def test_weights_count_tokens() -> None:
    x = tokens(50, 8)
    weight = torch.tensor([0.0, 1.0, 2.5, 1.0, 0.5] * 10)
    H = Hessian(8)
    H.update(x, weight=weight)
    oracle = (x.double().t() * weight.double()) @ x.double() / float(weight.sum())
    close(H.mean(), oracle)


def test_before_the_first_token() -> None:
    H = STATISTICS.get("hessian")(7)
    assert H.tokens == 0
    assert not H.mean().any() and not H.diagonal().any()
