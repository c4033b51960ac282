"""How far each block's output is from the original's, on the first tokens of the text.

Each model is fed by itself, so that errors add up from block to block as they do in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from llmc.late import nn, torch
from llmc.models.skeleton import find_blocks

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 512


def block_outputs(model: Any, tokens: Tensor, take: Callable[[str, Tensor], None]) -> None:
    """Run `tokens` `[length]` through a model and hand on the path and output `[length, width]` of each block.

    A model in which no blocks are found hands on nothing.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return
    modules = dict(model.named_modules())

    def hook(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        first = output if isinstance(output, torch.Tensor) else output[0]
        take(path, first[0])

    with ExitStack() as hooks, torch.inference_mode():
        for path in find_blocks(model):
            hooks.callback(modules[path].register_forward_hook(partial(hook, path)).remove)
        model(input_ids=tokens[None].to(model.device), use_cache=False)


def layer_errors(model: Any, tokens: Tensor, original: Mapping[str, Tensor]) -> dict[str, float]:
    """`|y - y_original|^2 / |y_original|^2` of each block, by its path, in the order they run.

    Args:
        tokens: `[length]`.
        original: path -> output of the original's block on the same tokens, `[length, width]`.
    """
    errors: dict[str, float] = {}

    def take(path: str, output: Tensor) -> None:
        if path in original and original[path].shape == output.shape:
            before = original[path].to(output.device).double()
            errors[path] = float((output.double() - before).square().sum() / before.square().sum())

    block_outputs(model, tokens, take)
    return errors
