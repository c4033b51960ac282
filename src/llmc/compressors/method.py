"""What a method is, and what it is given besides a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from llmc.encodings.values import Values

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
        keep: `[rows, columns]`, the weights that an earlier stage did not remove; the others have to stay zero.
    """

    compute_dtype: torch.dtype
    device: str = "cpu"
    workers: int = 1
    scale_dtypes: tuple[str, ...] = ("float32",)
    parts: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    keep: torch.Tensor | None = None

    def note(self, key: str, value: Any) -> None:
        """Record a fact (damping steps, dead columns, ...) for the report of this Target."""
        self.notes[key] = value


@dataclass(frozen=True)
class Outlook:
    """What a method says before anything runs, and all that anybody asks of it.

    Attributes:
        grid: what matrices will be on; `Values`: as they are, for the next stage.
        formats: the containers that hold it; None: any that does not refuse.
        divides: what the number of input columns has to be a multiple of.
        keeps_zeros: weights that an earlier stage removed stay zero.
        bits_per_weight: what it would take of a budget, where it follows one; else None.
        shares: rates are to follow what errors cost the model.
        sees_original: layers are calibrated on the inputs of the original model.
    """

    grid: Any
    formats: tuple[str, ...] | None = None
    divides: int = 1
    keeps_zeros: bool = False
    bits_per_weight: float | None = None
    shares: bool = False
    sees_original: bool = False

    @property
    def encodes(self) -> bool:
        """Whether it gives codes: no stage goes on from these."""
        return not isinstance(self.grid, Values)


class Compressor(Protocol):
    """One Target at a time: a frozen dataclass whose fields are its options.

    `needs` names the statistics it reads. `by_rows` says that rows are independent given the statistics, so that
    targets sharing an input may be stacked and compressed in one call.
    """

    needs: ClassVar[tuple[str, ...]]
    by_rows: ClassVar[bool]

    def outlook(self, scale_dtypes: tuple[str, ...]) -> Outlook:
        """What it will do; scales are exact in all of these dtypes."""
        ...

    def __call__(self, weight: torch.Tensor, stats: dict[str, Any], context: Context) -> Encoded | torch.Tensor:
        """Compress `weight: [out_features, in_features]`; a tensor, in its dtype, is for the next stage."""
        ...
