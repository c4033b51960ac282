"""Input points of a model: hooks on its linear layers, and an experts implementation that shows each expert its tokens.

transformers 5 fuses the routed experts of a layer into 3-D parameters and lets a registered function run them. Ours
runs them one by one in the order of their index and reports the input of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from llmc.late import nn, torch
from llmc.targets import InputPoint

EXPERTS = "llmc"


class Observer(Protocol):
    """What wants to know of inputs."""

    def see(self, point: InputPoint, x: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Called with the input `x: [..., features]` of a point, from within a forward pass, before it is used.

        Args:
            rows: which of the tokens these are, of a routed expert.
        """

    def sees_experts(self, place: str) -> bool:
        """Whether experts are to be run for the inputs of this fused parameter of theirs alone."""
        ...

    def seen_experts(self, place: str, hidden_states: torch.Tensor) -> None:
        """Called when they have been, with the input of them all."""


def route_through_llmc(model: Any) -> None:
    """Let the fused experts of `model` run through `experts_forward`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS[EXPERTS] = experts_forward
    for module in model.modules():
        if _is_experts(module):
            module.config._experts_implementation = EXPERTS


@contextmanager
def observing(model: Any, points: Sequence[InputPoint], observer: Observer) -> Iterator[None]:
    """Tell the observer whenever an input passes one of the points."""
    handles = []
    fused: dict[str, None] = {}
    for point in points:
        if point.expert is not None:
            fused[point.module] = None
        else:
            module = model.get_submodule(point.module)
            handles.append(module.register_forward_pre_hook(_hook(point, observer)))
    for path in fused:
        model.get_submodule(path)._llmc_observed = (path, observer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for path in fused:
            del model.get_submodule(path)._llmc_observed


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts of one layer: `hidden_states [tokens, hidden]`, `top_k_* [tokens, k]` -> `[tokens, hidden]`."""
    path, observer = getattr(self, "_llmc_observed", ("", None))
    if observer is not None:
        for name in (_first(self), "down_proj"):
            _show(self, path, name, observer, hidden_states, top_k_index)
    out = torch.zeros_like(hidden_states)
    for expert, token, slot in _routed(self, top_k_index):
        y = _project(self, "down_proj", expert, _inner(self, expert, hidden_states[token]))
        if self.has_post_expert_norm:
            y = self.post_expert_norm(y)
        out.index_add_(0, token, (y * top_k_weights[token, slot, None]).to(out.dtype))
    return out


def _show(
    self: Any, path: str, name: str, observer: Observer, hidden_states: torch.Tensor, top_k_index: torch.Tensor
) -> None:
    point = InputPoint(path, 0, name)
    if not observer.sees_experts(point.place):
        return
    for expert, token, _ in _routed(self, top_k_index):
        x = hidden_states[token]
        observer.see(replace(point, expert=expert), _inner(self, expert, x) if name == "down_proj" else x, token)
    observer.seen_experts(point.place, hidden_states)


def _routed(self: Any, top_k_index: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Experts that have tokens: their index, the tokens, and which of a token's experts they are."""
    for expert in range(self.num_experts):
        token, slot = torch.where(top_k_index == expert)
        if token.numel():
            yield expert, token, slot


def _first(self: Any) -> str:
    return "gate_up_proj" if self.has_gate else "up_proj"


def _inner(self: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    """What `down_proj` gets: `x [routed, hidden]` -> `[routed, intermediate]`."""
    inner = _project(self, _first(self), expert, x)
    return self._apply_gate(inner) if self.has_gate else self.act_fn(inner)


def _project(experts: Any, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, name + "_bias")[expert] if experts.has_bias else None
    return nn.functional.linear(x, weight.t() if experts.is_transposed else weight, bias)


def _hook(point: InputPoint, observer: Observer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        observer.see(point, args[0])

    return hook


def _is_experts(module: nn.Module) -> bool:
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "config")
