"""What one batch shows of a block: where its layers see new inputs, and which of them write to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llmc.late import nn, torch
from llmc.targets import InputPoint

Key: TypeAlias = tuple[int, int, int]
Source: TypeAlias = tuple[str, str]
"""Path of a module, and `in` or `out`: what it was given first, or what it gave."""


@dataclass
class Probe:
    """What one batch shows of a block.

    Attributes:
        points: what is asked for.
        leader: of the points that see one tensor, the first.
        stops: places where there is a new input, in the order of the pass.
        came_in: bytes of what the batch came to the block with.
        widest: bytes of the largest input.
        again: a point was passed more than once.
        sums: what was added up, where that is asked for.
    """

    points: frozenset[InputPoint]
    leader: dict[InputPoint, InputPoint] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    came_in: int = 0
    widest: int = 0
    again: bool = False
    sums: Sums | None = None
    _first: dict[tuple[Any, ...], tuple[InputPoint, torch.Tensor]] = field(default_factory=dict)

    def see(self, point: InputPoint, x: torch.Tensor) -> None:
        key = (x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), x.stride(), x._version)
        leader, _ = self._first.setdefault(key, (point, x))  # holding x keeps its address from being used again
        self.again |= point in self.leader
        self.leader[point] = leader
        self.widest = max(self.widest, x.nbytes)
        if leader == point:
            self.stops.append(point.place)

    def sees_experts(self, place: str) -> bool:
        if any(p.place == place for p in self.points):
            self.again |= place in self.stops
            self.stops.append(place)
        return False

    def order(self) -> tuple[list[set[str]], bool]:
        """Places to be observed together, one set after the other; whether batches can stop before each."""
        if self.again or any(p not in self.leader for p in self.points if p.expert is None):
            return [{p.place for p in self.points}], False
        return [{stop} for stop in self.stops], True

    def alone(self, point: InputPoint) -> bool:
        """Whether no other point sees the same tensor."""
        leader = self.leader.get(point)
        return leader is not None and sum(other == leader for other in self.leader.values()) == 1

    def late(self) -> list[str]:
        """Modules that still run behind the next stop after that at which their input is seen."""
        if self.sums is None:
            return []
        began, first = self.sums.began, {place: i for i, place in reversed(list(enumerate(self.stops)))}
        out = sorted({point.module for point in self.points if point.expert is not None})
        for point, leader in self.leader.items():
            between = [place for place in self.stops[first[leader.place] + 1 :] if place in began]
            if any(began[place] < began[point.module] for place in between):
                out.append(point.module)
        return out

    def residual(self, point: InputPoint) -> tuple[Source, ...]:
        """What, added up, is the residual stream that a layer writes to, as far as it is there before."""
        if self.sums is None or point.expert is not None or self.again:
            return ()
        return self.sums.beside(point.module)


class Sums:
    """The additions of one pass through a block, and the modules that its summands come from or go to.

    Nothing is known of architectures: a layer writes to the residual stream if what it gives is a summand.
    """

    def __init__(self) -> None:
        self._leaves: dict[Key, tuple[Key, ...]] = {}
        self._sources: dict[Key, tuple[int, Source, torch.Tensor, int]] = {}  # when it was first seen, and its version
        self._given: dict[str, tuple[int, Key]] = {}  # module -> when it was run, and what it gave
        self.began: dict[str, int] = {}
        self._alive: list[torch.Tensor] = []  # so that no address is used again
        self._clock = 0

    @contextmanager
    def watching(self, block: nn.Module, path: str) -> Iterator[None]:
        """Take note of what the modules of a block are given and give."""
        hooks = []
        for name, module in block.named_modules():
            own = f"{path}.{name}" if name else path
            if name:
                hooks.append(module.register_forward_pre_hook(self._before(own), with_kwargs=True))
                hooks.append(module.register_forward_hook(self._after(own)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def adding(self) -> Any:
        """A context in which additions are noted."""
        from torch.overrides import TorchFunctionMode

        sums, added = self, {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}

        class Mode(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                if func in added and not kwargs and len(args) == 2:
                    sums._note(args[0], args[1], out)
                return out

        return Mode()

    def beside(self, module: str) -> tuple[Source, ...]:
        """Sources whose sum is what the output of a module is added to, as far as it came before."""
        if module not in self._given:
            return ()
        _, own = self._given[module]
        around = max((leaves for leaves in self._leaves.values() if own in leaves), key=len, default=())
        began = self.began[module]
        known = {key: self._known(key, began) for key in {*self._sources, *around}}
        needed = {key for key in around if key != own and known.get(key) is not None}
        out: list[Source] = []
        while needed:
            choices = {key: set(self._leaves.get(key, (key,))) for key, source in known.items() if source is not None}
            best = max((k for k, parts in choices.items() if parts <= needed), key=lambda k: (len(choices[k]), k))
            source = known[best]
            if source is not None:
                out.append(source)
            needed -= choices[best]
        return tuple(sorted(out))

    def _known(self, key: Key, before: int) -> Source | None:
        """Where a tensor can be had from, if that is before a moment and nothing has written into it since."""
        if key not in self._sources:
            return None
        when, source, tensor, version = self._sources[key]
        return source if when <= before and tensor._version == version else None

    def _note(self, one: Any, other: Any, out: Any) -> None:
        if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape):
            return
        self._alive += [one, other, out]
        self._leaves[_key(out)] = (*self._parts(one), *self._parts(other))

    def _parts(self, tensor: torch.Tensor) -> tuple[Key, ...]:
        return self._leaves.get(_key(tensor), (_key(tensor),))

    def _before(self, path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.began[path] = self._clock
            first = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)), None)
            if first is not None and args and first is args[0]:
                self._source(first, (path, "in"))

        return hook

    def _after(self, path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            first = output if isinstance(output, torch.Tensor) else output[0] if isinstance(output, tuple) else None
            if isinstance(first, torch.Tensor):
                self._given[path] = (self._clock, _key(first))
                self._source(first, (path, "out"))

        return hook

    def _source(self, tensor: torch.Tensor, source: Source) -> None:
        self._clock += 1
        self._sources.setdefault(_key(tensor), (self._clock, source, tensor, tensor._version))


def keeping(model: Any, sources: Sequence[Source], keep: Any) -> Any:
    """A context in which `keep(source, tensor)` is told of these tensors in each pass."""
    return _keeping(model, sources, keep) if sources else nullcontext()


@contextmanager
def _keeping(model: Any, sources: Sequence[Source], keep: Any) -> Iterator[None]:
    hooks = []
    for path, side in dict.fromkeys(sources):
        module = model.get_submodule(path)
        if side == "in":
            hooks.append(module.register_forward_pre_hook(lambda _, args, s=(path, side): keep(s, args[0])))
        else:
            hooks.append(
                module.register_forward_hook(
                    lambda _, args, out, s=(path, side): keep(s, out if isinstance(out, torch.Tensor) else out[0])
                )
            )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _key(tensor: torch.Tensor) -> Key:
    return tensor.data_ptr(), int(tensor.storage_offset()), tensor.numel()
