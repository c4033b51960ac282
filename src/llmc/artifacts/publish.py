"""`llmc card`, and what `push` makes of a card: fields that only a model's owner knows, and the repository's name.

The card may be edited by hand as well. Whatever changed, manifest and seal are brought in line with it, with nothing
else: a damaged file stays known as damaged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.artifacts.card import HUB_ID, LISTS, MOST_READ, completed, fields_of, with_fields
from llmc.errors import CheckpointError, UsageError
from llmc.files.disk import disk_errors
from llmc.files.manifest import CARD, MANIFEST, SUMS, resealed
from llmc.public import public
from llmc.results import Table

FIX = "write one, or quantize again"


@dataclass(frozen=True)
class CardResult:
    """The fields of a card as they are now, and whether its folder had to be sealed anew."""

    path: Path
    fields: dict[str, Any]
    changed: bool

    def to_json(self) -> dict[str, Any]:
        return {"card": str(self.path), "fields": self.fields, "changed": self.changed}

    def tables(self) -> list[Table]:
        state = "sealed anew" if self.changed else "as it was"
        rows = [(name, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for name, v in self.fields.items()]
        return [Table(f"{self.path}, {state}", ("field", "value"), tuple(rows))]


@public()
def card(folder: str | Path, settings: Sequence[str] = ()) -> CardResult:
    """Change fields of an artifact's card, take over what was edited in it by hand, and seal the folder again.

    Args:
        folder: an artifact.
        settings: `field=value`, as in `license=mit`; lists as in `language=en,de`; an empty value takes a field out.

    Raises:
        UsageError: a setting cannot be read.
        CheckpointError: no artifact with a card, or manifest and seal do not belong together.
    """
    place = Path(folder)
    if (place / CARD).is_symlink():
        fix = "change a copy of the folder, with its files in place of links"
        raise CheckpointError("its files are links, as in the Hub's cache", where=str(place), fix=fix)
    path, text = place / CARD, _read(place)
    if not (place / MANIFEST).is_file() or not (place / SUMS).is_file():
        fix = "give the folder of a finished run"
        raise CheckpointError(f"it has no {MANIFEST} and {SUMS}", where=str(place), fix=fix)
    try:
        after = with_fields(text, _changes(settings))
        fields = fields_of(after)
    except ValueError as error:
        raise _unreadable(path, error) from error
    files = resealed(place, CARD, after.encode())
    changed = {name: data for name, data in files.items() if (place / name).read_bytes() != data}
    for name, data in changed.items():
        _replace(place / name, data)
    return CardResult(path, fields, bool(changed))


def published(folder: Path, repo: str, base_model: str | None = None) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files of a folder as the repository `repo` gets them where they differ, and the fields of its card.

    Args:
        base_model: Hub id of the original; None: the one that the card names.

    Raises CheckpointError without a readable card, UsageError where `base_model` is no Hub id.
    """
    _require_hub_id(base_model, f"--base-model {base_model}")
    text = _read(folder)
    try:
        after = completed(text, repo, base_model)
        fields = fields_of(after)
    except ValueError as error:
        raise _unreadable(folder / CARD, error) from error
    if after == text:
        return {}, fields
    data = after.encode()
    return resealed(folder, CARD, data) if (folder / MANIFEST).is_file() else {CARD: data}, fields


def _read(folder: Path) -> str:
    path = folder / CARD
    if not path.is_file():
        raise CheckpointError("there is no model card", where=str(path), fix=FIX)
    if path.stat().st_size > MOST_READ:
        problem = f"the model card is larger than {MOST_READ >> 20} MiB"
        raise CheckpointError(problem, where=str(path), fix="shorten it")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("the model card is not UTF-8", where=str(path), fix="save it as UTF-8") from error


def _unreadable(path: Path, error: ValueError) -> CheckpointError:
    return CheckpointError(f"the fields at its top are {error}", where=str(path), fix="repair what is between the ---")


def _changes(settings: Sequence[str]) -> Mapping[str, Any]:
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name or not name.replace("_", "").replace("-", "").isalnum():
            raise UsageError(f"cannot read {setting!r}", where="--set", fix="write it like --set license=mit")
        items = [item.strip() for item in value.split(",") if item.strip()]
        changes[name] = (items if name in LISTS and len(items) != 1 else value.strip()) or None
        if name == "tags" and changes[name] is not None:
            changes[name] = items
    base = changes.get("base_model")
    _require_hub_id(base, f"--set base_model={base}")
    return changes


def _require_hub_id(name: str | None, where: str) -> None:
    if name is not None and not HUB_ID.fullmatch(name):
        raise UsageError("not a Hub id", where=where, fix="write it as user/name")


def _replace(path: Path, data: bytes) -> None:
    """Give a file another content, in one step."""
    waiting = path.with_name(path.name + ".tmp")
    with disk_errors(path, "write"):
        waiting.write_bytes(data)
        os.replace(waiting, path)
