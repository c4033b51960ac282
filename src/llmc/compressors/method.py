"""What a method is, and what it is given besides a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch

    from llmc.encodings.encoded import Encoded


@dataclass(frozen=True)
class Context:
    """What a method may use besides its input.

    Attributes:
        compute_dtype: dtype of the arithmetic.
        device: device of the arithmetic.
        workers: how many threads may work at once; results never depend on it.
        scale_dtypes: names of the dtypes in which scales have to be exact.
        parts: row counts of the Targets stacked in this call; per-Target figures are then noted as lists in this order.
        rates: bits per weight that each of the Targets of this call may take, where a budget was shared out.
        notes: facts for the report, filled by `note`.
    """

    compute_dtype: torch.dtype
    device: str = "cpu"
    workers: int = 1
    scale_dtypes: tuple[str, ...] = ("float32",)
    parts: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def note(self, key: str, value: Any) -> None:
        """Record a fact (damping steps, dead columns, ...) for the report of this Target."""
        self.notes[key] = value


class Compressor(Protocol):
    """One Target at a time: a frozen dataclass whose fields are its options.

    `needs` names the statistics it reads. `by_rows` says that rows are independent given the statistics, so that
    targets sharing an input may be stacked and compressed in one call.
    """

    needs: ClassVar[tuple[str, ...]]
    by_rows: ClassVar[bool]

    def __call__(self, weight: torch.Tensor, stats: dict[str, Any], context: Context) -> Encoded:
        """Compress `weight: [out_features, in_features]`."""
        ...
