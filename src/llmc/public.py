"""What the public functions share: an unknown option is refused, and long work shows a bar where somebody looks."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from inspect import Parameter, Signature
from typing import Any, ParamSpec, TypeVar

from llmc.errors import UsageError
from llmc.registry import suggest
from llmc.results import Progress

Given = ParamSpec("Given")
Result = TypeVar("Result")

_INSIDE: ContextVar[bool] = ContextVar("inside a public function", default=False)
BAR = "{desc}: {percentage:3.0f}%|{bar:30}| {elapsed}, {remaining} left"


def public(
    options_of: Callable[..., Any] | None = None, *, but: Collection[str] = ()
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """A public function: its `**options` are the keyword arguments of another one, by name, type and default.

    A keyword that it does not take is a UsageError with the nearest one that it does. Where it takes `progress` and
    gets none, a bar is drawn on a terminal or in a notebook; `progress=llmc.silent` draws nothing.

    Args:
        options_of: whose keyword arguments stand for its `**options`.
        but: those that it does not hand on.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        loose: Callable[..., Result] = function
        signature = _joined(inspect.signature(function), options_of, but)
        known = [each.name for each in signature.parameters.values()]
        shows = "progress" in known

        @functools.wraps(function)
        def call(*args: Given.args, **options: Given.kwargs) -> Result:
            for name in options:
                if name not in known:
                    fix = suggest(name, known)
                    raise UsageError(f"no option {name!r}", where=f"llmc.{function.__name__}", fix=fix)
            if not shows or options.get("progress") is not None or _INSIDE.get():
                return function(*args, **options)
            with _bars() as bars:
                return loose(*args, **{**options, "progress": bars})

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def _joined(own: Signature, options_of: Callable[..., Any] | None, but: Collection[str]) -> Signature:
    """The signature with keyword parameters of another function in place of its `**options`."""
    parameters = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    taken = {each.name for each in parameters} | set(but)
    others = inspect.signature(options_of).parameters.values() if options_of is not None else ()
    more = [each for each in others if each.kind is Parameter.KEYWORD_ONLY and each.name not in taken]
    return own.replace(parameters=[*parameters, *more])


@contextmanager
def _bars() -> Iterator[Progress]:
    """A progress callback that draws a bar for each label; what is called inside draws none of its own."""
    drawn: dict[str, Any] = {}
    token = _INSIDE.set(True)

    def show(label: str, done: float, total: float) -> None:
        if label not in drawn:
            drawn[label] = _bar(label, total)
        drawn[label].total = total
        drawn[label].update(done - drawn[label].n)

    try:
        yield show
    finally:
        _INSIDE.reset(token)
        for bar in drawn.values():
            bar.close()


def _bar(label: str, total: float) -> Any:
    """A bar on stderr where that is a terminal, or in a notebook; else one that is never drawn."""
    notebook = "ipykernel" in sys.modules
    return import_module("tqdm").tqdm(desc=label, total=total, bar_format=BAR, disable=False if notebook else None)
