"""Blocks in order, with the activations that reach them: one block in memory at a time, any transformers model.

Each calibration batch is an ordinary forward pass, a greenlet that stops at the door of every block. When all have
arrived the block is loaded and visited; then they go through and on to the next one. In a block that is observed they
stop once more before every layer that sees a new input, until it has its new weights: statistics are of inputs that
came through all layers before as these will be. What a model does between its blocks, and a block between its layers,
needs no knowledge of it here. A few threads share the batches; each runs torch single-threaded and statistics merge in
sample order, so results do not depend on how many there are.

Where layers are to aim at the original model, each batch goes through that too, always one stop ahead: through a layer
before it gets its new weights, with what it showed there kept until its partner comes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeAlias

from llmc.calibration.activations import ActivationStore, activation_bytes, give_back_freed_memory, held_within
from llmc.calibration.experts import observing, route_through_llmc
from llmc.calibration.forward import Enough, Forward, current, ended
from llmc.calibration.probe import Probe, Source, Sums, keeping
from llmc.calibration.reference import Reference, References
from llmc.calibration.statistics import Hessian, Stats
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.models.skeleton import direct_parameters
from llmc.targets import InputPoint

Replaced: TypeAlias = "Callable[[str], torch.Tensor | None]"


class Walk:
    """A pass of all calibration batches through a model.

    Args:
        checkpoint: the model.
        batches: keyword inputs of the model, one dict per batch.
        doors: paths of modules outside of the blocks that are visited too (targeted heads).
        workers: forward passes that work at once.
        dtype, device: of the arithmetic; None: float32.
        memory: bytes of parked activations kept in RAM; the rest lies in `folder`.
        aiming: run the original model too, for a `Drift` beside each Hessian.

    Use as a context manager and iterate; each item is the path of a loaded block. The block may be observed; when
    the loop goes on, the batches go through it (with `replaced` values, if it was not) and it is freed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batches: Sequence[dict[str, torch.Tensor]],
        *,
        doors: Sequence[str] = (),
        workers: int = 1,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        memory: int = 4 << 30,
        folder: Path | None = None,
        aiming: bool = False,
    ) -> None:
        self.checkpoint, self.workers, self.aiming = checkpoint, workers, aiming
        self.dtype, self.device = dtype or torch.float32, device
        self.turn = threading.Condition()
        self.loading = threading.Lock()
        self.failed = False
        self.store = ActivationStore(memory, folder)
        self.doors = [*checkpoint.skeleton.blocks, *doors]
        self.visited: set[str] = set()
        self._restore: list[Callable[[], None]] = []
        self._loaded: set[str] = set()
        self._stats: dict[InputPoint, Stats] = {}
        self._references = References(self.store)
        self._residuals: dict[InputPoint, tuple[Source, ...]] = {}
        self._late: list[
            str
        ] = []  # parameters of layers that run after a later stop than the one before which they wait
        self._refilled: tuple[list[str], Replaced] | None = None  # keys that have other values, and these
        self._probe, self._probing = Probe(frozenset()), False
        self._ahead: set[str] = set()  # places whose inputs are taken in
        self._pausing = self._holding = False  # whether passes stop before them; whether they go on from there
        self._at: str | None = None  # the place where batches wait
        self._ahead_at: str | None = None  # and those of the original
        self._queue: deque[int] = deque()  # batches whose statistics are to come, in order
        self._observed = False
        self.over = False  # no batch will see what is loaded from here on
        self._batches = batches
        self._threads: list[ThreadPoolExecutor] = []
        self._share: list[list[Forward]] = []
        self._originals: list[list[Forward]] = []

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
            self._originals.append(thread.submit(self._begin, worker, count, True).result() if self.aiming else [])
        return self

    def __exit__(self, *exc: object) -> None:
        for thread, *shares in zip(self._threads, self._share, self._originals, strict=True):
            thread.submit(ended, [forward for share in shares for forward in share]).result()
            thread.shutdown()
        for undo in self._restore:
            undo()
        self.checkpoint.clear(self._loaded)
        self.store.close()

    def blocks(self, replaced: Callable[[str], Replaced]) -> Iterator[str]:
        """Yield each block's path with its original weights loaded.

        Args:
            replaced: block path -> the decoded values its tensors have when batches go through without observation.
        """
        self._sweep("start", None)
        self._lead("start", None)
        while (path := self._arrived()) is not None:
            keys, again = self._keys(path), path in self.visited
            self._at = self._ahead_at = path
            self._observed, self._refilled = False, None
            if not again:
                self.checkpoint.fill(keys, self.dtype, self.device, original)
                self.visited.add(path)
                yield path
                give_back_freed_memory()
                if self._last_door():
                    self.checkpoint.clear(keys)
                    return
            if not self._observed:
                if self.aiming:
                    self.checkpoint.fill(keys, self.dtype, self.device, self.checkpoint.own)
                    self._lead("go", path)
                self.checkpoint.fill(keys, self.dtype, self.device, replaced(path))
            self._sweep("go", self._at)
            self.checkpoint.clear(keys)

    def refill(self, paths: Iterable[str], replaced: Replaced) -> None:
        """Load modules again, with other values for some of their tensors."""
        keys = [key for path in sorted(paths) for key in self._keys(path)]
        self._refilled = ([*(self._refilled[0] if self._refilled else []), *keys], replaced)
        self.checkpoint.fill(keys, self.dtype, self.device, replaced)

    def observe(self, path: str, points: Sequence[InputPoint]) -> Iterator[dict[InputPoint, Stats]]:
        """Run all batches through the loaded block; yield the statistics at its input points, first inputs first.

        These are `hessian` and, where the walk is aiming, `drift`. Points that see one tensor come together and share
        one object; what takes it may be loaded again before batches go on. Points that no batch reaches never come.

        Batches wait within the block where memory allows, otherwise they come from its door every time: the same
        results for more work. If a module is run more than once they do, too, and all points come together.
        """
        if not points:
            return
        with observing(self.checkpoint.model, points, self):
            order = self._explore(path, points)
            with keeping(self.checkpoint.model, sum(self._residuals.values(), ()), self._keep):
                for i, places in enumerate(order):
                    self._stop_at(path, order, i)
                    yield self._found(places)
            self._forget()

    def _stop_at(self, path: str, order: Sequence[set[str]], i: int) -> None:
        """Bring all batches to a stop, and the original's on to the next one: the layer still has its own weights."""
        places = order[i]
        self._ahead = set().union(*order[i:]) if self._holding else places
        if self.aiming and not (self._holding and i):
            self._lead_to(path, places, last=places is order[-1])
        self._sweep("go" if self._holding else "observe", self._at)
        if self._holding:
            (self._at,) = places
        self.over = self._last_door() and places is order[-1]
        if self.aiming and self._holding and not self.over:
            with self._own_weights(self._late):
                self._lead("go", self._ahead_at)
            self._ahead_at = next(iter(order[i + 1])) if i + 1 < len(order) else None

    def _explore(self, path: str, points: Sequence[InputPoint]) -> list[set[str]]:
        """Let one batch show the block; decide how all go through it. Returns the places to stop at, in order."""
        probe = Probe(frozenset(points), sums=Sums() if self.aiming else None)
        self._probe, self._probing, early = probe, True, self._refilled is not None
        block = self.checkpoint.model.get_submodule(path)
        with probe.sums.watching(block, path) if probe.sums is not None else nullcontext():
            self._sweep("observe", path, slice(0, 1))
        self._observed, self._probing, self._stats = True, False, {}
        order, self._pausing = probe.order()
        self._residuals = {p: found for p in points if probe.alone(p) and (found := probe.residual(p))}
        self._late = [key for module in probe.late() for key in self._keys(module)]
        probe.sums = None
        streams = 2 if self.aiming else 1
        fits = streams * len(self._batches) * held_within(probe.came_in, probe.widest) <= self.store.memory
        self._holding = self._pausing and fits and path not in probe.stops and not (self.aiming and early)
        return order

    def _lead_to(self, path: str, places: set[str], *, last: bool) -> None:
        """Bring the original's batches to a stop: within the block, or from its door with its own weights again."""
        if self._holding:
            self._lead("go", path)
            (self._ahead_at,) = places
            return
        with self._own_weights(self._keys(path)):
            self._lead("observe", path)
            if last and not self._last_door():
                self._ahead = set()
                self._lead("go", path)
                self._ahead = places

    @contextmanager
    def _own_weights(self, keys: Sequence[str]) -> Iterator[None]:
        """Give those of these parameters that have other values their own ones for a while."""
        if self._refilled is None or not keys:
            yield
            return
        changed, replaced = self._refilled
        self.checkpoint.fill(sorted({*keys} & {*changed}), self.dtype, self.device, self.checkpoint.own)
        yield
        self.checkpoint.fill(changed, self.dtype, self.device, replaced)

    def _forget(self) -> None:
        """Let go of what batches kept for this block."""
        self._residuals = {}
        self._references.clear()
        for forward in [each for share in (*self._share, *self._originals) for each in share]:
            forward.kept.clear()

    def _keep(self, source: Source, tensor: torch.Tensor) -> None:
        if not self._probing:
            current().kept[source] = tensor

    def see(self, point: InputPoint, x: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Called by hooks with the input `x: [..., features]` of a point, from within a forward pass.

        Args:
            rows: which of the batch's tokens these are, of a routed expert.
        """
        probe = self._probe
        if self._probing:
            return probe.see(point, x)
        if point not in probe.points or point.place not in self._ahead or probe.leader.get(point, point) != point:
            return
        forward = current()
        residual = [forward.kept[source] for source in self._residuals.get(point, ())]
        if forward.original:
            self._references.keep((forward.index, point), Reference.of(x, rows, residual), alive=self._holding)
        else:
            flat = x.reshape(-1, x.shape[-1])
            forward.partials.append((point, Hessian.partial(flat), (flat.shape[0], flat.shape[1])))
            if self.aiming:
                self._compare(forward, point, Reference.of(x, rows, residual))
            if self._queue[0] == forward.index:  # everybody before has finished: no need to hold it
                self._merge(forward)
        if point.expert is None:
            self._pause(point.place, x)

    def _compare(self, forward: Forward, point: InputPoint, seen: Reference) -> None:
        """How far the original's inputs at a point are from those that were seen."""
        reference = self._references.take((forward.index, point))
        module = self.checkpoint.model.get_submodule(point.module) if self._probe.alone(point) else None
        forward.drifts.append((point, *seen.drift(reference, module)))

    def sees_experts(self, place: str) -> bool:
        """Whether experts are to be run for the inputs of this fused parameter of theirs alone."""
        return self._probe.sees_experts(place) if self._probing else place in self._ahead

    def seen_experts(self, place: str, hidden_states: torch.Tensor) -> None:
        self._pause(place, hidden_states)

    def _pause(self, place: str, x: torch.Tensor) -> None:
        forward = current()
        if self._holding:
            forward.park(place, () if forward.original else (x,))  # what an original waits with is asked for meanwhile
        elif self._pausing:
            raise Enough

    def _found(self, places: set[str]) -> dict[InputPoint, Stats]:
        leaders = {point: point for point in self._stats} | self._probe.leader
        seen = {p: leader for p, leader in leaders.items() if leader.place in places and leader in self._stats}
        found = {p: self._stats[leader] for p, leader in seen.items()}
        self._stats = {p: stat for p, stat in self._stats.items() if p.place not in places}
        return found

    def _merge(self, forward: Forward) -> None:
        for point, partial, (tokens, features) in forward.partials:
            self._stats.setdefault(point, {"hessian": Hessian(features)})["hessian"].add(partial, tokens)
        for (point, drift, partial), (_, _, (tokens, _)) in zip(forward.drifts, forward.partials, strict=False):
            self._stats[point].setdefault("drift", drift).add(partial, tokens)
        forward.partials.clear()
        forward.drifts.clear()

    def _merge_in_turn(self, forward: Forward) -> bool:
        """False where another thread failed."""
        with self.turn:
            self.turn.wait_for(lambda: self._queue[0] == forward.index or self.failed)
        if self.failed:
            return False
        self._merge(forward)
        with self.turn:
            self._queue.popleft()
            self.turn.notify_all()
        return True

    def _hang_door(self, path: str) -> None:
        module = self.checkpoint.model.get_submodule(path)
        own = module.forward

        def door(*args: Any, **kwargs: Any) -> Any:
            forward = current()
            while forward.park(path, (args, kwargs)) == "observe":
                if self._probing:
                    self._probe.came_in = activation_bytes((args, kwargs))
                watched = self._probe.sums.adding() if self._probing and self._probe.sums else nullcontext()
                with suppress(Enough), watched:
                    for hook in list(module._forward_pre_hooks.values()):  # a head is its own input point
                        hook(module, args)
                    own(*args, **kwargs)
            return own(*args, **kwargs)

        module.forward = door
        self._restore.append(lambda: module.__dict__.pop("forward", None))

    def _load_on_use(self, module: torch.nn.Module, keys: list[str]) -> None:
        def load(*_: Any) -> None:
            with self.loading:
                missing = [k for k in keys if k not in self._loaded]
                self.checkpoint.fill(missing, self.dtype, self.device, self.checkpoint.own)
                for key in missing:
                    self._loaded.update(self.checkpoint.skeleton.ties.get(key, (key,)))

        self._restore.append(module.register_forward_pre_hook(load).remove)

    def _keys(self, path: str) -> list[str]:
        module = self.checkpoint.model.get_submodule(path)
        return [f"{path}.{name}" for name, _ in module.named_parameters()]

    def _last_door(self) -> bool:
        return len(self.visited) == len(self.doors)

    def _arrived(self) -> str | None:
        places = {f.at for share in (*self._share, *self._originals) for f in share}
        if len(places) != 1:
            raise RuntimeError(f"calibration batches took different ways through the model: {sorted(map(str, places))}")
        return places.pop()

    def _sweep(self, command: str, at: str | None, which: slice = slice(None)) -> None:
        """Let the forward passes that wait at a place, of these batches, act on a command, and wait for all."""
        self._run(self._share, command, at, which)

    def _lead(self, command: str, at: str | None) -> None:
        """The same for those that go through the original model, where there are such."""
        if self.aiming:
            self._run(self._originals, command, at, slice(None))

    def _run(self, family: Sequence[Sequence[Forward]], command: str, at: str | None, which: slice) -> None:
        indices = range(len(self._batches))[which]
        shares = [[f for f in share if f.at == at and f.index in indices] for share in family]
        self._queue = deque(sorted(f.index for share in shares for f in share))
        running: list[Future[None]] = [
            thread.submit(self._act, command, share) for thread, share in zip(self._threads, shares, strict=True)
        ]
        wait(running)
        errors = [e for f in running if (e := f.exception()) is not None]
        if errors:
            raise errors[0]
        give_back_freed_memory()

    def _begin(self, worker: int, workers: int, original: bool = False) -> list[Forward]:
        """The batches of a thread: every n-th, so that merging in order keeps no thread waiting for long."""
        return [Forward(i, self._batches[i], self, original) for i in range(worker, len(self._batches), workers)]

    def _act(self, command: str, forwards: Sequence[Forward]) -> None:
        with torch.no_grad():
            self._switch(command, forwards)

    def _switch(self, command: str, forwards: Sequence[Forward]) -> None:
        try:
            for forward in forwards:
                forward.switch(command)
                if not self._merge_in_turn(forward):
                    return
        except BaseException:
            with self.turn:
                self.failed = True
                self.turn.notify_all()
            raise


def original(name: str) -> None:
    """No other value than the file's."""
