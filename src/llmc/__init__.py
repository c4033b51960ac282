"""llmc: make language models smaller, and prove what it cost.

The public names are imported on first use, so that `import llmc` is instant and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmc.errors import LlmcError as LlmcError

if TYPE_CHECKING:
    from llmc.artifacts.export import export as export
    from llmc.artifacts.inspect import inspect as inspect
    from llmc.artifacts.lossless.decompress import decompress as decompress
    from llmc.artifacts.lossless.write import lossless as lossless
    from llmc.artifacts.publish import card as card
    from llmc.artifacts.verify import verify as verify
    from llmc.eval.evaluation import evaluate as evaluate
    from llmc.models.checkpoint import Checkpoint as Checkpoint
    from llmc.models.load import load as load
    from llmc.models.load import read_tensors as read_tensors
    from llmc.pipeline.compare import compare as compare
    from llmc.pipeline.run import plan as plan
    from llmc.pipeline.run import push as push
    from llmc.pipeline.run import quantize as quantize
    from llmc.pipeline.run import run as run
    from llmc.recipe.recipe import method_table as method_table
    from llmc.recipe.recipe import recipe_names as recipe_names
    from llmc.recipe.yaml_nodes import recipe_text as recipe_text
    from llmc.recipe.yaml_nodes import recipe_uses as recipe_uses
    from llmc.results import silent as silent

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "llmc.models.checkpoint",
    "card": "llmc.artifacts.publish",
    "compare": "llmc.pipeline.compare",
    "decompress": "llmc.artifacts.lossless.decompress",
    "evaluate": "llmc.eval.evaluation",
    "export": "llmc.artifacts.export",
    "inspect": "llmc.artifacts.inspect",
    "load": "llmc.models.load",
    "lossless": "llmc.artifacts.lossless.write",
    "method_table": "llmc.recipe.recipe",
    "plan": "llmc.pipeline.run",
    "push": "llmc.pipeline.run",
    "quantize": "llmc.pipeline.run",
    "read_tensors": "llmc.models.load",
    "recipe_names": "llmc.recipe.recipe",
    "recipe_text": "llmc.recipe.yaml_nodes",
    "recipe_uses": "llmc.recipe.yaml_nodes",
    "run": "llmc.pipeline.run",
    "silent": "llmc.results",
    "verify": "llmc.artifacts.verify",
}

__all__ = ["LlmcError", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'llmc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
