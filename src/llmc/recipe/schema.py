"""A dataclass is the schema: its fields, their types and metadata say what a section of a recipe may hold.

Metadata of a field, besides `choices`, `least` and `most` of `llmc.compressors.options`:
    parse: `(node, place) -> value`, in place of reading by type.
    check: `(item) -> None`, raises InputError; called for the value, or for each item of a list.
    example: what to write, for the message that it is missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass
from decimal import Decimal
from typing import Any

from llmc.compressors import METHODS
from llmc.compressors.options import option_problem
from llmc.errors import InputError, RecipeError
from llmc.recipe.yaml_nodes import Node
from llmc.registry import suggest
from llmc.results import Table

NONE_WORDS = {"group_size": "channel"}
"""What None is called in a field, for people."""

PERCENT = re.compile(r"\d{1,3}(\.\d{1,9})?%")
KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Place:
    """Where a section stands in a recipe: what to call it, and its path for `--set`, with a dot at its end."""

    label: str = ""
    path: str = ""

    def at(self, node: Node) -> str:
        """`file:line: section`; an option of the command line speaks for itself."""
        return f"{node.where}: {self.label}" if self.label and not node.where.startswith("-") else node.where


def build(cls: type[Any], node: Node, place: Place = Place(), **ready: Any) -> Any:
    """An instance of the dataclass `cls` from the mapping `node`.

    Args:
        ready: fields that have their values already.

    Raises:
        RecipeError: unknown key, missing key, wrong type, value out of range; one line, with its place.
    """
    if not isinstance(node.value, dict):
        raise RecipeError(f"must be a section with keys, not {shown(node.value)}", where=place.at(node))
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init and field.name not in ready}
    for key, child in node.value.items():
        if key not in fields:
            raise RecipeError(f"unknown key {key!r}", where=place.at(child), fix=suggest(key, list(fields)))
    for name, field in fields.items():
        if name not in node.value and field.default is MISSING and field.default_factory is MISSING:
            fix = f"add it, or give --set {place.path}{name}={field.metadata.get('example', name.upper())}"
            raise RecipeError(f"missing key {name!r}", where=place.at(node), fix=fix)
    types_of = typing.get_type_hints(cls)
    values = {key: _field(fields[key], types_of[key], child, place) for key, child in node.value.items()}
    try:
        return cls(**values, **ready)
    except InputError as error:
        named = node.value.get(error.message.split(" ", 1)[0], node)
        raise RecipeError(error.message, where=place.at(named), fix=error.fix) from error


def plain(value: Any, name: str = "") -> Any:
    """A dataclass instance as plain data, every field spelled out, that `build` reads back."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name), f.name) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return NONE_WORDS.get(name) if value is None else value


def shown(value: Any) -> str:
    """A value as a recipe writes it, short, for messages."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def type_name(kind: Any, name: str) -> str:
    """What a field takes, in a word or two."""
    if isinstance(kind, types.UnionType):
        one = type_name(_one_of(kind, False), name)
        return f"{one} or {NONE_WORDS.get(name, 'null') if types.NoneType in typing.get_args(kind) else 'list'}"
    if typing.get_origin(kind) is tuple:
        return "list"
    return {bool: "true or false", int: "integer", float: "number"}.get(kind, "text")


def byte_count(text: str) -> int | None:
    """`8GiB`, `500 MB` or a plain number, in bytes; None when it is none of these."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        return None
    number, prefix, binary = match.groups()
    power = "KMGT".index(prefix.upper()) + 1 if prefix else 0
    return int(Decimal(number) * (1024 if binary else 1000) ** power) or None


def parse_bytes(node: Node, place: Place) -> int | None:
    """The `parse` of a field that takes a size."""
    if node.value is None:
        return None
    number = node.value if isinstance(node.value, int | str) and not isinstance(node.value, bool) else ""
    size = byte_count(str(number))
    if size is None:
        raise RecipeError(f"not a size: {shown(node.value)}", where=place.at(node), fix="write it like 8GiB or 500MB")
    return size


def method_table(name: str | None = None) -> Table:
    """All methods, or the options of one.

    Raises:
        UsageError: there is no such method.
    """
    if name is None:
        rows = []
        for each in METHODS:
            cls = METHODS.get(each)
            rows.append((each, "needed" if cls.needs else "no", (cls.__doc__ or "").strip().splitlines()[0]))
        return Table("methods", ("name", "calibration", "what it does"), tuple(rows))
    cls = METHODS.get(name)
    hints = typing.get_type_hints(cls)
    return Table(
        f"options of {name}",
        ("name", "type", "default", "range", "help"),
        tuple(_option_row(each, hints[each.name]) for each in dataclasses.fields(cls)),
    )


def _option_row(each: dataclasses.Field[Any], kind: Any) -> tuple[str, str, str, str, str]:
    choices, least, most = (each.metadata.get(key) for key in ("choices", "least", "most"))
    limits = f"{least:g} to {most:g}" if most is not None and least is not None else ""
    if not limits and (least is not None or most is not None):
        limits = f"at least {least:g}" if least is not None else f"at most {most:g}"
    default = plain(each.default, each.name)
    text = default if isinstance(default, str) else shown(default)
    return (
        each.name,
        type_name(kind, each.name),
        text,
        ", ".join(choices or ()) or limits,
        each.metadata.get("help", ""),
    )


def _field(field: Field[Any], kind: Any, node: Node, place: Place) -> Any:
    parse: Callable[[Node, Place], Any] | None = field.metadata.get("parse")
    if parse is not None:
        return parse(node, place)
    if isinstance(kind, types.UnionType):
        optional = types.NoneType in typing.get_args(kind)
        if optional and (node.value is None or node.value == NONE_WORDS.get(field.name)):
            return None
        kind = _one_of(kind, isinstance(node.value, list))
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type[Any], kind), node, Place(field.name, f"{place.path}{field.name}."))
    if typing.get_origin(kind) is tuple:
        # One item may stand alone: `ignore: lm_head`.
        nodes = node.value if isinstance(node.value, list) else [node]
        return tuple(_item(field, typing.get_args(kind)[0], child, place) for child in nodes)
    return _item(field, kind, node, place)


def _one_of(union: types.UnionType, listed: bool) -> Any:
    """The type of a union that is read: the list of it where there is one and a list was given, else the first."""
    kinds = [kind for kind in typing.get_args(union) if kind is not types.NoneType]
    lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    return lists[0] if listed and lists else kinds[0]


def _item(field: Field[Any], kind: Any, node: Node, place: Place) -> Any:
    """One bool, int, float or str, checked."""
    value: Any = node.text if kind is str and node.text is not None else node.value
    if kind is float and field.metadata.get("share") and isinstance(value, str) and PERCENT.fullmatch(value):
        value = float(value[:-1]) / 100
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        word = NONE_WORDS.get(field.name)
        takes = KINDS[kind] + (f" or {word}" if word else "")
        fix = "put it in quotes" if kind is str and isinstance(value, bool | int | float) else ""
        raise RecipeError(f"{field.name} must be {takes}, not {shown(value)}", where=place.at(node), fix=fix)
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{field.name} must be a finite number", where=place.at(node))
    problem = option_problem(field, value)
    if problem is not None:
        raise RecipeError(f"{field.name}: {problem[0]}", where=place.at(node), fix=problem[1])
    check: Callable[[Any], None] | None = field.metadata.get("check")
    try:
        if check is not None:
            check(value)
    except InputError as error:
        raise RecipeError(error.message, where=place.at(node), fix=error.fix) from error
    return value
