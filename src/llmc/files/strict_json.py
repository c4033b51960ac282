"""JSON from strangers, taken apart one member at a time.

`json.loads` of a hostile 100 MB document takes gigabytes, or the whole stack; here nothing is built of a value before
its extent is known, and members are counted, so a document costs little more than its own size.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MOST = 1 << 62
VALUE_LIMIT = 1 << 18  # bytes of one name, of one nested value, or of one value parsed at once
DEPTH_LIMIT = 32

# Possessive: a failed match never backtracks, so each costs one pass.
_STRING = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_BLANK = re.compile(rb"[ \t\r\n]*+")
_KEY = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+")
_FLAT = re.compile(_STRING + rb'|\{(?:[^"{}]++|' + _STRING + rb')*+\}|[^"\[\]{},\s]++')
_PIECE = re.compile(_STRING + rb'|[\[\]{}"]|[^"\[\]{}]++')
_NEXT = re.compile(rb"[ \t\r\n]*+([,}])")


class RefusedError(Exception):
    """A document that must not be believed; who knows its path makes a user's error of it."""

    def __init__(self, message: str, fix: str = "the file is damaged: download it again") -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


@dataclass(frozen=True)
class Document:
    """Bytes that should be JSON, and what they are called in messages. All methods raise `RefusedError`."""

    data: bytearray
    what: str

    def check_utf8(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(0, len(self.data), 1 << 20):
                decoder.decode(self.data[start : start + (1 << 20)])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise RefusedError(f"{self.what} is not UTF-8") from None

    def members(self, start: int, stop: int, limit: int) -> Iterator[tuple[str, int, int]]:
        """`(key, start, stop of its value)` of the object that is `data[start:stop]`, in order, at most `limit`.

        Nothing but blanks may follow the object. The caller looks for repeated keys, and at the values.
        """
        at, count = start + 1, 0
        blank = _BLANK.match(self.data, at, stop)
        if blank and self.data.startswith(b"}", blank.end()):
            at, more = blank.end() + 1, False
        else:
            more = True
        while more:
            key = _KEY.match(self.data, at, stop)
            if key is None:
                raise self._broken(at)
            count += 1
            if count > limit:
                raise RefusedError(f"{self.what} has more than {limit} members")
            end = self._value_end(key.end(), stop)
            yield self.string(*key.span(1)), key.end(), end
            after = _NEXT.match(self.data, end, stop)
            if after is None:
                raise self._broken(end)
            at, more = after.end(), after[1] == b","
        if not _BLANK.fullmatch(self.data, at, stop):
            raise RefusedError(f"{self.what} goes on after its end, at byte {at}")

    def is_object(self, start: int) -> bool:
        return self.data.startswith(b"{", start)

    def value(self, start: int, stop: int) -> Any:
        """The small value that is `data[start:stop]`, as Python's."""
        if stop - start > VALUE_LIMIT:
            raise RefusedError(f"a value of {stop - start} bytes in the {self.what}, at most {VALUE_LIMIT} are allowed")
        try:
            return _PARSER.decode(self.data[start:stop].decode())
        except (ValueError, RecursionError):
            raise self._broken(start) from None

    def string(self, start: int, stop: int, limit: int = VALUE_LIMIT) -> str:
        """The string that is `data[start:stop]`: no other value, and no half of a surrogate pair."""
        if stop - start > limit:
            raise RefusedError(f"a string of {stop - start} bytes in the {self.what}, at most {limit} are allowed")
        try:
            text = json.loads(self.data[start:stop].decode())
        except (ValueError, RecursionError):
            raise self._broken(start) from None
        if not isinstance(text, str) or not (text.isascii() or _whole(text)):
            raise RefusedError(f"{self.what} is not JSON with a string at byte {start}")
        return text

    def _value_end(self, start: int, stop: int) -> int:
        """Where the value at `start` ends; whether it is JSON inside is for `value` to say."""
        flat = _FLAT.match(self.data, start, stop)
        if flat:
            return flat.end()
        depth = 0
        for piece in _PIECE.finditer(self.data, start, min(stop, start + VALUE_LIMIT)):
            byte = self.data[piece.start()]
            if byte == ord('"') and piece.end() - piece.start() == 1:
                break
            depth += (byte in b"[{") - (byte in b"]}")
            if depth > DEPTH_LIMIT:
                raise RefusedError(f"{self.what} is nested more than {DEPTH_LIMIT} deep")
            if depth <= 0:
                return piece.end()
        raise self._broken(start)

    def _broken(self, at: int) -> RefusedError:
        return RefusedError(f"{self.what} is not JSON at byte {at}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise RefusedError("a field is listed twice")
    return fields


def _whole(text: str) -> bool:
    """Whether `text` is free of halves of surrogate pairs."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


_PARSER = json.JSONDecoder(object_pairs_hook=_unique)


def short(text: str) -> str:
    """`text`, or the head of a long one, for a message."""
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def misfit(value: Any, form: Any, at: str) -> str | None:
    """Where in `value`, which is called `at`, something is not of its form; None when all is.

    A form is a type, or several; `[form of each]`; `{"*": form of each}`; or a dict of the fields of a record, with `?`
    after the names of those that it may lack; others may be there. Numbers stay below 2^62.
    """
    kind: Any = type(form) if isinstance(form, dict | list) else form
    wrong = not isinstance(value, kind) or _is_huge(value)
    if wrong or not isinstance(form, dict | list):
        return at if wrong else None
    if isinstance(form, list):
        parts = [(f"{at}[{i}]", inner, form[0]) for i, inner in enumerate(value)]
    elif "*" in form:
        parts = [(f"{at}[{key}]", inner, form["*"]) for key, inner in value.items()]
    else:
        named = {key.removesuffix("?"): (key.endswith("?"), inner) for key, inner in form.items()}
        parts = [
            (f"{at}.{key}".lstrip("."), value.get(key), inner)
            for key, (optional, inner) in named.items()
            if key in value or not optional
        ]
    return next((found for name, inner, each in parts if (found := misfit(inner, each, name)) is not None), None)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int | float) and not -MOST < value < MOST
