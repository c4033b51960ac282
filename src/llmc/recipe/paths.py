"""Paths in recipes: what they are relative to, which are ids or names of the embedded world, and what is public."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.calibration.data_sets import FILE_SUFFIXES, parse_data_set, weighted
from llmc.embedded import CHARACTERS, ITEMS, task_bytes, text_bytes
from llmc.errors import UsageError
from llmc.recipe.yaml_nodes import Node, put
from llmc.registry import suggest

if TYPE_CHECKING:
    from llmc.embedded.world import Kind, Split

EMBEDDED_MODEL = "tiny"
EMBEDDED_TEXTS: dict[str, Split] = {f"{EMBEDDED_MODEL}:{name}": name for name in CHARACTERS}
CARRIED_TEXT = f"{EMBEDDED_MODEL}:calibration"
"""What is calibrated on where nobody says on what."""
EMBEDDED_TASKS: dict[str, Kind] = {f"{EMBEDDED_MODEL}:{name}": name for name in ITEMS}
PATHS = ("model", "out", "calibration.source", "eval.text", "eval.tasks")


def anchored(tree: Node, folder: str) -> Node:
    """The tree with every path in it made relative to `folder`; ids of the Hub stay."""
    for dotted in PATHS:
        tree = _anchored(tree, dotted.split("."), folder)
    return tree


def resolve_model(name: str) -> str:
    """The folder or Hub id behind `model`: `tiny` is the embedded one, `./tiny` a folder."""
    if name != EMBEDDED_MODEL:
        return name
    from llmc.embedded import tiny_model_path

    return str(tiny_model_path())


def _split_weight(source: str) -> tuple[str, str]:
    """A calibration source, and its weight with the colon before it, if it has one."""
    name = weighted(source)[0]
    return name, source[len(name) :]


def resolve_text(source: str, folder: Path) -> str:
    """The file or data set behind a text; a text of the embedded world is written into `folder` first.

    Raises:
        UsageError: the embedded world has no such text.
    """
    name, weight = _split_weight(source)
    content = embedded_text(name)
    if content is None:
        return source
    path = folder / f"{EMBEDDED_TEXTS[name]}.txt"
    path.write_bytes(content)
    return f"{path}{weight}"


def embedded_text(source: str) -> bytes | None:
    """The text of the embedded world that is called so; None of anything else.

    Raises:
        UsageError: the embedded world has no such text.
    """
    return text_bytes(EMBEDDED_TEXTS[source]) if _is_one_of(EMBEDDED_TEXTS, source, "text") else None


def embedded_task(source: str) -> bytes | None:
    """The task file of the embedded world that is called so; None of anything else.

    Raises:
        UsageError: the embedded world has no such task.
    """
    return task_bytes(EMBEDDED_TASKS[source]) if _is_one_of(EMBEDDED_TASKS, source, "task") else None


def _is_one_of(known: Mapping[str, str], source: str, what: str) -> bool:
    """Whether a name of the embedded world, one of `known`, is meant. Raises UsageError for one that is not there."""
    if _is_embedded(source) and source not in known:
        raise UsageError(f"unknown embedded {what} {source!r}", fix=suggest(source, list(known)))
    return source in known


def _is_embedded(source: str) -> bool:
    return source.startswith(f"{EMBEDDED_MODEL}:")


def _anchored(tree: Node, keys: Sequence[str], folder: str) -> Node:
    """The tree with the path, or the list of paths, at `keys` made relative to `folder`."""
    node: Node | None = tree
    for key in keys:
        node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
    if node is not None and isinstance(node.value, list):
        return put(tree, keys, Node([_from(folder, child, keys[-1]) for child in node.value], node.where))
    return tree if node is None else put(tree, keys, _from(folder, node, keys[-1]))


def _from(folder: str, node: Node, key: str) -> Node:
    """The path relative to `folder`; what is not a path stays."""
    if not isinstance(node.value, str) or node.value == EMBEDDED_MODEL or _is_embedded(node.value):
        return node
    name, weight = _split_weight(node.value) if key == "source" else (node.value, "")
    path = os.path.join(folder, os.path.expanduser(name))
    may_be_id = key in ("model", "source", "tasks") and Path(path).suffix.lower() not in FILE_SUFFIXES
    held = parse_data_set(path).name if key == "tasks" else path
    if may_be_id and not os.path.exists(held) and not node.value.startswith((".", "~")):
        return node
    return Node(path + weight, node.where)


def public(source: str) -> str:
    """Of a path its last name; ids of the Hub and names of the embedded world stay."""
    name, weight = _split_weight(source)
    if weight:
        return public(name) + weight
    if source == EMBEDDED_MODEL or source in EMBEDDED_TEXTS or source in EMBEDDED_TASKS:
        return source
    is_id = (
        re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?(@[\w.-]+)?", source)
        and Path(source).suffix.lower() not in FILE_SUFFIXES
    )
    return source if is_id and not Path(source).exists() else os.path.basename(os.path.abspath(source))
