"""Files of pairs of texts, and the line of everything that is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from llmc.errors import LlmcError
from llmc.eval.tasks.text_pairs import TextPair, load_similarities, load_translations

ALIKE: dict[str, Any] = {"sentence1": "a cat", "sentence2": "the cat", "score": 4.5, "genre": "news"}
TRANSLATED: dict[str, Any] = {"source": "", "target": "le chat"}


def written(*rows: Any) -> str:
    Path("t.jsonl").write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return "t.jsonl"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_pairs() -> None:
    assert load_similarities(written(ALIKE, b"", {**ALIKE, "score": 1})) == [
        TextPair("a cat", "the cat", "t.jsonl:1", 4.5),
        TextPair("a cat", "the cat", "t.jsonl:3", 1.0),
    ]
    assert load_translations(written(TRANSLATED)) == [TextPair("", "le chat", "t.jsonl:1")]
    parquet.write_table(pyarrow.Table.from_pylist([ALIKE]), "t.parquet")
    assert load_similarities("t.parquet") == [TextPair("a cat", "the cat", "t.parquet:row 1", 4.5)]


KEYS = "its keys are sentence1, sentence2, score"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (b"[1]", f"t.jsonl:2: a JSON list, not an object; {KEYS}"),
        ({"sentence1": "a", "score": 1}, f"t.jsonl:2: missing key 'sentence2'; {KEYS}"),
        ({**ALIKE, "score": "4"}, "t.jsonl:2: 'score' must be a number, not text"),
        ({**ALIKE, "score": True}, "t.jsonl:2: 'score' must be a number, not true"),
        (b'{"sentence1": "a", "sentence2": "b", "score": NaN}', "t.jsonl:2: 'score' is nan; give a finite number"),
        ({**ALIKE, "sentence2": " "}, "t.jsonl:2: 'sentence2' is empty"),
        ({**ALIKE, "sentence1": None}, "t.jsonl:2: 'sentence1' must be text, not null"),
    ],
)
def test_the_line_of_a_wrong_pair(row: Any, line: str) -> None:
    with pytest.raises(LlmcError) as caught:
        load_similarities(written(ALIKE, row))
    assert str(caught.value) == line
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\n \n", "t.jsonl: holds no pairs; its keys are source, target"),
        (None, "t.jsonl: no such file; give a .jsonl or .parquet file or a data set id"),
        (b'{"source": "a", "target": ""}', "t.jsonl:1: 'target' is empty"),
        (b'{"source": "a"}', "t.jsonl:1: missing key 'target'; its keys are source, target"),
    ],
)
def test_files_without_pairs(content: bytes | None, line: str) -> None:
    if content is not None:
        Path("t.jsonl").write_bytes(content)
    with pytest.raises(LlmcError) as caught:
        load_translations("t.jsonl")
    assert str(caught.value) == line
