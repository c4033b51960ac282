"""The losses against sums written out in float64 Python."""

from __future__ import annotations

import math

import pytest
import torch

from llmc.calibration.losses import cross_entropy, kl_divergence, top1


def log_probabilities(row: list[float]) -> list[float]:
    top = max(row)
    total = math.fsum(math.exp(x - top) for x in row)
    return [x - top - math.log(total) for x in row]


def logits(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_cross_entropy_is_the_log_of_the_target(dtype: torch.dtype, tolerance: float) -> None:
    x = logits(0, 7, 31, dtype=dtype)
    targets = torch.arange(7) * 4
    expected = [-log_probabilities(row)[t] for row, t in zip(x.tolist(), targets.tolist(), strict=True)]
    assert cross_entropy(x, targets).tolist() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_kl_is_the_sum_over_the_vocabulary(dtype: torch.dtype, tolerance: float) -> None:
    p, q = logits(1, 2, 5, 40, dtype=dtype), logits(2, 2, 5, 40, dtype=dtype)
    result = kl_divergence(p, q)
    assert result.shape == (2, 5)
    for i in range(2):
        for j in range(5):
            a, b = log_probabilities(p[i, j].tolist()), log_probabilities(q[i, j].tolist())
            expected = math.fsum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True))
            assert result[i, j].item() == pytest.approx(expected, rel=tolerance)


def test_kl_of_close_distributions_keeps_its_digits_in_float64() -> None:
    """Second order: half the variance of the difference under p, here about 5e-11."""
    p = logits(3, 1, 50)
    change = 1e-5 * logits(4, 1, 50)
    weights = p.softmax(-1)
    mean = (weights * change).sum()
    second_order = 0.5 * (weights * (change - mean) ** 2).sum()
    assert kl_divergence(p, p + change).item() == pytest.approx(second_order.item(), rel=1e-3)


def test_kl_direction_shift_and_zero() -> None:
    p, q = logits(5, 3, 20), logits(6, 3, 20)
    assert not torch.allclose(kl_divergence(p, q), kl_divergence(q, p))
    assert torch.equal(kl_divergence(p, p), torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(kl_divergence(p + 100, q - 7), kl_divergence(p, q))


def test_masked_logits() -> None:
    p = torch.tensor([[0.0, 1.0, -math.inf]])
    q = torch.tensor([[0.5, 1.0, -math.inf]])
    assert kl_divergence(p, q).item() == pytest.approx(kl_divergence(p[:, :2], q[:, :2]).item())
    assert kl_divergence(torch.zeros(1, 3), q).item() == math.inf


def test_top1_counts_equal_maxima_as_the_lowest_id() -> None:
    p = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0], [0.0, 1.0, 1.0]])
    q = torch.tensor([[0.0, 9.0, 8.0], [7.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert top1(p, q).tolist() == [True, True, False]


def test_half_precision_is_widened_first() -> None:
    x = logits(7, 4, 64, dtype=torch.bfloat16)
    y = logits(8, 4, 64, dtype=torch.bfloat16)
    targets = torch.tensor([1, 2, 3, 4])
    assert torch.equal(cross_entropy(x, targets), cross_entropy(x.float(), targets))
    assert torch.equal(kl_divergence(x, y), kl_divergence(x.float(), y.float()))


def test_gradients() -> None:
    p, q = logits(9, 2, 6).requires_grad_(), logits(10, 2, 6).requires_grad_()
    assert torch.autograd.gradcheck(kl_divergence, (p, q))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, torch.tensor([3, 0])), (p,))
