"""Paths in recipes: what they are relative to, which are ids or names of the embedded world, and what is public."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.calibration.data_sets import FILE_SUFFIXES, parse_data_set
from llmc.embedded.names import EMBEDDED_MODEL, EMBEDDED_TASKS, EMBEDDED_TEXTS, _is_embedded, _split_weight
from llmc.recipe.yaml_nodes import Node, put

if TYPE_CHECKING:
    pass

PATHS = ("model", "out", "calibration.source", "eval.text", "eval.tasks")


def anchored(tree: Node, folder: str) -> Node:
    """The tree with every path in it made relative to `folder`; ids of the Hub stay."""
    for dotted in PATHS:
        tree = _anchored(tree, dotted.split("."), folder)
    return tree


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
