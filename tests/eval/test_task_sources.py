"""Tasks from parquet files and data sets: the same items as from a JSONL file, and one line for what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from local_hub import LocalHub
from pyarrow import parquet

from llmc.calibration.data_sets import DataSetName, parse_data_set
from llmc.errors import CalibrationError, LlmcError, NetworkError
from llmc.eval.gates import task_name
from llmc.eval.tasks.tasks import load_task, load_tasks
from llmc.recipe.recipe import load_recipe, to_dict

CHOICES: list[dict[str, Any]] = [
    {"query": f"{a} + 1 =", "choices": [str(a), str(a + 1), "zwölf"], "gold": 1, "id": f"q{a}", "level": None}
    for a in range(5)
]
CLOZE: list[dict[str, Any]] = [{"context": "the cat sat on", "continuation": "the mat", "n": 1.5}] * 3


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def folder(path: Path, **splits: bytes) -> Path:
    path.mkdir(parents=True)
    for split, content in splits.items():
        (path / f"{split}.jsonl").write_bytes(content)
    return path


def canonical(rows: list[dict[str, Any]], *keys: str) -> str:
    """SHA-256 of the items as another program would write them."""
    written = ""
    for row in rows:
        fields = [
            json.dumps(key) + ":" + json.dumps(row[key], ensure_ascii=False).replace('", "', '","')
            for key in sorted(keys)
        ]
        written += "{" + ",".join(fields) + "}\n"
    return hashlib.sha256(written.encode()).hexdigest()


def test_a_parquet_file_and_folders_hold_the_items_of_the_same_jsonl_file(tmp_path: Path) -> None:
    keys = ("query", "choices", "gold")
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(lines([{key: row[key] for key in keys} for row in CHOICES]))
    right = load_task(plain)
    (tmp_path / "tables").mkdir()
    table(tmp_path / "tables" / "validation.parquet", CHOICES)
    sources = {
        "sums": table(tmp_path / "sums.parquet", CHOICES),
        "set": folder(tmp_path / "set", train=lines(CHOICES[:2]), test=lines(CHOICES)),
        "one": folder(tmp_path / "one", train=lines(CHOICES)),
        "tables": tmp_path / "tables",
    }
    for name, source in sources.items():
        task = load_task(source)
        assert (task.name, task.shape, task.items) == (name, "multiple_choice", right.items)
        assert task.sha256 == canonical(CHOICES, *keys)
        assert task.where(task.items[2]) == f"{source}:row 3"
    assert load_task(f"{sources['set']}@train").items == right.items[:2]
    assert load_task(sources["set"], 3).items == right.items[:3]


def test_sets_that_were_saved_to_disk(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(CHOICES)
    rows.save_to_disk(tmp_path / "alone")
    DatasetDict({"train": rows.select([0]), "test": rows}).save_to_disk(tmp_path / "splits")
    assert load_task(tmp_path / "alone").items == load_task(tmp_path / "splits").items
    assert len(load_task(f"{tmp_path}/splits@train").items) == 1


def line_of(source: Path | str, kind: type[LlmcError] = CalibrationError) -> str:
    with pytest.raises(kind) as caught:
        load_task(source)
    return str(caught.value)


SHAPES = "query, choices, gold; context_options, continuation, gold; context, continuation; question, answer"
BY_HAND = "save the columns that are meant as a .jsonl or .parquet file"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            [*CHOICES, {**CHOICES[0], "gold": 4}],
            "t.parquet:row 6: 'gold' is 4, and there are 3 choices; count from 0 to 2",
        ),
        ([*CLOZE, {**CLOZE[0], "context": None}], "t.parquet:row 4: 'context' must be text, not null"),
        ([{**CLOZE[0], "context": b"x"}], "t.parquet:row 1: 'context' must be text, not a bytes"),
        (
            [{"text": "a", "label": 1}],
            f"t.parquet: no shape of task has these columns: text, label; expected one of: {SHAPES}",
        ),
        (
            [{**CHOICES[0], "answer": "b"}],
            f"t.parquet: its columns are those of multiple choice and of short answer; {BY_HAND}",
        ),
        ([{"question": "q", "query": "q", "answer": "b"}], f"t.parquet: it has both 'question' and 'query'; {BY_HAND}"),
        ([], "t.parquet: holds no items; choose another split or file"),
    ],
)
def test_the_row_of_a_wrong_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table(Path("t.parquet"), rows)
    assert line_of("t.parquet") == line


def test_wrong_rows_beyond_the_limit_are_found(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", [*CLOZE, {**CLOZE[0], "continuation": ""}])
    with pytest.raises(CalibrationError, match=r"t\.parquet:row 4: 'continuation' is empty$"):
        load_task(path, 1)


def test_sources_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("many"), train=lines(CLOZE), validation=lines(CLOZE))
    folder(Path("none"))
    Path("false.parquet").write_bytes(b"PAR1 and no more")
    assert line_of("many") == "many: several splits, and none is called test; add @ and one of: train, validation"
    assert line_of("many@dev") == "many@dev: Bad split: dev. Available splits: ['train', 'validation']"
    assert line_of("none") == "none: a folder that holds no data set; give a .jsonl or .parquet file"
    assert line_of("false.parquet") == "false.parquet: not a readable parquet file"
    fix = "give a .jsonl or .parquet file or a data set id"
    assert line_of("absent.parquet") == f"absent.parquet: no such file; {fix}"
    assert line_of("absent.jsonl") == f"absent.jsonl: no such file; {fix}"
    assert line_of("not/a/set") == (
        "not/a/set: neither a file here nor a data set that can be read from the Hub; "
        "give a .jsonl or .parquet file, or check the id and your access to it"
    )


def test_a_data_set_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert line_of("user/arc:easy@test", NetworkError) == (
        "user/arc:easy@test: the data set cannot be reached (ConnectError); check the network, or give a local file"
    )


READ = """
import json, sys
from llmc.errors import LlmcError
from llmc.eval.tasks.tasks import load_task
for source in sys.argv[1:]:
    try:
        task = load_task(source)
        print(json.dumps([task.name, task.shape, len(task.items), task.sha256]))
    except LlmcError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_data_sets_of_the_hub(tmp_path: Path) -> None:
    card = b"---\nconfigs:\n- config_name: sums\n  data_files: sums.jsonl\n- config_name: words\n  data_files:\n"
    card += b"  - split: test\n    path: words.jsonl\n  - split: wrong\n    path: wrong.jsonl\n---\n"
    files = {"README.md": card, "sums.jsonl": lines(CHOICES), "words.jsonl": lines(CLOZE)}
    files["wrong.jsonl"] = lines([*CLOZE[:1], {**CLOZE[0], "continuation": " "}])
    asked = ("me/quiz:sums", "me/quiz:words", "me/quiz:words@wrong", "me/quiz:numbers", "me/exam")
    with LocalHub(tokens=set()) as hub:
        hub.add("datasets/me/quiz", files)
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,  # the client reads it once, when imported: hence the process of its own
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
        }
        command = [sys.executable, "-c", READ, *asked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[:2] == [
        ["quiz-sums", "multiple_choice", 5, canonical(CHOICES, "query", "choices", "gold")],
        ["quiz-words", "cloze", 3, canonical(CLOZE, "context", "continuation")],
    ]
    assert found[2] == ["CalibrationError", "me/quiz:words@wrong:row 2: 'continuation' is empty"]
    kind, line = found[3]
    assert kind == "CalibrationError" and line.startswith("me/quiz:numbers: BuilderConfig 'numbers' not found.")
    assert found[4] == [
        "CalibrationError",
        "me/exam: neither a file here nor a data set that can be read from the Hub; "
        "give a .jsonl or .parquet file, or check the id and your access to it",
    ]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a/b", DataSetName("a/b")),
        ("a/b:c", DataSetName("a/b", "c")),
        ("a/b@d", DataSetName("a/b", "", "d")),
        ("a/b:c@d", DataSetName("a/b", "c", "d")),
        ("a/b@test[:10]", DataSetName("a/b", "", "test[:10]")),
        ("x@y/b", DataSetName("x@y/b")),
        ("c:/b", DataSetName("c:/b")),
    ],
)
def test_names_of_data_sets(source: str, parts: DataSetName) -> None:
    assert parse_data_set(source) == parts


def test_a_folder_with_marks_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a:b@c").mkdir()
    assert parse_data_set(f"{tmp_path}/a:b@c") == DataSetName(f"{tmp_path}/a:b@c")
    assert parse_data_set(f"{tmp_path}/a:b@c@d") == DataSetName(f"{tmp_path}/a:b@c", "", "d")


def test_names_in_reports_can_be_written_in_gates(tmp_path: Path) -> None:
    assert [task_name(s) for s in ("x/a.jsonl", "x/a.parquet", "org/a", "org/a:B-c@test")] == [
        "a",
        "a",
        "a",
        "a-B-c-test",
    ]
    with pytest.raises(LlmcError, match=r"there is a task 'a' already, x/a\.jsonl"):
        load_tasks(["x/a.jsonl", "org/a"])


def test_recipes_leave_ids_as_they_are(tmp_path: Path) -> None:
    folder(tmp_path / "here", test=lines(CLOZE))
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: m/m\nstages: [{method: rtn}]\ngates: ['task.arc-easy-test > 0.2']\n"
        "eval: {tasks: ['org/arc:easy@test', here, 'here@test', ./no, a.parquet]}\n"
    )
    read = load_recipe(str(path))
    assert read.eval is not None
    local = [f"{tmp_path}/{name}" for name in ("here", "here@test", "./no", "a.parquet")]
    assert read.eval.tasks == ("org/arc:easy@test", *local)
    assert to_dict(read)["eval"]["tasks"] == ["org/arc:easy@test", "here", "here@test", "no", "a.parquet"]
