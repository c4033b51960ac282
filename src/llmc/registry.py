"""Names to classes, imported on use: a new algorithm is one file and one line here or in its package."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from llmc.errors import UsageError


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
    """A phrase that offers the nearest of the known names, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "choose one of: " + ", ".join(known)
