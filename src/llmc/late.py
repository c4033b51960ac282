"""torch and NumPy, imported when something of them is first used.

`from llmc.late import torch` is for modules that also have something to say without it, such as which options a method
takes: torch takes a second and 200 MB, which nobody shall pay to be told of a typing mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = ["LateTable", "nn", "np", "torch"]

Key = TypeVar("Key")
Value = TypeVar("Value")


class Late(ModuleType):
    """Stands for a module that is imported when an attribute is asked for."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)  # found without this function from now on
        return value


if not TYPE_CHECKING:
    torch, nn, np = Late("torch"), Late("torch.nn"), Late("numpy")


class LateTable(Mapping[Key, Value]):
    """A table of dtypes and the like, made when something is looked up in it."""

    def __init__(self, make: Callable[[], Mapping[Key, Value]]) -> None:
        self._make = make

    @cached_property
    def _table(self) -> Mapping[Key, Value]:
        return self._make()

    def __getitem__(self, key: Key) -> Value:
        return self._table[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
