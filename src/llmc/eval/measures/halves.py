"""A language model in two halves: the body makes hidden states of tokens, the head makes logits of hidden states.

Hidden states are a few thousand numbers a token where logits are a hundred thousand: states can be kept, and logits
made of them again, bit for bit, without the body. What a model does after its head (soft caps, scales) is its own code,
run on a copy of the model whose body is a stand-in. Whether that gives the logits of the whole model is tried before it
is relied on; where it does not, the model stays whole: its "states" are the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmc.errors import CheckpointError, LlmcError
from llmc.late import nn, torch
from llmc.models.config import without_quantization
from llmc.models.skeleton import instantiate

if TYPE_CHECKING:
    from torch import Tensor

TRIED = 5  # tokens that the halves are tried on


@dataclass(frozen=True)
class Plan:
    """Where a model divides.

    Attributes:
        body: module path of what makes the states.
        kind: `module:class`, in transformers, of what the body returns.
    """

    body: str
    kind: str


@dataclass(frozen=True)
class Head:
    """What a model does with its last hidden states; `parameters` of its output embeddings by local name."""

    plan: Plan
    parameters: Mapping[str, Tensor]
    run: Callable[[Tensor], Tensor]

    def __call__(self, states: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of states `[rows, width]`."""
        with torch.inference_mode():
            return self.run(states)


@dataclass(frozen=True)
class Halves:
    """A model to be scored: `[windows, length]` ids to `[windows, length, width]` states, and on to logits.

    `head` is None where the model is whole: its states are logits.
    """

    states: Callable[[Tensor], Tensor]
    head: Head | None

    def logits(self, states: Tensor) -> Tensor:
        """`[rows, vocab]` of `[rows, width]`."""
        return states if self.head is None else self.head(states)


def halve(model: Any) -> Halves:
    """The two halves of a causal language model, tried on a few tokens; or the whole as one."""
    head = _head_of(model) if isinstance(model, nn.Module) else None
    return Halves(partial(_logits, model), None) if head is None else Halves(partial(_states, model), head)


def build_head(config: Any, plan: Plan, parameters: Mapping[str, Tensor], name: str) -> Head:
    """The head of a model without the model.

    Args:
        config: of transformers.
        plan, parameters: of a `Head` that `halve` made of the model.
        name: of the model, for messages.

    Raises CheckpointError when transformers cannot build the model of `config` around it.
    """
    shell = instantiate(without_quantization(config), name)  # on the meta device
    out = shell.get_output_embeddings()
    for key, value in parameters.items():
        setattr(out, key, nn.Parameter(value, requires_grad=False))
    stand_in = _stand_in(_kind(plan.kind))
    shell.set_submodule(plan.body, stand_in)

    def run(states: Tensor) -> Tensor:
        stand_in.states = states[None]
        # a model may do something to its states before the head: what was kept is what the head itself was given
        handle = out.register_forward_pre_hook(lambda _, args: (states[None], *args[1:]))
        try:
            ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
            return shell(input_ids=ids, use_cache=False).logits[0]
        finally:
            handle.remove()

    return Head(plan, dict(parameters), run)


class _ReachedError(Exception):
    """Unwinds a forward pass from where the head begins."""


def _stand_in(kind: type) -> Any:
    """A body that answers with the states that it was given, in the kind of output that the model's own has."""

    class StandIn(nn.Module):
        states = torch.empty(0)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return kind(last_hidden_state=self.states)

    return StandIn()


def _head_of(model: Any) -> Head | None:
    """The head, where running it alone on the states gives the logits of the whole to the bit; else None."""
    out = model.get_output_embeddings()
    if out is None:
        return None
    tokens = torch.arange(TRIED, device=model.device)[None] % model.config.get_text_config().vocab_size
    plan, logits = _observed(model, out, tokens)
    if plan is None:
        return None
    try:
        states = _states(model, tokens)
        head = build_head(model.config, plan, dict(out.named_parameters(recurse=False)), type(model).__name__)
        same = torch.equal(head(states[0]), logits[0])
    except (LlmcError, TypeError, AttributeError, RuntimeError):  # whatever such a model needs that a stand-in lacks
        return None
    return head if same else None


def _observed(model: Any, out: nn.Module, tokens: Tensor) -> tuple[Plan | None, Tensor]:
    """What a model calls by itself, of which all but the head must be one module; and its logits."""
    from transformers.utils.generic import ModelOutput

    calls: list[tuple[str, Any]] = []
    depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0 and _module is not out:
            calls.append((path, output))

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if module is not model:
                hooks.callback(module.register_forward_pre_hook(enter).remove)
                hooks.callback(module.register_forward_hook(partial(leave, path)).remove)
        logits = _logits(model, tokens)
    if len(calls) != 1 or not isinstance(calls[0][1], ModelOutput):
        return None, logits
    kind = type(calls[0][1])
    return Plan(calls[0][0], f"{kind.__module__}:{kind.__qualname__}"), logits


def _kind(name: str) -> type:
    """The class behind `Plan.kind`. Raises CheckpointError unless it is one of transformers'."""
    module, _, kind = name.partition(":")
    if module.split(".")[0] != "transformers":
        raise CheckpointError(f"{name!r} is no output of transformers")
    return getattr(import_module(module), kind)


def _logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens.to(model.device), use_cache=False).logits


def _states(model: Any, tokens: Tensor) -> Tensor:
    """What the head is given, `[windows, length, width]`; the forward pass ends there."""
    found: list[Tensor] = []

    def catch(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _ReachedError

    handle = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        _logits(model, tokens)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0]
