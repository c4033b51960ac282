"""The recipe of a one-stage job, from the options of `llmc quantize` and `llmc plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.compressors import METHODS
from llmc.embedded.names import CARRIED_TEXT
from llmc.errors import RecipeError, UsageError
from llmc.recipe.recipe import Recipe, read_tree
from llmc.recipe.yaml_nodes import Node, plain_node, scalar
from llmc.registry import suggest


def from_options(
    model: str | Path,
    *,
    method: str | None = None,
    bits: int | None = None,
    group_size: int | str | None = None,
    options: Mapping[str, Any] | None = None,
    symmetric: bool | None = None,
    act_order: bool | None = None,
    aim: float | None = None,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    calibration: str | Path | Sequence[str | Path] | None = None,
    text_column: str | None = None,
    split: str | None = None,
    chat_template: bool | None = None,
    num_samples: int | None = None,
    sequence_length: int | None = None,
    raw_text: bool | None = None,
    seed: int | None = None,
    formats: Sequence[str] | None = None,
    device: str | None = None,
    compute_dtype: str | None = None,
    max_memory: int | str | None = None,
    revision: str | None = None,
    allow_nonfinite: bool | None = None,
    strict: bool | None = None,
    bits_per_weight: float | None = None,
    size: int | str | None = None,
    max_kl: float | None = None,
    entropy: bool | None = None,
) -> Recipe:
    """The recipe of a one-stage job. None leaves a field at its own default.

    Args:
        method: if None, trellis where a budget is given, gptq where there is calibration text, else rtn.
        group_size: a number, or `channel`.
        calibration: one source or several, see `llmc.calibration.mixture`; None where the method needs one: the text
            that llmc carries, which a note says.
        options: further fields of the method; texts are read as on the command line.
        aim: 0 to 1, how far layers make up for what the layers before them lost: see `llmc.recipe.recipe.Stage`.
        max_memory: bytes, or a text like `8GiB`.
        bits_per_weight, size, max_kl: a budget: of the targeted matrices, of all weight files, or of quality.

    Raises:
        UsageError: naming the option of the command line.
    """
    budget = any(each is not None for each in (bits_per_weight, size, max_kl))
    name = method or ("trellis" if budget else "rtn" if calibration is None else "gptq")
    flags: dict[str, Any] = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "act_order": act_order}
    flags["bits_per_weight"] = bits_per_weight
    text: dict[str, Any] = {"source": calibration, "num_samples": num_samples, "sequence_length": sequence_length}
    text |= {"raw_text": raw_text, "column": text_column, "split": split, "chat_template": chat_template}
    rest: dict[str, Any] = {"seed": seed, "formats": formats, "device": device, "compute_dtype": compute_dtype}
    rest |= {"max_memory": max_memory, "revision": revision, "allow_nonfinite": allow_nonfinite, "entropy": entropy}
    rest |= {"size": size, "max_kl": max_kl, "strict": strict}
    try:
        stage = {"method": Node(name, "--method"), **_nodes({"targets": targets, "ignore": ignore, "aim": aim})}
        stage |= _method_nodes(name, flags, options or {})
        tree = {"model": Node(str(model), "MODEL"), "stages": Node([Node(stage, f"--method {name}")], "--method")}
        tree |= _nodes(rest)
        given = _calibration_nodes(text, METHODS.get(name).needs or aim, judged=max_kl is not None)
        if given:
            tree["calibration"] = Node(given, "--calibration")
        return read_tree(Node(tree, "llmc"))
    except RecipeError as error:
        raise UsageError(error.message, where=error.where, fix=error.fix) from error


def _calibration_nodes(text: Mapping[str, Any], needed: Any, judged: bool) -> dict[str, Node]:
    """The calibration section; where none is given and one is needed, that of the text that llmc carries.

    Args:
        judged: the model is judged by it too, for which a text of its own use is wanted.
    """
    given = _nodes(text)
    if "source" in given:
        return given
    flag = "--max-kl" if judged else next(iter(given.values())).where if given else ""
    if judged or (given and not needed):
        raise UsageError("there is no calibration text", where=flag, fix="add --calibration FILE_OR_DATASET")
    return {"source": Node(CARRIED_TEXT, "--calibration"), **given} if needed else {}


def _nodes(given: Mapping[str, Any]) -> dict[str, Node]:
    """Nodes of what was given, named after the options of the command line."""
    names = {"formats": "format", "source": "calibration", "column": "text-column"}
    flags = {name: "--" + names.get(name, name).replace("_", "-") for name in given}
    values = {name: _plain_paths(value) for name, value in given.items()}
    return {name: plain_node(value, flags[name]) for name, value in values.items() if value is not None}


def _method_nodes(name: str, flags: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Node]:
    """The method's own fields: the shared flags, and `-O name=value`."""
    try:
        known = [each.name for each in dataclasses.fields(METHODS.get(name))]
    except UsageError as error:
        raise UsageError(error.message, where="--method", fix=error.fix) from error
    nodes = _nodes({key: value for key, value in flags.items() if key in known or value})
    if "symmetric" in nodes:
        nodes["symmetric"] = Node(nodes["symmetric"].value, "--asymmetric")
    for key, value in options.items():
        where = f"-O {key}={value}"
        if key in nodes:
            raise UsageError(f"{key!r} is given twice", where=where, fix=f"leave out {nodes[key].where}")
        nodes[key] = scalar(value, where) if isinstance(value, str) else plain_node(value, where)
    for key, node in nodes.items():
        if key not in known:
            raise UsageError(f"{name} has no option {key!r}", where=node.where, fix=suggest(key, known))
    return nodes


def _plain_paths(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain_paths(item) for item in value]
    return str(value) if isinstance(value, Path) else value
