"""Names to classes, imported on use: a new algorithm is one file and one line here or in its package."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from llmc.errors import UsageError

MOST_OFFERED = 4
OPPOSITE = re.compile(r"^-*(no-|un|in|dis|a(?=symm))|^-+")
"""What turns a name into its opposite."""


class Registry:
    """An ordered table `name -> "module:attribute"`.

    Args:
        noun: what the names are, for messages ("method", "container", ...).
        entries: the table; the module is imported when the name is first asked for.
    """

    def __init__(self, noun: str, entries: dict[str, str]) -> None:
        self.noun = noun
        self._entries: dict[str, str] = {}
        for name, path in entries.items():
            self.add(name, path)

    def add(self, name: str, path: str) -> None:
        """Add a name. Raises ValueError when it is taken."""
        if name in self._entries:
            raise ValueError(f"{self.noun} {name!r} is registered twice: {self._entries[name]} and {path}")
        self._entries[name] = path

    def __iter__(self) -> Any:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Any:
        """The object under `name`. Raises UsageError with the nearest valid name."""
        if name not in self._entries:
            raise UsageError(f"unknown {self.noun} {name!r}", fix=suggest(name, list(self._entries)))
        module, attribute = self._entries[name].split(":")
        return getattr(import_module(module), attribute)


def suggest(name: str, known: list[str]) -> str:
    """A phrase that offers the known names which `name` may stand for, or all of them."""
    near = nearest(name, known)
    return "did you mean " + " or ".join(map(repr, near)) + "?" if near else "choose one of: " + ", ".join(known)


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Names that begin like it, or the one that is spelled most like it and means nothing else.

    None where the opposite is among them: that is what the name is about, and not what is wanted.
    """
    begun = [each for each in known if name and each.startswith(name)]
    if begun:
        return begun[:MOST_OFFERED]
    if any(name != each and OPPOSITE.sub("", name) == OPPOSITE.sub("", each) for each in known):
        return []
    alike = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return [each for each in alike if _same_numbers(name, each)][:1]


def _same_numbers(one: str, other: str) -> bool:
    """Whether no number in one name is another in the other: w4a16 is no way to spell w8a16."""
    first, second = (re.findall(r"\d+", each) for each in (one, other))
    return not first or not second or first == second
