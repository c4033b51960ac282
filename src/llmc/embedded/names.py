"""Names of what the embedded world holds: its model, texts and tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.embedded import CHARACTERS, ITEMS, task_bytes, text_bytes
from llmc.errors import UsageError
from llmc.registry import suggest

if TYPE_CHECKING:
    from llmc.embedded.world import Kind, Split

WEIGHT = re.compile(r"(.+):(\d{1,6}(?:\.\d{1,6})?)", re.DOTALL)
EMBEDDED_MODEL = "tiny"
EMBEDDED_TEXTS: dict[str, Split] = {f"{EMBEDDED_MODEL}:{name}": name for name in CHARACTERS}
CARRIED_TEXT = f"{EMBEDDED_MODEL}:calibration"
"""What is calibrated on where nobody says on what."""
EMBEDDED_TASKS: dict[str, Kind] = {f"{EMBEDDED_MODEL}:{name}": name for name in ITEMS}


def resolve_model(name: str) -> str:
    """The folder or Hub id behind `model`: `tiny` is the embedded one, `./tiny` a folder."""
    if name != EMBEDDED_MODEL:
        return name
    from llmc.embedded import tiny_model_path

    return str(tiny_model_path())


def _split_weight(source: str) -> tuple[str, str]:
    """A calibration source, and its weight with the colon before it, if it has one."""
    name = weighted(source)[0]
    return name, source[len(name) :]


def resolve_text(source: str, folder: Path) -> str:
    """The file or data set behind a text; a text of the embedded world is written into `folder` first.

    Raises:
        UsageError: the embedded world has no such text.
    """
    name, weight = _split_weight(source)
    content = embedded_text(name)
    if content is None:
        return source
    path = folder / f"{EMBEDDED_TEXTS[name]}.txt"
    path.write_bytes(content)
    return f"{path}{weight}"


def embedded_text(source: str) -> bytes | None:
    """The text of the embedded world that is called so; None of anything else.

    Raises:
        UsageError: the embedded world has no such text.
    """
    return text_bytes(EMBEDDED_TEXTS[source]) if _is_one_of(EMBEDDED_TEXTS, source, "text") else None


def embedded_task(source: str) -> bytes | None:
    """The task file of the embedded world that is called so; None of anything else.

    Raises:
        UsageError: the embedded world has no such task.
    """
    return task_bytes(EMBEDDED_TASKS[source]) if _is_one_of(EMBEDDED_TASKS, source, "task") else None


def _is_one_of(known: Mapping[str, str], source: str, what: str) -> bool:
    """Whether a name of the embedded world, one of `known`, is meant. Raises UsageError for one that is not there."""
    if _is_embedded(source) and source not in known:
        raise UsageError(f"unknown embedded {what} {source!r}", fix=suggest(source, list(known)))
    return source in known


def _is_embedded(source: str) -> bool:
    return source.startswith(f"{EMBEDDED_MODEL}:")


def weighted(source: str) -> tuple[str, float]:
    """A source and its weight; a file whose own name ends like that comes first.

    >>> weighted("a.txt:2")
    ('a.txt', 2.0)
    """
    match = WEIGHT.fullmatch(source)
    return (source, 1.0) if match is None or Path(source).exists() else (match[1], float(match[2]))
