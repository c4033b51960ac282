"""Texts as models read them: lines end with a newline alone, and no byte order mark stands before the first.

Windows ends lines with two characters. A tokenizer makes tokens of the other one that no model has learnt: the
perplexity of a novel doubles, and nobody sees why. So it is dropped, a note says so, and whoever wants it keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "\ufeff"
WHAT = ("line ends of Windows became \\n", "a byte order mark was dropped")


@dataclass
class LineEnds:
    """What makes texts of any origin alike, and knows where it had to.

    Attributes:
        raw: leave them as they are.
        found: source -> which of `WHAT` was needed there.
    """

    raw: bool = False
    found: dict[str, set[str]] = field(default_factory=dict)

    def text(self, text: str, source: str) -> str:
        """A whole text."""
        if not self.raw and text.startswith(MARK):
            self._note(source, WHAT[1])
            text = text.removeprefix(MARK)
        return self._lines(text, source)

    def parts(self, parts: Iterable[str], source: str) -> Iterator[str]:
        """One text in several pieces, wherever it was cut."""
        begun, held = False, ""
        for part in parts:
            piece = held + part
            held = "\r" if piece.endswith("\r") and not self.raw else ""  # its other half may come with the next one
            piece = piece.removesuffix(held) if held else piece
            yield self._lines(piece, source) if begun else self.text(piece, source)
            begun = begun or bool(piece)
        if held:
            yield self._lines(held, source)

    def value(self, value: Any, source: str) -> Any:
        """Any JSON value: every text in it, but for the keys."""
        if isinstance(value, str):
            return self.text(value, source)
        if isinstance(value, list):
            return [self.value(item, source) for item in value]
        if isinstance(value, dict):
            return {key: self.value(item, source) for key, item in value.items()}
        return value

    def notes(self) -> tuple[str, ...]:
        """A line for every source that was changed."""
        order = {what: i for i, what in enumerate(WHAT)}
        return tuple(
            f"{Path(source).name}: {' and '.join(sorted(found, key=order.__getitem__))}; --raw-text keeps the bytes"
            for source, found in self.found.items()
        )

    def _lines(self, text: str, source: str) -> str:
        if self.raw or "\r" not in text:
            return text
        self._note(source, WHAT[0])
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _note(self, source: str, what: str) -> None:
        self.found.setdefault(source, set()).add(what)
