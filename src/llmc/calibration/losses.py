"""What a model loses, per token, from its logits: one definition for search, recovery and evaluation.

Every function takes logits `[..., vocab]` and returns one value per token `[...]`, so that the caller chooses how to
average. Half precision is widened to float32; float32 and float64 are computed as they come. All are differentiable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmc.late import torch

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of `targets` `[...]` (token ids) in nats, `-log softmax(logits)[target]`."""
    wide = _wide(logits)
    chosen = wide.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return wide.logsumexp(-1) - chosen


def kl_divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    """KL(reference || candidate) in nats: `sum p (log p - log q)` over the vocabulary.

    A token to which the reference gives probability zero (a logit of -inf) adds nothing, whatever the candidate says.
    """
    log_p = _wide(reference).log_softmax(-1)
    log_q = _wide(candidate).log_softmax(-1)
    p = log_p.exp()
    return (p * (log_p - log_q)).where(p > 0, 0.0).sum(-1)


def top1(reference: Tensor, candidate: Tensor) -> Tensor:
    """Whether both put the same token first, as bool; of equal logits the lowest token id is first."""
    return reference.argmax(-1) == candidate.argmax(-1)


def paired_losses(reference: Tensor, candidate: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four figures above in one go: both models share the exponentials, of which there is one per logit.

    Returns the cross-entropy of the reference, that of the candidate, the KL divergence and the agreement, each
    `[...]`, as the single functions give them but for rounding: float64 in float64 out, and not differentiable.
    """
    high, first = reference.max(-1, keepdim=True)
    low, other = candidate.max(-1, keepdim=True)
    a, b = reference.double().sub_(high), candidate.double().sub_(low)  # [..., vocab]
    chosen = targets.unsqueeze(-1)
    at_a, at_b = a.gather(-1, chosen).squeeze(-1), b.gather(-1, chosen).squeeze(-1)
    weights = a.exp()
    mass, log_b = weights.sum(-1), b.exp().sum(-1).log_()
    log_a = mass.log()
    kl = torch.linalg.vecdot(weights, a.sub_(b)).div_(mass).sub_(log_a).add_(log_b)
    if not kl.isfinite().all():  # a logit of -inf: what has no weight must not count
        kl = kl_divergence(reference.double(), candidate.double())
    return log_a - at_a, log_b - at_b, kl, (first == other).squeeze(-1)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.element_size() < 4 else logits
