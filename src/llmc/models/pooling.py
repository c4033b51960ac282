"""How an encoder pools, as the files of sentence-transformers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError, UnsupportedError

PLAIN_MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; a length changes no cosine


def pooling_of(folder: Path) -> str | None:
    """`mean` or `cls` as the files of sentence-transformers in `folder` say; None where there are none.

    Raises:
        UnsupportedError: another pooling, or layers behind it. CheckpointError: files that are not as they write them.
    """
    modules = _json(folder / "modules.json", list)
    kinds = [str(each.get("type")).rpartition(".")[2] for each in modules or () if isinstance(each, dict)]
    other = next((kind for kind in kinds if kind not in PLAIN_MODULES), None)
    if other is not None:
        raise UnsupportedError(f"its vectors go through a module {other}, which is not read here", where=folder.name)
    settings = _json(folder / "1_Pooling" / "config.json", dict)
    if settings is None:
        return None
    modes = [
        key.removeprefix("pooling_mode_") for key, on in settings.items() if key.startswith("pooling_mode_") and on
    ]
    modes += [str(settings["pooling_mode"])] if "pooling_mode" in settings else []
    names = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise UnsupportedError(
            f"its vectors are pooled by {' and '.join(modes) or 'nothing'}",
            where=folder.name,
            fix="the mean and the first token are read",
        )
    return names[modes[0]]


def _json(path: Path, kind: type) -> Any:
    """What is in the file, None where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("not a readable JSON file", where=f"{path.parent.name}/{path.name}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"holds no {kind.__name__}", where=f"{path.parent.name}/{path.name}")
    return value
