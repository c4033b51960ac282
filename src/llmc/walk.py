"""Blocks in order, with the activations that reach them: one block in memory at a time, any transformers model.

Each calibration batch is an ordinary forward pass in a thread of its own that parks at the door of every block. When
all have arrived the block is loaded and visited; then they go through and on to the next one. What a model does
between its blocks therefore needs no knowledge of it here. Threads run torch single-threaded and statistics merge in
sample order, so results do not depend on how many work at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from llmc.activations import ActivationStore
from llmc.calibration.experts import observing, route_through_llmc
from llmc.calibration.statistics import Hessian
from llmc.checkpoint import Checkpoint
from llmc.skeleton import direct_parameters
from llmc.structure import InputPoint

Replaced = Callable[[str], torch.Tensor | None]


class _Stop(BaseException):
    """Unwinds a parked forward pass."""


class _Forward(threading.Thread):
    """One batch on its way through the model."""

    def __init__(self, index: int, inputs: dict[str, torch.Tensor], walk: Walk) -> None:
        super().__init__(daemon=True, name=f"llmc-forward-{index}")
        self.index, self.inputs, self.walk = index, inputs, walk
        self.command: str | None = None
        self.at: str | None = None
        self.done = False
        self.error: BaseException | None = None
        self.partials: list[tuple[InputPoint, torch.Tensor, tuple[int, int]]] = []  # shape is (tokens, features)

    def run(self) -> None:
        torch.set_num_threads(1)
        self.walk.current.forward = self
        try:
            with torch.no_grad():
                self.wait()
                self.walk.checkpoint.model(**self.inputs)
        except _Stop:
            pass
        except BaseException as error:
            self.error = error
        with self.walk.turn:
            self.done, self.at, self.command = True, None, None
            self.walk.turn.notify_all()

    def park(self, path: str, arguments: tuple[Any, ...]) -> str:
        """Wait at the door of `path` until told what to do next; the activations may go to disk meanwhile."""
        held = self.walk.store.put(self.index, arguments)
        with self.walk.turn:
            self.at, self.command = path, None
            self.walk.turn.notify_all()
        command = self.wait()
        self.walk.store.take(held)
        return command

    def wait(self) -> str:
        with self.walk.turn:
            while self.command is None:
                self.walk.turn.wait()
            if self.command == "stop":
                raise _Stop
            return self.command


class Walk:
    """A pass of all calibration batches through a model.

    Args:
        checkpoint: the model.
        batches: keyword inputs of the model, one dict per batch.
        doors: paths of modules outside of the blocks that are visited too (targeted heads).
        workers: forward passes that work at once.
        dtype, device: of the arithmetic.
        memory: bytes of parked activations kept in RAM; the rest lies in `folder`.

    Use as a context manager and iterate; each item is the path of a loaded block. The block may be observed; when
    the loop goes on, the batches go through it (`replaced` values first) and it is freed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batches: Sequence[dict[str, torch.Tensor]],
        *,
        doors: Sequence[str] = (),
        workers: int = 1,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        memory: int = 4 << 30,
        folder: Path | None = None,
    ) -> None:
        self.checkpoint, self.workers, self.dtype, self.device = checkpoint, workers, dtype, device
        self.turn = threading.Condition()
        self.loading = threading.Lock()
        self.current = threading.local()
        self.store = ActivationStore(memory, folder)
        self.doors = [*checkpoint.skeleton.blocks, *doors]
        self.visited: set[str] = set()
        self.last_door = len(self.doors)
        self._restore: list[Callable[[], None]] = []
        self._loaded: set[str] = set()
        self._stats: dict[InputPoint, Hessian] = {}
        self._leader: dict[InputPoint, InputPoint] = {}
        self._first: dict[tuple[Any, ...], tuple[InputPoint, torch.Tensor]] = {}
        self._merged = 0
        self.forwards = [_Forward(i, b, self) for i, b in enumerate(batches)]

    def __enter__(self) -> Walk:
        route_through_llmc(self.checkpoint.model)
        for path in self.doors:
            self._hang_door(path)
        for path, module, keys in direct_parameters(self.checkpoint.model):
            outside = not any(path == d or path.startswith(d + ".") for d in self.doors)
            if outside:
                self._load_on_use(module, keys)
        for forward in self.forwards:
            forward.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self.turn:
            for forward in self.forwards:
                forward.command = "stop"
            self.turn.notify_all()
        for forward in self.forwards:
            forward.join()
        for undo in self._restore:
            undo()
        self.checkpoint.clear(self._loaded)
        self.store.close()

    def blocks(self, replaced: Callable[[str], Replaced], keep: Callable[[str], bool]) -> Iterator[str]:
        """Yield each block's path with its original weights loaded.

        Args:
            replaced: block path -> the decoded values its tensors have when the batches go through.
            keep: block path -> whether the outputs seen while observing go on instead (`propagate: original`).
        """
        self._sweep("start", self.forwards)
        while (path := self._arrived()) is not None:
            keys = self._keys(path)
            again = path in self.visited
            if not again:
                self.checkpoint.fill(keys, self.dtype, self.device, lambda name: None)
                self.visited.add(path)
                yield path
            if len(self.visited) == self.last_door and not again:
                self.checkpoint.clear(keys)
                return
            if again or not keep(path):
                self.checkpoint.fill(keys, self.dtype, self.device, replaced(path))
                self._sweep("go", self.forwards)
            else:
                self._sweep("keep", self.forwards)
            self.checkpoint.clear(keys)

    def refill(self, path: str, replaced: Replaced) -> None:
        """Load the block again, with other values for some of its tensors."""
        self.checkpoint.fill(self._keys(path), self.dtype, self.device, replaced)

    def observe(self, path: str, points: Sequence[InputPoint]) -> dict[InputPoint, Hessian]:
        """Run all batches through the loaded block and collect the Hessian at each input point.

        Points that see the same tensor in the first batch share one Hessian object. Points that no batch reached are
        missing from the result.
        """
        self._stats, self._leader, self._first, self._merged = {}, {}, {}, 0
        with observing(self.checkpoint.model, points, self._see):
            self._sweep("observe", self.forwards[:1])
            self._first.clear()
            self._sweep("observe", self.forwards[1:])
        return {p: self._stats[leader] for p, leader in self._leader.items()}

    def _see(self, point: InputPoint, x: torch.Tensor) -> None:
        """Called by hooks with the input `x: [..., features]` of a point, in the thread of a forward pass."""
        forward: _Forward = self.current.forward
        if forward.index == 0 and point.expert is None:
            key = (x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), x.stride(), x._version)
            first = self._first.setdefault(key, (point, x))  # holding x keeps its address from being used again
            self._leader[point] = first[0]
        if self._leader.setdefault(point, point) != point:
            return
        flat = x.reshape(-1, x.shape[-1])
        forward.partials.append((point, Hessian.partial(flat), (flat.shape[0], flat.shape[1])))
        if self._merged == forward.index:  # everybody before has finished: no need to hold it
            self._merge(forward)

    def _merge(self, forward: _Forward) -> None:
        for point, partial, (tokens, features) in forward.partials:
            if point not in self._stats:
                self._stats[point] = Hessian(features)
            self._stats[point].add(partial, tokens)
        forward.partials.clear()

    def _merge_in_turn(self, forward: _Forward) -> None:
        with self.turn:
            while self._merged != forward.index:
                self.turn.wait()
        self._merge(forward)
        with self.turn:
            self._merged += 1
            self.turn.notify_all()

    def _hang_door(self, path: str) -> None:
        module = self.checkpoint.model.get_submodule(path)
        original = module.forward

        def door(*args: Any, **kwargs: Any) -> Any:
            forward: _Forward = self.current.forward
            output = None
            command = forward.park(path, (args, kwargs))
            while command == "observe":
                for hook in list(module._forward_pre_hooks.values()):  # a head is its own input point
                    hook(module, args)
                output = original(*args, **kwargs)
                self._merge_in_turn(forward)
                command = forward.park(path, (args, kwargs, output))
            return original(*args, **kwargs) if command == "go" or output is None else output

        module.forward = door
        self._restore.append(lambda: module.__dict__.pop("forward", None))

    def _load_on_use(self, module: torch.nn.Module, keys: list[str]) -> None:
        def load(*_: Any) -> None:
            with self.loading:
                missing = [k for k in keys if k not in self._loaded]
                self.checkpoint.fill(missing, self.dtype, self.device, lambda name: None)
                for key in missing:
                    self._loaded.update(self.checkpoint.skeleton.ties.get(key, (key,)))

        self._restore.append(module.register_forward_pre_hook(load).remove)

    def _keys(self, path: str) -> list[str]:
        module = self.checkpoint.model.get_submodule(path)
        return [f"{path}.{name}" for name, _ in module.named_parameters()]

    def _arrived(self) -> str | None:
        places = {f.at for f in self.forwards}
        if len(places) != 1:
            raise RuntimeError(f"calibration batches took different ways through the model: {sorted(map(str, places))}")
        return places.pop()

    def _sweep(self, command: str, forwards: Sequence[_Forward]) -> None:
        """Give each forward pass one command, in order, at most `workers` at once, and wait for all."""
        waiting, running = deque(forwards), set[_Forward]()
        with self.turn:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    forward = waiting.popleft()
                    forward.command = command
                    running.add(forward)
                    self.turn.notify_all()
                self.turn.wait(timeout=1.0)
                running = {f for f in running if f.command is not None}
                failed = next((f.error for f in forwards if f.error is not None), None)
                if failed is not None:
                    raise failed
