"""Task files: the four shapes, and the line of everything that is wrong with one."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.embedded import write_tasks
from llmc.errors import LlmcError
from llmc.eval.tasks.tasks import Item, load_task, load_tasks

DATA = Path(os.environ.get("LLMC_DATA") or Path(os.environ.get("LLMC_MODELS") or ".").parent / "data")

CHOICE: dict[str, Any] = {"query": "2 + 2 =", "choices": ["4", "5", "six"], "gold": 0}
PARTIAL: dict[str, Any] = {"context_options": ["so Ann", "so Bob"], "continuation": "left.", "gold": 1}
CLOZE: dict[str, Any] = {"context": "the cat sat on the", "continuation": "mat"}
SHORT: dict[str, Any] = {"question": "Capital of France?", "answers": ["Paris", "paris, france"]}


def written(folder: Path, *rows: Any, name: str = "t.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("row", "shape", "item"),
    [
        (CHOICE, "multiple_choice", Item(1, tuple(("2 + 2 =", c) for c in ("4", "5", "six")), 0)),
        (PARTIAL, "partial_scoring", Item(1, (("so Ann", "left."), ("so Bob", "left.")), 1)),
        (CLOZE, "cloze", Item(1, (("the cat sat on the", "mat"),))),
        (SHORT, "short_answer", Item(1, (("Capital of France?", ""),), answers=("Paris", "paris, france"))),
        ({"query": "q", "answer": "a"}, "short_answer", Item(1, (("q", ""),), answers=("a",))),
        ({**CHOICE, "query": ""}, "multiple_choice", Item(1, tuple(("", c) for c in ("4", "5", "six")), 0)),
    ],
)
def test_shapes(tmp_path: Path, row: dict[str, Any], shape: str, item: Item) -> None:
    path = written(tmp_path, row)
    task = load_task(path)
    assert (task.name, task.shape, task.items) == ("t", shape, (item,))
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert task.where(item) == f"{path}:1"


def test_questions_of_the_embedded_world_are_tasks(tmp_path: Path) -> None:
    """By name they are the same as from their files, but for where they say they come from."""
    files = write_tasks(tmp_path)
    assert set(files) == {"recall", "in_context", "copy", "multi_hop", "story"}
    for name, path in files.items():
        task = load_task(f"tiny:{name}")
        assert replace(task, path=str(path)) == load_task(path)
        assert (task.name, task.shape, task.chance) == (name, "multiple_choice", 0.25)
        assert len(task.items) == (420 if name == "recall" else 400)
        assert task.where(task.items[0]) == f"tiny:{name}:1"
    with pytest.raises(LlmcError) as refused:
        load_tasks(["tiny:copy", files["copy"]])
    assert refused.value.message == "there is a task 'copy' already, tiny:copy"


def test_blank_lines_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    line = json.dumps(CLOZE).encode()
    path = written(tmp_path, b"\xef\xbb\xbf" + line + b"\r", b"  \r", b"", line + b"\r")
    assert [item.line for item in load_task(path).items] == [1, 4]


def test_limit_and_chance(tmp_path: Path) -> None:
    path = written(tmp_path, CHOICE, {**CHOICE, "choices": ["a", "b"]}, CHOICE)
    assert load_task(path).chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert [item.line for item in load_task(path, 2).items] == [1, 2]
    assert load_task(written(tmp_path, CLOZE)).chance is None


def line_of(path: Path) -> str:
    """The error, without the folder."""
    with pytest.raises(LlmcError) as caught:
        load_task(path)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{path.parent}/", "")


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


KEYS = "query, choices, gold; context_options, continuation, gold; context, continuation; question, answer"
EXPECTED = f"expected one of: {KEYS}"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b'{"query": "a"', "not JSON (Expecting ',' delimiter, column 14); every line must be one object"),
        (b'{"context": "a", "context": "b"}', "not JSON (key 'context' is given twice); every line must be one object"),
        (b'["a"]', f"a JSON list, not an object; {EXPECTED}"),
        (b'{"context": "\xff"}', "not UTF-8 at byte 13 of the line; convert the file to UTF-8"),
        ({}, f"no shape of task has these keys: none; {EXPECTED}"),
        ({"text": "a", "label": 1}, f"no shape of task has these keys: text, label; {EXPECTED}"),
        (
            without(CHOICE, "gold"),
            "missing key 'gold' in an item of multiple choice; its keys are query, choices, gold",
        ),
        (
            without(CHOICE, "query"),
            "missing key 'query' in an item of multiple choice; its keys are query, choices, gold",
        ),
        (without(CLOZE, "context"), "missing key 'context' in an item of cloze; its keys are context, continuation"),
        (
            without(SHORT, "answers"),
            "missing key 'answer' in an item of short answer; its keys are question, answer",
        ),
        ({**CHOICE, "id": 7}, "unknown key 'id' in an item of multiple choice; choose one of: query, choices, gold"),
        (
            {**without(CHOICE, "gold"), "golds": 0},
            "unknown key 'golds' in an item of multiple choice; did you mean 'gold'?",
        ),
        ({**CLOZE, "gold": 0}, "unknown key 'gold' in an item of cloze; choose one of: context, continuation"),
        ({**CHOICE, "gold": 3}, "'gold' is 3, and there are 3 choices; count from 0 to 2"),
        ({**CHOICE, "gold": -1}, "'gold' is -1, and there are 3 choices; count from 0 to 2"),
        ({**PARTIAL, "gold": 2}, "'gold' is 2, and there are 2 context_options; count from 0 to 1"),
        ({**CHOICE, "gold": "0"}, "'gold' must be a whole number, not text"),
        ({**CHOICE, "gold": True}, "'gold' must be a whole number, not true"),
        ({**CHOICE, "gold": 0.0}, "'gold' must be a whole number, not 0.0"),
        ({**CHOICE, "gold": None}, "'gold' must be a whole number, not null"),
        ({**CHOICE, "choices": ["4"]}, "'choices' must be a list of 2 texts or more, not a list of 1"),
        ({**CHOICE, "choices": "45"}, "'choices' must be a list of 2 texts or more, not text"),
        ({**CHOICE, "choices": ["4", 5]}, "'choices'[1] must be text, not 5"),
        ({**CHOICE, "choices": ["4", " "]}, "'choices'[1] is empty"),
        ({**CLOZE, "continuation": "\n"}, "'continuation' is empty"),
        ({**CLOZE, "context": {}}, "'context' must be text, not an object"),
        ({**SHORT, "answers": []}, "'answers' must be a list of 1 texts or more, not a list of 0"),
        ({"question": "", "answer": "a"}, "'question' is empty"),
        (
            b'{"context": "\\ud800", "continuation": "a"}',
            "'context' is not valid Unicode (a lone surrogate); repair this text",
        ),
        (
            CLOZE,
            "an item of cloze in a file whose line 1 is one of partial scoring; put them into two files",
        ),
    ],
)
def test_the_line_of_a_wrong_item(tmp_path: Path, row: Any, problem: str) -> None:
    above = PARTIAL if row is CLOZE else b""
    assert line_of(written(tmp_path, above, b"", row)) == f"t.jsonl:3: {problem}"


def test_deep_nesting(tmp_path: Path) -> None:
    assert line_of(written(tmp_path, b"[" * 200_000)).startswith("t.jsonl:1: not JSON (")


def test_wrong_items_beyond_the_limit_are_found(tmp_path: Path) -> None:
    path = written(tmp_path, CLOZE, {**CLOZE, "context": 1})
    with pytest.raises(LlmcError, match=r"t\.jsonl:2: 'context' must be text"):
        load_task(path, 1)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    assert line_of(path) == "t.jsonl: holds no items; give one JSON object per line"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    fix = "give a .jsonl or .parquet file or a data set id"
    assert line_of(tmp_path / "none.jsonl") == f"none.jsonl: no such file; {fix}"
    (tmp_path / "d.jsonl").mkdir()
    assert line_of(tmp_path / "d.jsonl") == "d.jsonl: a folder that holds no data set; give a .jsonl or .parquet file"


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    one, other = written(tmp_path, CLOZE), tmp_path / "x" / "t.jsonl"
    with pytest.raises(LlmcError) as caught:
        load_tasks([one, other])
    assert str(caught.value) == f"{other}: there is a task 't' already, {one}; rename the file"


def test_a_limit_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match=r"^--limit: limit 0 leaves no item; use 1 or more$"):
        load_task(written(tmp_path, CLOZE), 0)


@pytest.mark.skipif(not (DATA / "tasks").is_dir(), reason="LLMC_DATA has no folder `tasks`")
def test_files_of_public_tasks_are_read_as_they_are() -> None:
    tasks = load_tasks(sorted((DATA / "tasks").glob("*.jsonl")))
    assert {task.name: (task.shape, len(task.items)) for task in tasks} == {
        "arc_easy": ("multiple_choice", 2376),
        "boolq": ("multiple_choice", 3270),
        "copa": ("multiple_choice", 100),
        "lambada_openai": ("cloze", 5153),
        "openbook_qa": ("multiple_choice", 500),
        "piqa": ("multiple_choice", 1838),
        "winogrande": ("partial_scoring", 1267),
    }
