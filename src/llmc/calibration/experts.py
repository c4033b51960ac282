"""Input points of a model: hooks on its linear layers, and an experts implementation that shows each expert its tokens.

transformers 5 fuses the routed experts of a layer into 3-D parameters and lets a registered function run them. Ours
runs them one by one in the order of their index and reports the input of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from llmc.structure import InputPoint

EXPERTS = "llmc"
See = Callable[[InputPoint, torch.Tensor], None]


def route_through_llmc(model: Any) -> None:
    """Let the fused experts of `model` run through `experts_forward`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS[EXPERTS] = experts_forward
    for module in model.modules():
        if _is_experts(module):
            module.config._experts_implementation = EXPERTS


@contextmanager
def observing(model: Any, points: Sequence[InputPoint], see: See) -> Iterator[None]:
    """Call `see(point, x)` whenever an input passes one of the points."""
    handles = []
    fused: dict[str, None] = {}
    for point in points:
        if point.expert is not None:
            fused[point.module] = None
        else:
            module = model.get_submodule(point.module)
            handles.append(module.register_forward_pre_hook(_hook(point, see)))
    for path in fused:
        model.get_submodule(path)._llmc_see = (path, see)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for path in fused:
            del model.get_submodule(path)._llmc_see


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts of one layer: `hidden_states [tokens, hidden]`, `top_k_* [tokens, k]` -> `[tokens, hidden]`."""
    out = torch.zeros_like(hidden_states)
    path, see = getattr(self, "_llmc_see", ("", None))
    first = "gate_up_proj" if self.has_gate else "up_proj"
    for expert in range(self.num_experts):
        token, slot = torch.where(top_k_index == expert)
        if token.numel() == 0:
            continue
        x = hidden_states[token]  # [routed, hidden]
        if see is not None:
            see(InputPoint(path, expert, first), x)
        inner = _project(self, first, expert, x)
        inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        if see is not None:
            see(InputPoint(path, expert, "down_proj"), inner)
        y = _project(self, "down_proj", expert, inner)
        if self.has_post_expert_norm:
            y = self.post_expert_norm(y)
        out.index_add_(0, token, (y * top_k_weights[token, slot, None]).to(out.dtype))
    return out


def _project(experts: Any, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, name + "_bias")[expert] if experts.has_bias else None
    return linear(x, weight.t() if experts.is_transposed else weight, bias)


def _hook(point: InputPoint, see: See) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        see(point, args[0])

    return hook


def _is_experts(module: nn.Module) -> bool:
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "config")
