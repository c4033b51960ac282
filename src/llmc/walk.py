"""Blocks in order, with the activations that reach them: one block in memory at a time, any transformers model.

Each calibration batch is an ordinary forward pass, a greenlet that stops at the door of every block. When all have
arrived the block is loaded and visited; then they go through and on to the next one. What a model does between its
blocks therefore needs no knowledge of it here. A few threads share the batches; each runs torch single-threaded and
statistics merge in sample order, so results do not depend on how many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from llmc.activations import ActivationStore, give_back_freed_memory
from llmc.calibration.experts import observing, route_through_llmc
from llmc.calibration.statistics import Hessian
from llmc.checkpoint import Checkpoint
from llmc.skeleton import direct_parameters
from llmc.structure import InputPoint

Replaced = Callable[[str], torch.Tensor | None]


class _Forward(greenlet):
    """One batch on its way through the model. Lives in one thread; `switch(command)` lets it go on to the next door."""

    def __init__(self, index: int, inputs: dict[str, torch.Tensor], walk: Walk) -> None:
        super().__init__(self._pass)
        self.index, self.inputs, self.walk = index, inputs, walk
        self.thread = getcurrent()  # what runs while this batch waits
        self.at: str | None = None
        self.partials: list[tuple[InputPoint, torch.Tensor, tuple[int, int]]] = []  # shape is (tokens, features)

    def _pass(self, command: str) -> None:
        self.walk.checkpoint.model(**self.inputs)
        self.at = None

    def park(self, path: str, arguments: tuple[Any, ...]) -> str:
        """Wait at the door of `path` until told what to do next; the activations may go to disk meanwhile."""
        held = self.walk.store.put(self.index, arguments)
        self.at = path
        command: str = self.thread.switch()
        self.walk.store.take(held)
        return command


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
        self.failed = False
        self.keeping = False
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
        self._batches = batches
        self._threads: list[ThreadPoolExecutor] = []
        self._share: list[list[_Forward]] = []

    def __enter__(self) -> Walk:
        route_through_llmc(self.checkpoint.model)
        for path in self.doors:
            self._hang_door(path)
        for path, module, keys in direct_parameters(self.checkpoint.model):
            outside = not any(path == d or path.startswith(d + ".") for d in self.doors)
            if outside:
                self._load_on_use(module, keys)
        count = min(self.workers, len(self._batches))
        for worker in range(count):
            thread = ThreadPoolExecutor(1, "llmc-walk", initializer=torch.set_num_threads, initargs=(1,))
            self._threads.append(thread)
            self._share.append(thread.submit(self._begin, worker, count).result())
        return self

    def __exit__(self, *exc: object) -> None:
        for thread, share in zip(self._threads, self._share, strict=True):
            thread.submit(self._end, share).result()
            thread.shutdown()
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
        self._sweep("start")
        while (path := self._arrived()) is not None:
            keys = self._keys(path)
            again = path in self.visited
            if not again:
                self.checkpoint.fill(keys, self.dtype, self.device, lambda name: None)
                self.visited.add(path)
                self.keeping = keep(path)
                yield path
                self._stats, self._leader = {}, {}
                give_back_freed_memory()
            if len(self.visited) == self.last_door and not again:
                self.checkpoint.clear(keys)
                return
            if again or not self.keeping:
                self.checkpoint.fill(keys, self.dtype, self.device, replaced(path))
            self._sweep("go")
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
            self._sweep("observe", slice(0, 1))
            self._first.clear()
            self._sweep("observe", slice(1, None))
        return {p: self._stats[leader] for p, leader in self._leader.items()}

    def _see(self, point: InputPoint, x: torch.Tensor) -> None:
        """Called by hooks with the input `x: [..., features]` of a point, from within a forward pass."""
        forward = _current()
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
            self.turn.wait_for(lambda: self._merged == forward.index or self.failed)
        if self.failed:
            raise GreenletExit
        self._merge(forward)
        with self.turn:
            self._merged += 1
            self.turn.notify_all()

    def _hang_door(self, path: str) -> None:
        module = self.checkpoint.model.get_submodule(path)
        original = module.forward

        def door(*args: Any, **kwargs: Any) -> Any:
            forward = _current()
            kept = None
            while forward.park(path, (args, kwargs, kept)) == "observe":
                for hook in list(module._forward_pre_hooks.values()):  # a head is its own input point
                    hook(module, args)
                output = original(*args, **kwargs)
                kept = output if self.keeping else None
                self._merge_in_turn(forward)
                del output
            return original(*args, **kwargs) if kept is None else kept

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
        places = {f.at for share in self._share for f in share}
        if len(places) != 1:
            raise RuntimeError(f"calibration batches took different ways through the model: {sorted(map(str, places))}")
        return places.pop()

    def _sweep(self, command: str, which: slice = slice(None)) -> None:
        """Let the forward passes of these batches act on one command, and wait for all."""
        indices = range(len(self._batches))[which]
        running: list[Future[None]] = [
            thread.submit(self._act, command, [f for f in share if f.index in indices])
            for thread, share in zip(self._threads, self._share, strict=True)
        ]
        wait(running)
        errors = [e for f in running if (e := f.exception()) is not None]
        if errors:
            raise errors[0]
        give_back_freed_memory()

    def _begin(self, worker: int, workers: int) -> list[_Forward]:
        """The batches of a thread: every n-th, so that merging in order keeps no thread waiting for long."""
        return [_Forward(i, self._batches[i], self) for i in range(worker, len(self._batches), workers)]

    def _act(self, command: str, forwards: Sequence[_Forward]) -> None:
        try:
            with torch.no_grad():
                for forward in forwards:
                    forward.switch(command)
        except BaseException:
            with self.turn:
                self.failed = True
                self.turn.notify_all()
            raise

    @staticmethod
    def _end(forwards: Sequence[_Forward]) -> None:
        for forward in forwards:
            forward.throw(GreenletExit)


def _current() -> _Forward:
    forward = getcurrent()
    if not isinstance(forward, _Forward):
        raise RuntimeError("a block of the model was called outside of a walk")
    return forward
