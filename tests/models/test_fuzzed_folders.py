"""Folders whose JSON was changed at one place, through every verb that reads them: never an internal error.

The changes are drawn with a fixed seed; each is written with sums that fit, as a forger would.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from spoiled import Command

RTN = ("--method", "rtn", "--group-size", "32")
SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
WINDOW = ("--context", "32", "--stride", "32", "--max-tokens", "64")
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 10**30, 1e-9, 1e300, float("nan")),
    *("", "x", "../x", "\u202eabc", "a\nb", "\ud800", "evil/attn", "0" * 5000),
    *([], [1], ["x"], [None], [{}], [[[]]], {}, {"a": 1}, {"": ""}, {"quant_method": "x"}),
]
BROKEN = (b"", b"[", b"\xff\xfe", b"[]", b"NaN", b'{"a":' * 3000)
RUNS = 12
"""Changed folders for each kind of folder and each verb."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmc.cli import execute

    home = tmp_path_factory.mktemp("fuzzed")
    dense = tiny_models.build("llama-untied", home / "dense", **SMALL)
    tiny_models.corpus(home, 1200)
    for words in (
        ("quantize", str(dense), "-o", str(home / "ct"), *RTN),
        ("quantize", str(dense), "-o", str(home / "gptq"), *RTN, "--format", "gptq"),
        ("quantize", str(dense), "-o", str(home / "entropy"), *RTN, "--entropy"),
        ("lossless", str(dense), "-o", str(home / "lossless")),
    ):
        assert execute(words) == 0
    return home


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything that is inside of a JSON value; of a list its first three."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in parts:
        yield from places(inner, (*at, key))


def changed(document: Any, draw: random.Random) -> Any:
    """`document` with another value in one place, most often high up, or without it."""
    depth = draw.choice([1, 1, 2, 3, 4])
    at = draw.choice([p for p in places(document) if len(p) <= depth])
    value = copy.deepcopy(draw.choice(VALUES))
    if not at:
        return value
    document = copy.deepcopy(document)
    inside = document
    for key in at[:-1]:
        inside = inside[key]
    if draw.random() < 0.12 and isinstance(inside, dict):
        del inside[at[-1]]
    else:
        inside[at[-1]] = value
    return document


def reseal(folder: Path) -> None:
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names if name != "SHA256SUMS"}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def spoil(folder: Path, draw: random.Random) -> str:
    """Change one JSON file of the folder; its name."""
    files = sorted(p for p in folder.rglob("*.json") if p.name != "tokenizer.json" or draw.random() < 0.2)
    path = draw.choice([*files, *(p for p in files if p.name in ("llmc.json", "config.json"))])
    if draw.random() < 0.05:
        path.write_bytes(draw.choice(BROKEN))
    else:
        path.write_text(json.dumps(changed(json.loads(path.read_text()), draw)))
    if (folder / "SHA256SUMS").exists() and draw.random() < 0.8:
        reseal(folder)
    return path.name


READ = [("inspect", "{f}"), ("verify", "{f}"), ("push", "{f}", "u/r", "--dry-run"), ("lossless", "{f}", "-o", "{o}")]
DENSE = [("plan", "{f}", *RTN), ("quantize", "{f}", "-o", "{o}", *RTN), ("verify", "{h}/ct", "--against", "{f}")]
MADE = [
    ("decompress", "{f}", "-o", "{o}"),
    ("export", "{f}", "-o", "{o}", "--format", "dense"),
    ("export", "{f}", "-o", "{o}", "--format", "gptq"),
    ("verify", "{f}", "--against", "{h}/dense"),
]
EVAL = [("eval", "{f}", "--text", "{h}/corpus.txt", *WINDOW)]


@pytest.mark.parametrize("kind", ["dense", "ct", "gptq", "entropy", "lossless"])
def test_no_json_of_a_folder_is_an_internal_error(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, kind: str
) -> None:
    command, draw = Command(capsys), random.Random(kind)
    model, out = tmp_path / "model", tmp_path / "out"
    for verb in [*READ, *(DENSE if kind == "dense" else MADE), *EVAL]:
        for _ in range(RUNS if verb[0] != "eval" else RUNS // 2):
            for folder in tmp_path.iterdir():
                shutil.rmtree(folder)
            shutil.copytree(home / kind, model)
            name = spoil(model, draw)
            outcome = command(*(word.format(f=model, o=out, h=home) for word in verb))
            lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
            said = f"{verb[0]} after a change of {name}: {outcome.err[-600:]}"
            assert outcome.code in (0, 1, 2), said
            assert len(lines) == (outcome.code != 0), said
            assert outcome.code == 0 or not out.exists(), said
