"""What the parts speak of: targets, input points, tables, and the protocol of a compressor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch

    from llmc.encodings.encoded import Encoded

Progress = Callable[[str, float, float], None]
"""`progress(label, done, total)`: how the library reports long work."""


def silent(label: str, done: float, total: float) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class Table:
    """A result for people: one title, the columns, the rows as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class InputPoint:
    """Where the activations that a Target multiplies pass by.

    `module` is a module path of the transformers model; `expert` and `parameter` are set for a routed expert,
    whose matrix is a slice of the fused parameter `module.parameter`.
    """

    module: str
    expert: int | None = None
    parameter: str | None = None

    @property
    def place(self) -> str:
        """Path of the module or of the fused parameter: all routed experts are in one place."""
        return self.module if self.parameter is None else f"{self.module}.{self.parameter}"


@dataclass(frozen=True)
class Target:
    """One logical `[out_features, in_features]` matrix.

    Attributes:
        name: the tensor's name on disk without its `.weight` ending; what `--targets` and `--ignore` match.
        tensor: the tensor's name on disk.
        shape: `(out_features, in_features)`.
        dtype: stored dtype.
        transposed: the tensor on disk is `[in_features, out_features]` (GPT-2's `Conv1D`).
        kind: `linear`, `conv1d`, `expert` or `embedding`.
        block: path of the block it lives in, or None outside of the blocks.
        point: where its inputs are seen; None for embeddings.
        tie: names of all uses of the tensor when it is tied, else empty.
        fuse: runtime-fuse group: inference engines need one scheme for all its members.
    """

    name: str
    tensor: str
    shape: tuple[int, int]
    dtype: torch.dtype
    transposed: bool
    kind: str
    block: str | None
    point: InputPoint | None
    tie: tuple[str, ...] = ()
    fuse: str | None = None

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]


class Statistic(Protocol):
    """An online, mergeable accumulator at one input point."""

    def update(
        self, x: torch.Tensor, *, reference: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> None:
        """Take in `x: [tokens, features]`."""

    def merge(self, other: Any) -> None:
        """Take in what another accumulator of the same kind has seen."""


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


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1000, and exactly: `5.37 MB (5,370,744)`."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    if unit == "bytes":
        return f"{count:,.0f} bytes"
    shown = f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
    return f"{shown} {unit} ({count:,.0f})"


def in_words(span: tuple[float, float]) -> str:
    """Seconds from one number to another: `20 s to 1.5 min`."""
    return " to ".join(map(shown_time, span))


def shown_time(value: float) -> str:
    """Seconds as people say them."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if value >= 1.5 * length:
            return f"{value / length:.2g} {unit}"
    return f"{value:.1f}".rstrip("0").rstrip(".") + " s" if value < 10 else f"{value:.0f} s"
