"""A tiny trained model and the small world it was trained on: what `llmc` runs on without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmc.embedded.world import Kind, Split

# Characters of each text.
CHARACTERS: dict[Split, int] = {"calibration": 300_000, "evaluation": 120_000}
# Items of each task; there are as many facts as recall has items.
ITEMS: dict[Kind, int] = {"recall": 420, "in_context": 400, "copy": 400, "multi_hop": 400, "story": 400}


def tiny_model_path() -> Path:
    """The folder of the embedded model: a Hugging Face model folder, complete with its tokenizer."""
    return Path(__file__).parent / "tiny"


def text_bytes(name: Split) -> bytes:
    """The text `name` of `CHARACTERS`, documents separated by blank lines, always the same bytes."""
    from llmc.embedded.world import build_world, documents

    text = "\n\n".join(documents(build_world(), name, characters=CHARACTERS[name]))
    return f"{text}\n".encode()


def task_bytes(name: Kind) -> bytes:
    """The questions of one kind as a task file: JSON lines of `query`, `choices` and `gold`, always the same bytes."""
    from llmc.embedded.world import build_world, questions

    items = questions(build_world(), name, ITEMS[name])
    return "".join(json.dumps(item) + "\n" for item in items).encode()


def write_texts(folder: Path | str) -> dict[Split, Path]:
    """Write the calibration and the evaluation text into `folder`, made when missing.

    Returns:
        `calibration` and `evaluation`, the two `.txt` files.
    """
    return {name: _written(Path(folder) / f"{name}.txt", text_bytes(name)) for name in CHARACTERS}


def write_tasks(folder: Path | str) -> dict[Kind, Path]:
    """Write the questions of every kind into `folder`, made when missing.

    Returns:
        Kind to its `.jsonl` file.
    """
    return {name: _written(Path(folder) / f"{name}.jsonl", task_bytes(name)) for name in ITEMS}


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
