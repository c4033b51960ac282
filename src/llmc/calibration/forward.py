"""One calibration batch on its way through a model: an ordinary forward pass that can wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

from llmc.calibration.drift import Drift
from llmc.calibration.probe import Source
from llmc.targets import InputPoint

if TYPE_CHECKING:
    import torch

    from llmc.calibration.walk import Walk


class Forward(greenlet):
    """One batch on its way through the model. Lives in one thread; `switch(command)` lets it go on."""

    def __init__(self, index: int, inputs: dict[str, torch.Tensor], walk: Walk, original: bool) -> None:
        super().__init__(self._pass)
        self.index, self.inputs, self.walk, self.original = index, inputs, walk, original
        self.thread = getcurrent()  # what runs while this batch waits
        self.at: str | None = None  # the place where it waits
        self.partials: list[tuple[InputPoint, torch.Tensor, tuple[int, int]]] = []  # shape is (tokens, features)
        self.drifts: list[tuple[InputPoint, Drift, torch.Tensor]] = []
        self.kept: dict[Source, torch.Tensor] = {}  # what is part of the residual stream, in this block

    def _pass(self, command: str) -> None:
        self.walk.checkpoint.model(**self.inputs)
        self.at = None

    def park(self, place: str, arguments: tuple[Any, ...]) -> str:
        """Wait at a place until told what to do next; the activations may go to disk meanwhile."""
        self.at = place
        held = self.walk.store.put(arguments)
        command: str = self.thread.switch()
        self.walk.store.take(held)
        return command


class Enough(BaseException):
    """A pass through a block has seen what it was to see."""


def current() -> Forward:
    forward = getcurrent()
    if not isinstance(forward, Forward):
        raise RuntimeError("a block of the model was called outside of a walk")
    return forward


def ended(forwards: Sequence[Forward]) -> None:
    """End passes that wait, in the thread that they live in."""
    for forward in forwards:
        forward.throw(GreenletExit)
