"""Tasks from the file to the report, the recipe and the gates."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import llmc
from llmc.cli import execute
from llmc.embedded import tiny_model_path, write_texts
from llmc.errors import LlmcError
from llmc.eval.evaluation import evaluate
from llmc.eval.reports.report import EvalReport
from llmc.eval.reports.task_report import TaskScores, columns, flip_figures, task_report
from llmc.eval.tasks.tasks import Item, Task
from llmc.recipe.recipe import load_recipe, to_dict

SHAPES = ("choice", "partial", "cloze", "short")

BEFORE = np.array([True] * 12 + [False] * 8)
AFTER = np.array([True] * 9 + [False] * 3 + [True] + [False] * 7)


def task(items: int = 20, name: str = "t") -> Task:
    pairs = (("q", "a"), ("q", "b"))
    return Task(name, "multiple_choice", tuple(Item(i, pairs) for i in range(items)), "f", "0" * 64)


def scores(right: Any, **fields: Any) -> TaskScores:
    return TaskScores({"acc_norm": right, "acc": ~right}, np.full(len(right), -2.5), **fields)


def test_figures_of_a_task() -> None:
    report = task_report(task(), scores(AFTER), scores(BEFORE, truncated=2))
    assert (report.metric, report.items, report.chance, report.truncated) == ("acc_norm", 20, 0.5, 2)
    assert (report.accuracy, report.original_accuracy, report.difference) == pytest.approx((0.5, 0.6, -0.1))
    assert (report.lost, report.gained, report.flip_rate) == (3, 1, 0.2)
    assert report.accuracy_ratio == pytest.approx(10 / 12)
    assert report.mcnemar_p == 0.625  # 1 or fewer of 4 coins, twice
    assert report.resolved is False
    assert report.items_to_resolve == 155
    assert report.metrics == {"acc_norm": 0.5, "acc": 0.5, "original_acc_norm": 0.6, "original_acc": 0.4}
    assert (report.log_likelihood, report.original_log_likelihood) == (-2.5, -2.5)
    assert list(report.intervals) == ["accuracy", "original_accuracy", "difference", "accuracy_ratio", "flip_rate"]
    for name, (low, high) in report.intervals.items():
        assert low < getattr(report, name) < high
    assert report.flipped is not None
    assert report.flipped.sum() == 4


def test_json_of_a_task() -> None:
    plain = json.loads(json.dumps(task_report(task(), scores(AFTER), scores(BEFORE)).to_json(), allow_nan=False))
    assert set(plain) == {
        *("shape", "metric", "items", "sha256", "chance", "truncated", "accuracy", "original_accuracy"),
        *("accuracy_ratio", "difference", "flip_rate", "lost", "gained", "mcnemar_p", "resolved"),
        *("items_to_resolve", "log_likelihood", "original_log_likelihood", "intervals"),
        *("acc_norm", "acc", "original_acc_norm", "original_acc"),
    }
    assert plain["intervals"]["flip_rate"] == pytest.approx([0.05733, 0.43661], abs=1e-5)  # Clopper-Pearson of 4 in 20


def test_without_an_original() -> None:
    report = task_report(task(), scores(AFTER))
    assert (report.original_accuracy, report.flip_rate, report.mcnemar_p, report.resolved) == (None,) * 4
    assert list(report.intervals) == ["accuracy"]
    assert report.row()[:4] == ("t", "20", "acc_norm", "0.5")
    assert len(report.row()) == len(columns("m", None))
    assert flip_figures([report]) == (None, {})


def test_rows_say_what_is_resolved() -> None:
    def note(before: Any, after: Any, **fields: Any) -> str:
        row = task_report(task(len(before)), scores(after, **fields), scores(before)).row()
        assert len(row) == len(columns("m", "o"))
        return row[-1]

    assert note(BEFORE, AFTER) == "not resolved: about 155 items would"
    assert note(BEFORE, BEFORE, truncated=3) == "no item changed; 3 cut from the left"
    assert note(BEFORE, BEFORE[::-1]) == "no difference"
    assert note(np.ones(20, bool), np.arange(20) > 9) == ""
    assert note(np.ones(5, bool), np.zeros(5, bool)) == "not resolved: about 6 items would"  # the formula says 4


def test_an_original_that_got_nothing_right() -> None:
    report = task_report(task(), scores(AFTER), scores(np.zeros(20, bool)))
    assert report.accuracy_ratio is None
    assert "accuracy_ratio" not in report.intervals


def test_flips_of_all_tasks_are_pooled() -> None:
    reports = [
        task_report(task(), scores(AFTER), scores(BEFORE)),
        task_report(task(80), scores(np.ones(80, bool)), scores(np.ones(80, bool))),
    ]
    rate, intervals = flip_figures(reports)
    assert rate == 0.04
    assert intervals["flip_rate"] == pytest.approx((0.011, 0.0993), abs=1e-4)  # of 4 in 100


def questions(text: str) -> dict[str, list[dict[str, Any]]]:
    """How paragraphs go on, asked in each shape; most of it is easy for the model of that world."""
    rng = random.Random(0)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SHAPES}
    paragraphs = [words for line in text.splitlines() if len(words := line.split()) > 30][:30]
    every = [word for words in paragraphs for word in words]
    for words in paragraphs:
        begin, word = " ".join(words[:-3]), words[-3]
        choices = [*rng.sample(every, 2), word]
        rows["choice"].append({"query": begin, "choices": choices, "gold": 2})
        shuffled = " ".join(rng.sample(words[:-3], len(words) - 3))
        rows["partial"].append({"context_options": [shuffled, begin], "continuation": word, "gold": 1})
        rows["cloze"].append({"context": begin, "continuation": word})
        rows["short"].append({"query": begin, "answers": [" ".join(words[-3:]), "-"]})
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, a damaged copy, and a task of each shape from its world."""
    place = tmp_path_factory.mktemp("tasks")
    shutil.copytree(tiny_model_path(), place / "original")
    shutil.copytree(tiny_model_path(), place / "damaged")
    tensors = load_file(place / "damaged" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "layers.0" in name and tensor.ndim == 2:
            noise = torch.randn(tensor.shape, generator=generator)
            tensors[name] = (tensor.float() + 1.5 * tensor.float().std() * noise).to(tensor.dtype)
    save_file(tensors, place / "damaged" / "model.safetensors", metadata={"format": "pt"})
    for name, items in questions(write_texts(place)["evaluation"].read_text(encoding="utf-8")).items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return place


@pytest.fixture(scope="module")
def report(place: Path) -> EvalReport:
    tasks = [place / f"{name}.jsonl" for name in SHAPES]
    return evaluate(place / "damaged", against=place / "original", tasks=tasks, limit=25)


def test_every_shape_from_file_to_json(place: Path, report: EvalReport) -> None:
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert list(plain["tasks"]) == list(SHAPES)
    assert (plain["perplexity"], plain["text"], plain["tokens"]) == (None, None, None)
    for name, metric in zip(SHAPES, ("acc_norm", "acc", "acc", "exact_match"), strict=True):
        found = plain["tasks"][name]
        assert (found["metric"], found["items"]) == (metric, 25)
        assert found["accuracy"] == found[metric] and found["original_accuracy"] == found[f"original_{metric}"]
        assert found["flip_rate"] == (found["lost"] + found["gained"]) / 25
    assert plain["tasks"]["choice"]["original_accuracy"] > 0.9
    changed = sum(found["lost"] + found["gained"] for found in plain["tasks"].values())
    assert plain["flip_rate"] == changed / 100 > 0.05
    low, high = plain["intervals"]["flip_rate"]
    assert low < plain["flip_rate"] < high
    assert str(place) not in json.dumps(plain)


def test_a_model_beside_itself_flips_nothing(place: Path) -> None:
    tasks = [place / f"{name}.jsonl" for name in SHAPES]
    same = evaluate(place / "original", against=place / "original", tasks=tasks, limit=10)
    assert same.flip_rate == 0
    assert [each.mcnemar_p for each in same.tasks] == [1] * 4


def test_tables_and_markdown(report: EvalReport) -> None:
    main, tasks = report.tables()
    assert [row[0] for row in main.rows] == ["flip_rate", "weights", "bits/weight", "bits/weight, model"]
    assert tasks.columns == columns("damaged", "original")
    assert [row[0] for row in tasks.rows] == list(SHAPES)
    lines = report.to_markdown().splitlines()
    head = lines.index("| " + " | ".join(tasks.columns) + " |")
    assert lines[head + 1] == "| --- | " + "---: | " * 8 + "--- |"
    assert [line.split(" | ")[0] for line in lines[head + 2 : head + 6]] == [f"| {name}" for name in SHAPES]
    assert not any("windows" in line for line in lines)


def test_text_and_tasks_together(place: Path) -> None:
    text = tiny_models.corpus(place, words=300)
    both = evaluate(
        place / "damaged",
        against=place / "original",
        text=text,
        tasks=[place / "cloze.jsonl"],
        context=64,
        stride=64,
        max_tokens=300,
        limit=5,
    )
    assert both.perplexity is not None and both.kl is not None
    assert [row[0] for row in both.table().rows][6] == "flip_rate"
    assert set(both.intervals) == {
        "perplexity",
        "bits_per_byte",
        "perplexity_ratio",
        "kl",
        "kl_median",
        "kl_p99",
        "top1_agreement",
        "flip_rate",
    }
    alone = evaluate(place / "damaged", text=text, tasks=[place / "cloze.jsonl"], context=64, stride=64, limit=5)
    assert (alone.flip_rate, alone.tasks[0].flip_rate) == (None, None)
    assert [table.title for table in alone.tables()][1] == "tasks"


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(LlmcError) as caught:
        evaluate(*arguments, **options)
    return str(caught.value)


def test_refusals(place: Path, tmp_path: Path) -> None:
    line = "--text: nothing to measure on; give --text FILE, --task FILE or both"
    assert refusal(place / "original") == line
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "a", "choices": ["b", "c"], "gold": 2}\n')
    line = f"{bad}:1: 'gold' is 2, and there are 2 choices; count from 0 to 1"
    assert refusal(place / "original", tasks=[place / "cloze.jsonl", bad]) == line
    assert refusal(place / "original", tasks=[bad], limit=0) == "--limit: limit 0 leaves no item; use 1 or more"


def recipe(folder: Path, place: Path, gates: str) -> str:
    (folder / "r.yaml").write_text(
        f"model: {place / 'original'}\nstages: [{{method: rtn, bits: 2, group_size: 32}}]\n"
        f"eval: {{tasks: [{os.path.relpath(place, folder)}/cloze.jsonl, choice.jsonl], limit: 25}}\ngates: {gates}\n"
    )
    shutil.copy(place / "choice.jsonl", folder)
    return str(folder / "r.yaml")


def test_a_recipe_with_tasks_and_gates(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, place, "[flip_rate < 100%, task.cloze >= 0.97*original, task.choice > 0.2]")
    assert execute(["run", path, "-o", str(tmp_path / "out"), "--json"]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    outcomes = {gate["gate"]: gate["outcome"] for gate in document["gates"]}
    assert outcomes["flip_rate < 100%"] == outcomes["task.choice > 0.2"] == "passed"
    gate = document["gates"][1]
    assert (gate["outcome"], gate["passed"]) == ("failed", False) or gate["interval"][0] < gate["interval"][1]
    assert "task.cloze >= 0.97*original" in document["error"]["message"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| cloze | 25 | acc |" in card
    manifest = json.loads((tmp_path / "out" / "llmc.json").read_text())
    assert manifest["recipe"]["eval"]["tasks"] == ["cloze.jsonl", "choice.jsonl"]


def test_unresolved_gates_fail_unless_allowed(place: Path, tmp_path: Path) -> None:
    # the ends of an exact interval stand on either side of the figure itself
    path = recipe(tmp_path, place, "['flip_rate < 0%']")
    run: Any = llmc.run  # a dry run returns something else
    rate = run(path, tmp_path / "one").evaluation["compressed-tensors"].flip_rate
    path = recipe(tmp_path, place, f"['flip_rate <= {rate}']")
    failed = run(path, tmp_path / "two")
    assert failed.failure is not None
    low, high = failed.evaluation["compressed-tensors"].intervals["flip_rate"]
    assert str(failed.failure) == (
        f"two: gate 'flip_rate <= {rate}' unresolved at {rate:.5g} [{low:.5g}, {high:.5g}]; "
        "measure on more, or add --allow-unresolved"
    )
    assert failed.tables()[-1].rows[0][1] == "UNRESOLVED"
    allowed = run(path, tmp_path / "three", allow_unresolved=True)
    assert allowed.failure is None
    assert allowed.tables()[-1].rows[0][1] == "unresolved"


def test_a_wrong_task_is_refused_before_the_work(place: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, place, "[]")
    (tmp_path / "choice.jsonl").write_text("{}\n")
    for dry_run in (False, True):
        with pytest.raises(LlmcError) as caught:
            llmc.run(path, tmp_path / "out", dry_run=dry_run)
        assert str(caught.value).startswith(f"{tmp_path}/choice.jsonl:1: no shape of task has these keys: none")
    assert not list(tmp_path.glob("out*"))


def test_tasks_of_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: m/m\nstages: [{method: rtn}]\neval: {tasks: [a.jsonl, /x/b.jsonl]}\n")
    read = load_recipe(str(tmp_path / "r.yaml"))
    assert read.eval is not None
    assert read.eval.tasks == (f"{tmp_path}/a.jsonl", "/x/b.jsonl")
    assert to_dict(read)["eval"]["tasks"] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "r.yaml").write_text("model: m/m\nstages: [{method: rtn}]\neval: {tasks: a.jsonl}\n")
    read = load_recipe(str(tmp_path / "r.yaml"))
    assert read.eval is not None
    assert read.eval.tasks == (f"{tmp_path}/a.jsonl",)
