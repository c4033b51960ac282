"""Recipes: an ordered list of stages, and what they calibrate on, write, measure and must reach.

A recipe comes from a YAML file (`load_recipe`), from plain data (`from_dict`) or from the options of `llmc quantize`
(`recipe_options.from_options`); all three are read by the same schema, which is the
dataclasses below and those of the methods.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmc.calibration.data import CalibrationOptions
from llmc.calibration.mixture import names_of
from llmc.compressors import METHODS
from llmc.compressors.method import Compressor, Outlook
from llmc.compressors.options import option
from llmc.embedded.names import resolve_model, resolve_text
from llmc.errors import RecipeError, UsageError
from llmc.eval.gates import check_gate, check_measured, task_name
from llmc.formats import CONTAINERS
from llmc.recipe.paths import anchored, public
from llmc.recipe.schema import Place, build, method_table, parse_bytes, plain, shown
from llmc.recipe.yaml_nodes import (
    Node,
    dump_yaml,
    find_recipe,
    overridden,
    plain_node,
    read_recipe_file,
    recipe_names,
)
from llmc.registry import suggest

__all__ = [
    "EvalOptions",
    "PushOptions",
    "Recipe",
    "Stage",
    "find_recipe",
    "from_dict",
    "load_recipe",
    "method_table",
    "recipe_names",
    "resolve_model",
    "resolve_text",
    "to_dict",
    "to_yaml",
]

DTYPES = ("float32", "float64", "bfloat16")
AIM = 0.0
"""How far calibrated layers aim at the original model unless a recipe says: see docs/compressors/aim.md."""
OF_STAGES = ("targets", "ignore", "aim")
"""Fields of a stage that are none of its method."""


def _check_device(text: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise UsageError(f"unknown device {text!r}", fix="use cpu, cuda or cuda:1")


def _check_repo(text: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII):
        raise UsageError(f"not a repository of the Hub: {text!r}", fix="write it like user/name")


def _parse_stages(node: Node, place: Place) -> tuple[Stage, ...]:
    if not isinstance(node.value, list):
        raise RecipeError(
            f"stages must be a list, not {shown(node.value)}", where=node.where, fix="write `- method: rtn`"
        )
    if not node.value:
        raise RecipeError("no stages", where=node.where, fix="add one: `- method: rtn`")
    return tuple(_stage(index, child) for index, child in enumerate(node.value))


@dataclass(frozen=True)
class Stage:
    """One step: a method with its options, and globs of the Targets it is for (none: all) and not for.

    In a recipe the fields of the method stand beside `method`, `targets`, `ignore` and `aim`.

    Attributes:
        aim: how far each layer makes up for what the layers before it lost, see `llmc.calibration.drift`; None: AIM
            where the method is calibrated, else 0.
    """

    name: str
    method: Any
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    aim: float | None = option(None, "0: at what the layer did; 1: at the original model's outputs", least=0, most=1)

    def __post_init__(self) -> None:
        if self.aim is None:
            object.__setattr__(self, "aim", AIM if self.method.needs and not self.outlook.sees_original else 0.0)

    @property
    def aims(self) -> float:
        return self.aim or 0.0

    @property
    def outlook(self) -> Outlook:
        """What its method says before anything runs."""
        found: Outlook = self.method.outlook(("float32",))
        return found

    @property
    def needs_text(self) -> bool:
        return bool(self.method.needs) or self.aims > 0


@dataclass(frozen=True)
class EvalOptions:
    """What to measure on: a text, tasks, or both; see `llmc.evaluate`."""

    text: str | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = option(None, "use the first items of each task", least=1)
    context: int = option(512, "tokens in one window", least=2)
    stride: int | None = option(None, "tokens between the starts of windows; null: the context", least=1)
    max_tokens: int | None = option(None, "stop after this many tokens", least=2)
    prompt: str | None = None
    raw_text: bool = False

    def __post_init__(self) -> None:
        if self.text is None and not self.tasks:
            raise UsageError("missing key 'text' or 'tasks'", fix="add one, or give --set eval.text=FILE")
        if self.stride is not None and self.stride > self.context:
            raise UsageError(f"stride must be at most the context {self.context}, not {self.stride}")


@dataclass(frozen=True)
class PushOptions:
    """Where to upload the result."""

    repo: str = field(metadata={"check": _check_repo})
    public: bool = False
    base_model: str | None = field(default=None, metadata={"check": _check_repo})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run writes.

    Attributes:
        model: a folder, a Hub id, or `tiny` for the embedded model: see `resolve_model`.
        out: the folder to write, unless the command line gives one.
        revision: branch, tag or commit of a Hub id.
        calibration: its `source` may be `tiny:calibration`: see `resolve_text`. Its seed is the recipe's unless given.
        max_memory: bytes.
        allow_nonfinite: keep tensors with NaN or Inf as they are.
        strict: refuse a model with a matrix that a format or the group size does not fit, instead of keeping it.
        size: bytes that all weight files together may have; stages that share a budget get their rates from it.
        max_kl: nats per token, at the upper end of the interval, on calibration text that no statistic saw.
        entropy: store what the containers hold at the size of its entropy; `llmc export` gives their files back.
        gates: see `llmc.eval.gates`.
    """

    model: str
    stages: tuple[Stage, ...] = field(metadata={"parse": _parse_stages, "example": "[{method: rtn}]"})
    out: str | None = None
    revision: str | None = None
    calibration: CalibrationOptions | None = None
    formats: tuple[str, ...] = option(("compressed-tensors",), "containers to write", choices=tuple(CONTAINERS))
    seed: int = option(0, "of every random choice", least=0, most=2**32 - 1)
    device: str = field(default="cpu", metadata={"check": _check_device})
    compute_dtype: str = option("float32", "type of the arithmetic", choices=DTYPES)
    max_memory: int | None = field(default=None, metadata={"parse": parse_bytes})
    allow_nonfinite: bool = False
    strict: bool = False
    size: int | None = field(default=None, metadata={"parse": parse_bytes})
    max_kl: float | None = option(None, "most KL divergence, upper end of its interval", least=1e-6, most=10.0)
    entropy: bool = False
    eval: EvalOptions | None = None
    gates: tuple[str, ...] = field(default=(), metadata={"check": check_gate})
    push: PushOptions | None = None


def load_recipe(path_or_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or one that ships, and change it.

    Args:
        path_or_name: a YAML file, whose relative paths are relative to its folder, or a name of `recipe_names()`.
        overrides: `stages.0.bits=3`, ...; relative paths in them are relative to the current folder.

    Raises:
        RecipeError: one line with `file:line: stage N (method)`, or with the override.
        StorageError: the file cannot be read.
    """
    path = find_recipe(path_or_name)
    tree = read_recipe_file(path)
    tree = anchored(tree, os.path.dirname(path))
    for text in overrides:
        tree = overridden(tree, text)
    return read_tree(tree)


def from_dict(data: Mapping[str, Any]) -> Recipe:
    """The recipe that `to_dict` wrote.

    Raises:
        RecipeError: as `load_recipe`, without lines.
    """
    return read_tree(plain_node(dict(data), "recipe"))


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain data: every default spelled out; of a path only its last name.

    `out` is left out: the same recipe gives the same bytes wherever they go.
    """
    data: dict[str, Any] = plain(recipe)
    del data["out"]
    data["stages"] = [
        {"method": s.name, **plain(s.method), "targets": list(s.targets), "ignore": list(s.ignore), "aim": s.aim}
        for s in recipe.stages
    ]
    data["model"] = public(recipe.model)
    if recipe.calibration is not None:
        names = [public(name) for name in names_of(recipe.calibration)]
        data["calibration"]["source"] = names[0] if len(names) == 1 else names
    if recipe.eval is not None:
        data["eval"]["text"] = recipe.eval.text and public(recipe.eval.text)
        data["eval"]["tasks"] = [public(task) for task in recipe.eval.tasks]
    return data


def to_yaml(recipe: Recipe) -> str:
    """`to_dict` as a recipe file."""
    return dump_yaml(to_dict(recipe))


def read_tree(tree: Node) -> Recipe:
    """A Recipe from its tree, checked as a whole."""
    recipe: Recipe = build(Recipe, _share_seed(tree))
    parts = tree.value
    if "formats" not in parts:
        recipe = dataclasses.replace(recipe, formats=_own_formats(recipe))
    if not recipe.formats or len(set(recipe.formats)) < len(recipe.formats):
        problem = "a format is given twice" if recipe.formats else "no format"
        raise RecipeError(problem, where=parts["formats"].where, fix=f"choose from: {', '.join(CONTAINERS)}")
    for index, stage in enumerate(recipe.stages):
        keys = parts["stages"].value[index].value
        if stage.outlook.sees_original and stage.aims > 0:
            where = _stage_place(index, stage.name).at(keys["aim"])
            raise RecipeError(
                "a layer that sees the original's inputs has no drift to make up for",
                where=where,
                fix="leave out propagate: original, or use aim: 0",
            )
        if stage.needs_text and recipe.calibration is None:
            node = keys["method" if stage.method.needs else "aim"]
            fix = "add `calibration: {source: FILE_OR_DATASET}`, or give --set calibration.source=FILE_OR_DATASET"
            raise RecipeError("needs calibration text", where=_stage_place(index, stage.name).at(node), fix=fix)
    _check_budget(recipe, parts)
    if recipe.entropy and "llmc" in recipe.formats:
        raise RecipeError("format llmc is entropy coded already", where=parts["entropy"].where, fix="leave it out")
    _check_gates(recipe, parts)
    return recipe


def _own_formats(recipe: Recipe) -> tuple[str, ...]:
    """The containers of what encodes first; of values alone the plain model."""
    outlooks = [outlook for stage in recipe.stages if (outlook := stage.outlook).encodes]
    return (outlooks[0].formats or recipe.formats) if outlooks else ("dense",)


def _check_budget(recipe: Recipe, parts: Mapping[str, Node]) -> None:
    """Refuse a budget that nothing follows, or more than one."""
    given = [key for key in ("size", "max_kl") if parts.get(key) is not None and getattr(recipe, key) is not None]
    if not given:
        return
    where = parts[given[0]].where
    if len(given) > 1:
        raise RecipeError("two budgets are given", where=where, fix=f"leave out {parts[given[1]].where}")
    if all(stage.outlook.bits_per_weight is None for stage in recipe.stages):
        names = ", ".join(stage.name for stage in recipe.stages)
        raise RecipeError(f"{names} has a size that its options give", where=where, fix="use method trellis")
    if given == ["size"] and recipe.formats != ("llmc",):
        raise RecipeError(f"{', '.join(recipe.formats)} does not follow it", where=where, fix="use format llmc alone")


def _check_gates(recipe: Recipe, parts: Mapping[str, Node]) -> None:
    """Refuse gates on what is not going to be measured."""
    if not recipe.gates:
        return
    where = parts["gates"].where
    if recipe.eval is None:
        fix = "add `eval: {text: FILE}`, or give --set eval.text=FILE"
        raise RecipeError("gates need figures to check", where=where, fix=fix)
    tasks = [task_name(task) for task in recipe.eval.tasks]
    listed = parts["gates"].value if isinstance(parts["gates"].value, list) else [parts["gates"]]
    for gate, node in zip(recipe.gates, listed, strict=True):
        try:
            check_measured(gate, on_text=recipe.eval.text is not None, tasks=tasks)
        except RecipeError as error:
            raise RecipeError(error.message, where=node.where, fix=error.fix) from error


def _share_seed(tree: Node) -> Node:
    """The recipe's seed is that of the calibration too, unless it has its own."""
    calibration, seed = tree.value.get("calibration"), tree.value.get("seed")
    if seed is None or calibration is None or not isinstance(calibration.value, dict):
        return tree
    return Node(tree.value | {"calibration": Node({"seed": seed} | calibration.value, calibration.where)}, tree.where)


def _stage_place(index: int, name: str) -> Place:
    return Place(f"stage {index} ({name})", f"stages.{index}.")


def _stage(index: int, node: Node) -> Stage:
    if not isinstance(node.value, dict) or "method" not in node.value:
        where = f"{node.where}: stage {index}"
        raise RecipeError("missing key 'method'", where=where, fix=f"write `- method: {' | '.join(METHODS)}`")
    named = node.value["method"]
    name = named.value if isinstance(named.value, str) else shown(named.value)
    place = _stage_place(index, name)
    try:
        cls = METHODS.get(name)
    except UsageError as error:
        raise RecipeError(error.message, where=Place(f"stage {index}").at(named), fix=error.fix) from error
    known = ["method", *(each.name for each in dataclasses.fields(cls)), *OF_STAGES]
    for key, child in node.value.items():
        if key not in known:
            raise RecipeError(f"unknown key {key!r}", where=place.at(child), fix=suggest(key, known[1:]))
    own = {key: child for key, child in node.value.items() if key in OF_STAGES}
    options = Node({key: child for key, child in node.value.items() if key != "method" and key not in own}, node.where)
    method = build(cls, options, place)
    _check_grid(method, options, place)
    stage: Stage = build(Stage, Node(own, node.where), place, name=name, method=method)
    return stage


def _check_grid(method: Compressor, options: Node, place: Place) -> None:
    """Refuse what the grid does not have, such as nf4 with 3 bits."""
    try:
        method.outlook(("float32",))
    except UsageError as error:
        given = [node for node in options.value.values() if node.where.startswith("-")]
        raise RecipeError(error.message, where=place.at([options, *given][-1]), fix=error.fix) from error
