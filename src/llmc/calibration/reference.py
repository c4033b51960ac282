"""What a batch showed of the original model, kept until the same batch shows it of the compressed one."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.calibration.activations import ActivationStore
from llmc.calibration.drift import Drift
from llmc.late import nn, torch
from llmc.targets import InputPoint


@dataclass(frozen=True)
class Reference:
    """The input of a layer in one pass.

    Attributes:
        x: `[..., features]`.
        rows: which tokens of the batch these are, of a routed expert; None: all.
        residual: summands of the residual stream that the layer writes to, `[..., out]` each; none where that is not
            known.
    """

    x: torch.Tensor
    rows: torch.Tensor | None
    residual: tuple[torch.Tensor, ...] = ()

    @staticmethod
    def of(x: torch.Tensor, rows: torch.Tensor | None, residual: Sequence[torch.Tensor]) -> Reference:
        return Reference(x, rows, tuple(residual))

    def copied(self) -> Reference:
        """The same in memory of its own, with the residual stream added up."""
        stream = (sum(self.residual[1:], self.residual[0].clone()),) if self.residual else ()
        return Reference(self.x.clone(), self.rows, stream)

    def drift(self, original: Reference | None, module: nn.Module | None) -> tuple[Drift, torch.Tensor]:
        """An empty `Drift`, and what this batch adds to it.

        Args:
            original: None where it has no such input.
            module: the layer, if it alone reads `x`; else None.
        """
        x = self.x.reshape(-1, self.x.shape[-1])
        if original is None:
            return Drift(False, False), x.new_zeros(x.shape[1], x.shape[1])
        lost = self._aligned(original) - x
        weight = None if module is None or self.rows is not None else _matrix(module)
        if weight is None or not (self.residual or weight.shape[0] < weight.shape[1]):
            return Drift(False, False), Drift.partial(lost, x)
        lacking = lost @ weight.to(lost.dtype).t()
        if self.residual:
            stream = sum(original.residual[1:], original.residual[0]) - sum(self.residual[1:], self.residual[0])
            lacking += stream.reshape(lacking.shape)
        return Drift(True, bool(self.residual)), Drift.partial(lacking, x)

    def _aligned(self, original: Reference) -> torch.Tensor:
        """The original's `[tokens, features]` for the tokens here; these themselves where the original has none."""
        x, other = (each.x.reshape(-1, each.x.shape[-1]) for each in (self, original))
        if self.rows is None or original.rows is None:
            return other
        place = torch.full((int(max(self.rows.max(), original.rows.max())) + 1,), -1, device=x.device)
        place[original.rows] = torch.arange(len(original.rows), device=x.device)
        at = place[self.rows]
        return torch.where((at >= 0).unsqueeze(-1), other[at.clamp(min=0)], x)


class References:
    """References by batch and input point, in the order they came; under the cap of `store` where they are copies."""

    def __init__(self, store: ActivationStore) -> None:
        self.store = store
        self._waiting: dict[tuple[int, InputPoint], deque[tuple[Reference, Any]]] = defaultdict(deque)

    def keep(self, key: tuple[int, InputPoint], reference: Reference, *, alive: bool) -> None:
        """Args: alive: the pass itself waits, and holds its tensors as they are until the partner has come."""
        own = reference if alive else reference.copied()
        parts = [] if alive else [part.reshape(1, -1, part.shape[-1]) for part in (own.x, *own.residual)]
        self._waiting[key].append((own, self.store.put(parts) if parts else None))

    def take(self, key: tuple[int, InputPoint]) -> Reference | None:
        """The oldest one of a key; None where the original did not come there, as to an expert it did not ask."""
        if not self._waiting[key]:
            return None
        reference, receipt = self._waiting[key].popleft()
        if receipt is not None:
            self.store.take(receipt)
        return reference

    def clear(self) -> None:
        """Forget what no partner came for."""
        for waiting in self._waiting.values():
            for _, receipt in waiting:
                if receipt is not None:
                    self.store.take(receipt)
        self._waiting.clear()


def _matrix(module: nn.Module) -> torch.Tensor | None:
    """The weight `[out, in]` of a linear layer."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return None
    return weight if isinstance(module, nn.Linear) else weight.t() if type(module).__name__ == "Conv1D" else None
