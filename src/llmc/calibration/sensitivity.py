"""What the errors of each matrix cost the model: its KL divergence, to second order, one matrix changed at a time.

A small change E of a weight moves the outputs by KL = <E, G>^2 / 2 on average, G the gradient of -log p(y) and y drawn
from the model itself (the Fisher information, Amari 1998). One pass forward and back gives <E, G> of all matrices for
the real errors E, in memory for one block: blocks are run again on the way back, loaded for it and given up.
Models without logits are judged by the vector that they give for a text, its tokens' last hidden states pooled as
`eval.embeddings` does, as if each of its numbers had unit noise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llmc.errors import UnsupportedError
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.models.pooling import pooling_of
from llmc.models.skeleton import Group
from llmc.results import Progress, silent
from llmc.targets import Target

Decoded: TypeAlias = "Callable[[str], torch.Tensor | None]"


def kl_losses(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    decoded: Decoded,
    batches: Sequence[dict[str, torch.Tensor]],
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, float]:
    """Name on disk -> nats that a Target's errors cost by themselves, per token or per vector, on these batches.

    Args:
        decoded: name on disk -> what the Target's tensor became.
        batches: keyword inputs of the model; each gives one sample of every <E, G>, so that the estimate has a
            relative standard error of about sqrt(2 / batches).
        dtype: of the computation; None: float32.
    """
    with _Passes(checkpoint, targets, decoded, dtype or torch.float32, device) as passes:
        generator = torch.Generator().manual_seed(seed)
        for done, batch in enumerate(batches):
            progress("what errors cost", done, len(batches))
            passes.run(batch, generator)
        return passes.losses()


class _Passes:
    """The model with its blocks run twice, and what was found so far."""

    def __init__(
        self, checkpoint: Checkpoint, targets: Sequence[Target], decoded: Decoded, dtype: torch.dtype, device: str
    ) -> None:
        self.checkpoint, self.decoded, self.dtype, self.device = checkpoint, decoded, dtype, device
        self.targets = {target.tensor: target for target in targets}
        self.groups = [g for g in checkpoint.skeleton.groups if any(name in self.targets for name, _ in g.sources)]
        self.by_key = {key: group for group in self.groups for key in group.keys}
        self.blocks = {path: checkpoint.model.get_submodule(path) for path in checkpoint.skeleton.blocks}
        self.products: dict[str, float] = defaultdict(float)  # of the pass that runs
        self.sums: dict[str, float] = defaultdict(float)
        self.passes = self.tokens = 0
        self.loaded: str | None = None
        self.pooling = _pooling(checkpoint.folder)

    def __enter__(self) -> _Passes:
        model = self.checkpoint.model
        inside = tuple(path + "." for path in self.blocks)
        names = {k for k, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
        self.outside = [k for k in names if not k.startswith(inside) and self._stored(k)]
        self._load(self.outside)
        for path, module in self.blocks.items():
            module.forward = self._twice(path, module.forward)
        return self

    def __exit__(self, *exc: object) -> None:
        for module in self.blocks.values():
            del module.forward
        self._leave()
        self.checkpoint.clear([key for key in self.outside if key in dict(self.checkpoint.model.named_parameters())])

    def run(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> None:
        """One pass forward and back."""
        with torch.enable_grad():
            out = self.checkpoint.model(**batch)
            logits = getattr(out, "logits", None)
            if logits is not None:
                flat = logits.float().reshape(-1, logits.shape[-1])
                drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
                loss = torch.nn.functional.cross_entropy(flat, drawn.to(flat.device), reduction="sum")
            else:
                flat = self._vectors(out[0].float())
                loss = (flat * torch.randn(flat.shape, generator=generator).to(flat.device)).sum()
            torch.autograd.backward(loss)
        self._leave()
        self.passes += 1
        self.tokens += flat.shape[0]
        for name, product in self.products.items():
            self.sums[name] += product**2
        self.products.clear()

    def _vectors(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[texts, n]` of last hidden states `[texts, ..., n]`."""
        tokens = hidden.flatten(1, -2) if hidden.ndim > 2 else hidden.unsqueeze(1)
        return tokens[:, 0] if self.pooling == "cls" else tokens.mean(1)

    def losses(self) -> dict[str, float]:
        return {name: 0.5 * self.sums[name] / max(self.tokens, 1) for name in self.targets}

    def _twice(self, path: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            from torch.utils._pytree import tree_flatten, tree_unflatten
            from torch.utils.checkpoint import checkpoint as recomputed

            leaves, form = tree_flatten((args, kwargs))
            _start_of_gradients(leaves)
            places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

            def again(*tensors: torch.Tensor) -> Any:
                given = list(leaves)
                for i, tensor in zip(places, tensors, strict=True):
                    given[i] = tensor
                positional, named = tree_unflatten(given, form)
                self._enter(path)
                out = forward(*positional, **named)
                if not torch.is_grad_enabled():
                    self._leave()
                return out

            return recomputed(again, *(leaves[i] for i in places), use_reentrant=True, preserve_rng_state=False)

        return run

    def _enter(self, path: str) -> None:
        self._leave()
        self._load([f"{path}.{name}" for name, _ in self.blocks[path].named_parameters()])
        self.loaded = path

    def _leave(self) -> None:
        if self.loaded is not None:
            module = self.blocks[self.loaded]
            self.checkpoint.clear([f"{self.loaded}.{name}" for name, _ in module.named_parameters()])
            self.loaded = None

    def _stored(self, key: str) -> bool:
        return any(k in self.checkpoint.skeleton.group_of for k in self.checkpoint.skeleton.ties.get(key, (key,)))

    def _load(self, keys: list[str]) -> None:
        ties = self.checkpoint.skeleton.ties
        self.checkpoint.fill(keys, self.dtype, self.device, lambda name: None)
        for path in {path for key in keys for path in ties.get(key, (key,))}:
            group = next((self.by_key[k] for k in ties.get(path, (path,)) if k in self.by_key), None)
            if group is not None:
                parameter = self.checkpoint.model.get_parameter(path).requires_grad_(True)
                parameter.register_post_accumulate_grad_hook(self._taker(group))

    def _taker(self, group: Group) -> Callable[[torch.Tensor], None]:
        """Takes the product of gradient and error of a parameter, and gives the gradient up."""

        def take(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            parameter.grad = None
            if gradient is None:
                return
            with torch.no_grad():
                self._multiply(group, parameter.detach(), gradient)

        return take

    def _multiply(self, group: Group, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        tensors = {}
        for name, _ in group.sources:
            other = self.decoded(name) if name in self.targets else None
            tensors[name] = (self.checkpoint.tensor(name) if other is None else other).to(self.device)
        (made,) = (v for v in group.convert(tensors, self.checkpoint.model).values() if v.shape == parameter.shape)
        product = (made.to(parameter.dtype) - parameter) * gradient
        names = [name for name, _ in group.sources if name in self.targets]
        if len(names) == 1:
            self.products[names[0]] += float(product.sum(dtype=torch.float64))
            return
        by_expert = product.flatten(1).sum(1, dtype=torch.float64).tolist()  # of what an expert has in this parameter
        for name in names:
            point = self.targets[name].point
            shares = sum(1 for other in names if self.targets[other].point == point)
            expert = point.expert if point is not None and point.expert is not None else 0
            self.products[name] += by_expert[expert] / shares


def _pooling(folder: Path) -> str:
    """How an encoder's vector is made; the mean where its files do not say, or say what is not known here."""
    try:
        return pooling_of(folder) or "mean"
    except UnsupportedError:
        return "mean"


def _start_of_gradients(leaves: list[Any]) -> None:
    """Blocks are run again only where a gradient reaches one of their inputs: the first blocks of stacks need one."""
    numbers = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    if numbers and not any(leaves[i].requires_grad for i in numbers):
        leaves[numbers[0]] = leaves[numbers[0]].detach().requires_grad_(True)
