"""Where a model's numbers stop being numbers: the first module whose output holds a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from llmc.late import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


def first_nonfinite(model: Any, tokens: Tensor) -> str:
    """The innermost module that is first, in the order of execution, to make a NaN or an infinity of finite inputs.

    Args:
        tokens: ids `[length]`.

    Returns:
        Its path, and whether it is a weight that is not finite; empty where all outputs are finite.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return ""
    found: list[tuple[str, nn.Module]] = []

    def look(path: str, module: nn.Module, _args: Any, output: Any) -> None:
        if not found and not all(_finite(each) for each in _tensors(output)):
            found.append((path, module))

    with ExitStack() as hooks, torch.inference_mode():
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(look, path)).remove)  # inner modules end first
        model(input_ids=tokens[None].to(model.device), use_cache=False)
    if not found:
        return ""
    path, module = found[0]
    broken = next((name for name, value in module.named_parameters() if not _finite(value)), None)
    return f"{path} ({broken} is not finite)" if broken else path


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in what a module returned."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors(each)
