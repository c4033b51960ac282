"""Recipe files: finding them, and reading YAML so that every value knows its line.

Scalars follow the core schema of YAML 1.2 (`1e-2` is a number, `yes` is text). Left out, and refused: aliases, tags and
several documents, which recipes do not need and which let a small file become a huge value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmc.errors import RecipeError, StorageError
from llmc.registry import suggest

MAX_BYTES = 128 << 10
MAX_DEPTH = 16
SUFFIXES = (".yaml", ".yml")
ALIAS = "an alias; put text that begins with * in quotes"
CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]{1,18}",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}


@dataclass(frozen=True)
class Node:
    """A value and where it was written.

    Attributes:
        value: None, bool, int, float, str, `list[Node]` or `dict[str, Node]`.
        where: `file:line`, or the option of the command line it came from.
        text: as typed, for a scalar of the command line, where quotes are the shell's.
    """

    value: Any
    where: str
    text: str | None = None


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in _shipped().glob("*.yaml"))


def recipe_uses() -> dict[str, str]:
    """Name of a recipe that ships -> what it is for: the first sentence of its comment."""
    return {name: _first_sentence(recipe_text(name)) for name in recipe_names()}


def recipe_text(name: str) -> str:
    """The text of a recipe file, or of a recipe that ships. Raises as `find_recipe`, and StorageError."""
    path = find_recipe(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StorageError(f"cannot be read: {reason}", where=name) from error


def _first_sentence(text: str) -> str:
    """Of the comment that a text begins with, without its stop."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    return re.split(r"\.(?: |$)", " ".join(line[2:] for line in lines), maxsplit=1)[0]


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships.

    Raises:
        RecipeError: there is no such file or name.
    """
    path = Path(name)
    is_path = path.suffix in SUFFIXES or len(path.parts) > 1
    if not is_path and name in recipe_names():
        return _shipped() / f"{name}.yaml"
    if path.is_file():
        return path
    if path.exists():
        raise RecipeError("not a file", where=name, fix="give a YAML file, or a name that `llmc recipes` lists")
    if is_path:
        raise RecipeError("no such recipe file", where=name, fix="`llmc recipes` lists the recipes that ship")
    raise RecipeError(f"unknown recipe {name!r}", fix=suggest(name, recipe_names()))


def _shipped() -> Path:
    package = Path(__file__).parents[1]
    inside = package / "recipes"  # a wheel carries them; a checkout has them beside src/
    return inside if inside.is_dir() else package.parent.parent / "recipes"


def read_recipe_file(path: Path) -> Node:
    """The tree of a recipe file.

    Raises:
        RecipeError: not a mapping in YAML, too large or too deep, or a key stands twice.
        StorageError: cannot be read.
    """
    shown = path.name if path.parent == _shipped() else str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=shown) from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"larger than {MAX_BYTES} bytes", where=shown, fix="is this a recipe?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError("not UTF-8", where=f"{shown}:{line}", fix="convert the file to UTF-8") from error
    tree = read_yaml(text, shown)
    if tree.value is None:
        raise RecipeError("empty", where=shown, fix="a recipe has at least `model:` and `stages:`")
    if not isinstance(tree.value, dict):
        raise RecipeError("not a recipe: no keys at the top", where=tree.where, fix="write `model: ...`, `stages: ...`")
    return Node(tree.value, shown)


def read_yaml(text: str, name: str, line: bool = True) -> Node:
    """One YAML document as Nodes; `name` is what `where` calls it, with or without its lines.

    Raises:
        RecipeError: not YAML, or YAML that recipes do not use.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and line else name
        problem = ALIAS if "alias" in (error.context or "") else error.problem or error.context
        raise RecipeError(f"not YAML that recipes can use: {problem}", where=where) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        reason = getattr(error, "reason", "unreadable")
        raise RecipeError(f"not YAML that recipes can use: {reason}", where=name) from error
    return Node(None, name) if root is None else _node(root, name, line)


def scalar(text: str, where: str) -> Node:
    """A value of the command line: a list or mapping in YAML when it begins like one, else what the text means."""
    if text[:1] in ("[", "{", '"', "'"):
        return read_yaml(text, where, line=False)
    return Node(_plain(text), where, text)


def plain_node(value: Any, where: str) -> Node:
    """Nodes of plain data, all with one `where`."""
    if isinstance(value, dict):
        return Node({str(key): plain_node(child, where) for key, child in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([plain_node(child, where) for child in value], where)
    return Node(value, where)


def dump_yaml(value: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back equal."""
    text = str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))
    if any(c in text for c in "\x85\u2028\u2029\ufeff"):  # line breaks and marks that come back as something else
        text = str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=110))
    return text


def overridden(tree: Node, text: str) -> Node:
    """The tree with `path=value` put in.

    Raises:
        RecipeError: not an assignment, or there is no such path.
    """
    where = f"--set {text}"
    dotted, equals, value = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        raise RecipeError("cannot read this", where=where, fix="write it like --set stages.0.bits=3")
    return put(tree, keys, scalar(value, where))


def put(node: Node | None, keys: Sequence[str], leaf: Node) -> Node:
    """The tree with `leaf` at `keys`; sections on the way that are missing are made."""
    if not keys:
        return leaf
    key, rest = keys[0], keys[1:]
    if node is None or node.value is None:
        return Node({key: put(None, rest, leaf)}, leaf.where)
    if isinstance(node.value, dict):
        return Node(node.value | {key: put(node.value.get(key), rest, leaf)}, node.where)
    if not isinstance(node.value, list):
        raise RecipeError(f"there is no {key!r} inside a value", where=leaf.where, fix="shorten the path")
    count = len(node.value)
    if not key.isdecimal() or int(key) >= count:
        fix = f"count from 0 to {count - 1}" if count else "the list is empty"
        raise RecipeError(f"no entry {key!r} in a list of {count}", where=leaf.where, fix=fix)
    items = list(node.value)
    items[int(key)] = put(items[int(key)], rest, leaf)
    return Node(items, node.where)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        problem = ""
        if self.depth >= MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} levels"
        elif getattr(event, "tag", None) is not None:
            problem = "a tag (!)"
        elif self.check_event(yaml.AliasEvent):
            problem = ALIAS
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern in CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


def _plain(text: str) -> Any:
    kind = next((kind for kind, pattern in CORE.items() if re.fullmatch(pattern, text)), "str")
    return _value(kind, text)


def _value(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    return int(text) if kind == "int" else float(text) if kind == "float" else text


def _node(node: Any, name: str, line: bool) -> Node:
    where = f"{name}:{node.start_mark.line + 1}" if line else name
    if isinstance(node, yaml.ScalarNode):
        if any("\ud800" <= c <= "\udfff" for c in node.value):
            raise RecipeError("not valid Unicode (a lone surrogate)", where=where, fix="repair this text")
        return Node(_value(node.tag.rpartition(":")[2], node.value), where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(child, name, line) for child in node.value], where)
    return Node(dict(_items(node, name, line)), where)


def _items(node: Any, name: str, line: bool) -> Iterator[tuple[str, Node]]:
    """Keys and values of a mapping; a value is where its key is."""
    seen: dict[str, int] = {}
    for key, child in node.value:
        number = key.start_mark.line + 1
        where = f"{name}:{number}" if line else name
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError("a key that is not text", where=where)
        if key.value in seen:
            raise RecipeError(f"key {key.value!r} is given twice, first in line {seen[key.value]}", where=where)
        seen[key.value] = number
        yield key.value, Node(_node(child, name, line).value, where)
