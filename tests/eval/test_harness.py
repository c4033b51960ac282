"""lm-evaluation-harness on an open model: its figures, items that changed, and its rolling likelihood beside ours.

What needs it is skipped where it is not installed.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build

from llmc.errors import LlmcError, NetworkError, UnsupportedError, UsageError
from llmc.eval.measures.metrics import Scored, score
from llmc.eval.reports.task_report import task_report
from llmc.eval.tasks import harness as subject
from llmc.eval.tasks.harness import HarnessScores, compare_harness, run_harness
from llmc.eval.tasks.judging import judge
from llmc.eval.tasks.tasks import load_task
from llmc.models.open import open_model

Models = tuple[tuple[Any, Any], tuple[Any, Any]]

ITEMS = [
    {"query": f"{a} and {b} are", "choices": ["lamps", "rocks", "boat"], "gold": (a + b) % 3}
    for a in range(5)
    for b in range(4)
]
YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
- metric: acc
- metric: acc_norm
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A tiny Llama with noise on its weights, and as it was."""
    folder = build("llama", tmp_path_factory.mktemp("models") / "llama")
    damaged, original = open_model(folder), open_model(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in damaged[0].parameters():
            parameter += parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    return damaged, original


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "quiz.yaml").write_text(YAML.format(name="llmc_quiz", data=folder / "quiz.jsonl"))
    (folder / "gone.yaml").write_text(YAML.format(name="llmc_gone", data=folder / "gone.jsonl"))
    return folder


def test_a_local_task_gives_what_ours_gives(models: Models, tasks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    ours = load_task(tasks / "quiz.jsonl")
    mine, original = (judge(Scored("m", model), tokenizer, ours) for model, tokenizer in models)
    capfd.readouterr()
    found = [run_harness(*pair, ["llmc_quiz"], include_path=tasks) for pair in models]
    assert capfd.readouterr() == ("", "")
    scores = found[0]["llmc_quiz"]
    for metric in ("acc", "acc_norm"):
        assert scores.items[metric].tolist() == mine.correct[metric].tolist()
        assert scores.metrics[metric] == pytest.approx(mine.correct[metric].mean())
        spread = mine.correct[metric].std(ddof=1) / np.sqrt(20)
        assert scores.metrics[f"{metric}_stderr"] == pytest.approx(spread)
    figures = compare_harness(*found)["llmc_quiz"]["acc_norm"]
    report = task_report(ours, mine, original)
    assert report.flip_rate and figures["value"] == report.accuracy
    for key in ("difference", "flip_rate", "lost", "gained", "mcnemar_p", "resolved", "items_to_resolve"):
        assert figures[key] == pytest.approx(getattr(report, key)), key
    for key, ours_too in (("value", "accuracy"), ("difference", "difference"), ("flip_rate", "flip_rate")):
        assert figures["intervals"][key] == pytest.approx(list(report.intervals[ours_too]))
    json.dumps(compare_harness(*found), allow_nan=False)


def test_tasks_that_cannot_be_run(models: Models, tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    cases: tuple[tuple[list[str], dict[str, Any], type[LlmcError], str], ...] = (
        (["llmc_quizz"], {}, UsageError, "lm-evaluation-harness has no task 'llmc_quizz'; did you mean 'llmc_quiz'?"),
        ([], {}, UsageError, "--lm-eval: no task is named; see `lm-eval ls tasks`"),
        (["a"], {"include_path": tasks / "none"}, UsageError, f"{tasks}/none: no such folder of tasks"),
        (["llmc_gone"], {}, LlmcError, "llmc_gone: its data is not there: "),
    )
    for names, options, kind, line in cases:
        with pytest.raises(kind) as caught:
            run_harness(*models[0], names, **{"include_path": tasks, **options})
        assert line in str(caught.value) and caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (ConnectionError("no route"), NetworkError, "a, b: its data cannot be reached (ConnectionError); check the"),
        (
            ValueError("marked as unsafe.\nSet it"),
            UnsupportedError,
            "a, b: the harness cannot run it: marked as unsafe.",
        ),
        (ImportError("needs sacrebleu"), UnsupportedError, "a, b: the harness cannot run it: needs sacrebleu"),
    ],
)
def test_failures_inside_the_harness_are_one_line(error: Exception, kind: type[LlmcError], line: str) -> None:
    with pytest.raises(kind) as caught, subject._failures(["a", "b"]):
        raise error
    assert str(caught.value).startswith(line)


def test_a_harness_that_is_not_installed(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.delitem(__import__("sys").modules, "lm_eval.models.huggingface", raising=False)
    with pytest.raises(UnsupportedError) as caught:
        run_harness(*models[0], ["arc_easy"])
    assert str(caught.value) == "--lm-eval: lm-evaluation-harness is not installed; pip install lm-eval"


SAMPLES: list[dict[str, Any]] = [
    {"doc_id": i, "doc_hash": f"h{i}", "filter": kind, "exact_match": right, "f1": f1, "perplexity": (1.0, 2)}
    for kind, values in (("strict", (1, 0, 1)), ("loose", (1, 1, 1)))
    for i, (right, f1) in reversed(list(enumerate(zip(values, (0.5, 0.25, 1.0), strict=True))))
]
RESULTS: dict[str, Any] = {
    "alias": "t",
    "exact_match,strict": 2 / 3,
    "exact_match_stderr,strict": 0.3,
    "exact_match,loose": 1.0,
    "exact_match_stderr,loose": "N/A",
    "f1,loose": 0.5833333333333334,
    "perplexity,loose": 7.5,
}


def test_metrics_and_items_by_filter() -> None:
    scores = subject._scores(RESULTS, SAMPLES)
    assert set(scores.metrics) == set(RESULTS) - {"alias", "exact_match_stderr,loose"}
    assert {name: values.tolist() for name, values in scores.items.items()} == {
        "exact_match,strict": [1, 0, 1],
        "exact_match,loose": [1, 1, 1],
        "f1,loose": [0.5, 0.25, 1],
    }
    alone = compare_harness({"t": scores})["t"]
    assert alone["exact_match,strict"] == {"value": 2 / 3, "stderr": 0.3, "items": 3, "intervals": {}}
    assert list(alone) == ["exact_match,strict", "exact_match,loose", "f1,loose", "perplexity,loose"]
    both = compare_harness({"t": scores}, {"t": scores})["t"]
    assert both["exact_match,strict"]["flip_rate"] == 0 and both["exact_match,strict"]["mcnemar_p"] == 1
    assert both["f1,loose"]["intervals"]["difference"] == [0, 0] and "flip_rate" not in both["f1,loose"]
    assert both["perplexity,loose"] == {
        **{"value": 7.5, "stderr": None, "items": None, "intervals": {}},
        **{"original_value": 7.5, "difference": 0.0},
    }


def test_runs_on_different_items_are_not_compared() -> None:
    one = subject._scores(RESULTS, SAMPLES)
    other = subject._scores(RESULTS, [{**row, "doc_hash": "x"} for row in SAMPLES])
    with pytest.raises(LlmcError) as caught:
        compare_harness({"t": one}, {"t": other})
    assert str(caught.value) == "--lm-eval: the two models were not asked the same items of t"


def test_values_whose_mean_is_not_the_figure_have_no_interval() -> None:
    items = {"m": np.array([1.0, 2.0])}
    scores = HarnessScores({"m": 9.0}, items, {"m": ("a", "b")})
    assert compare_harness({"t": scores}, {"t": scores})["t"]["m"]["intervals"] == {}


def rolling(model: Any, tokenizer: Any, text: str, length: int) -> float:
    """The harness's log-likelihood of a document, nats."""
    wrapper: Any = pytest.importorskip("lm_eval.models.huggingface").HFLM
    with contextlib.redirect_stderr(io.StringIO()):
        wrapped = wrapper(pretrained=model, tokenizer=tokenizer, max_length=length, device="cpu")
        return wrapped.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True)[0]


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        (90, 100),  # fits
        (100, 100),  # just so
        (4 * 31, 31),  # four windows that are full
    ],
)
def test_perplexity_is_that_of_the_rolling_likelihood(models: Models, tokens: int, length: int) -> None:
    """Where the last window is full: a shorter one the harness moves to the left, for more context."""
    model, tokenizer = models[1]
    text = ("the old lamp keeps a stone, and a river sings under the bright bridge to " * 3)[:tokens]
    expected = rolling(model, tokenizer, text, length)
    begin = tokenizer.eos_token_id  # which the harness puts first where there is no BOS
    ids = torch.tensor([begin, *tokenizer(text)["input_ids"]])
    sums = score(Scored("m", model), ids=ids, context=length + 1, stride=length)
    assert sums.tokens.sum() == tokens
    assert -sums.nll.sum() == pytest.approx(expected, rel=1e-5)
    assert np.exp(sums.nll.sum() / tokens) == pytest.approx(np.exp(-expected / tokens), rel=1e-4)
