"""llmc: make language models smaller, and prove what it cost.

The public names are imported on first use, so that `import llmc` is instant and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError as LlmcError

if TYPE_CHECKING:
    from llmc.checkpoint import Checkpoint as Checkpoint
    from llmc.comparing import compare as compare
    from llmc.decompressing import decompress as decompress
    from llmc.eval import evaluate as evaluate
    from llmc.exporting import export as export
    from llmc.inspection import inspect as inspect
    from llmc.loading import load as load
    from llmc.loading import read_tensors as read_tensors
    from llmc.lossless_writing import lossless as lossless
    from llmc.pipeline import plan as plan
    from llmc.pipeline import push as push
    from llmc.pipeline import quantize as quantize
    from llmc.pipeline import run as run
    from llmc.publishing import card as card
    from llmc.recipe import method_table as method_table
    from llmc.recipe import recipe_names as recipe_names
    from llmc.recipe_yaml import recipe_text as recipe_text
    from llmc.recipe_yaml import recipe_uses as recipe_uses
    from llmc.structure import silent as silent
    from llmc.verification import verify as verify

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "llmc.checkpoint",
    "card": "llmc.publishing",
    "compare": "llmc.comparing",
    "decompress": "llmc.decompressing",
    "evaluate": "llmc.eval",
    "export": "llmc.exporting",
    "inspect": "llmc.inspection",
    "load": "llmc.loading",
    "lossless": "llmc.lossless_writing",
    "method_table": "llmc.recipe",
    "plan": "llmc.pipeline",
    "push": "llmc.pipeline",
    "quantize": "llmc.pipeline",
    "read_tensors": "llmc.loading",
    "recipe_names": "llmc.recipe",
    "recipe_text": "llmc.recipe_yaml",
    "recipe_uses": "llmc.recipe_yaml",
    "run": "llmc.pipeline",
    "silent": "llmc.structure",
    "verify": "llmc.verification",
}

__all__ = ["LlmcError", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'llmc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
