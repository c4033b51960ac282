"""Gates: what they mean, and the lines of those that mean nothing."""

from __future__ import annotations

import dataclasses
import math
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.errors import RecipeError
from llmc.eval.gates import METRICS, Gate, check_gate, check_gates, parse_gate

VALUES = {
    "model": "a",
    "perplexity": 11.0,
    "perplexity_ratio": 1.01,
    "kl": 0.02,
    "top1_agreement": 0.96,
    "weight_bytes": 300,
    "original_perplexity": 10.0,
    "original_weight_bytes": 1000,
    "tasks": {"facts": {"accuracy": 0.8, "original_accuracy": 0.9}},
}


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("perplexity_ratio < 1.02", ("perplexity_ratio", "<", 1.02, False)),
        ("kl<=5e-2", ("kl", "<=", 0.05, False)),
        ("top1_agreement >= 95%", ("top1_agreement", ">=", 0.95, False)),
        ("weight_bytes <= 30 % * original", ("weight_bytes", "<=", 0.3, True)),
        ("perplexity<1.1*original", ("perplexity", "<", 1.1, True)),
        ("task.arc-easy >= 0.95*original", ("task.arc-easy", ">=", 0.95, True)),
        ("  tasks.facts.accuracy > .5 ", ("tasks.facts.accuracy", ">", 0.5, False)),
    ],
)
def test_grammar(text: str, gate: tuple[str, str, float, bool]) -> None:
    assert parse_gate(text) == Gate(text, *gate)


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "kl",
            "kl < ",
            "< 1",
            "kl == 1",
            "kl = 1",
            "kl < one",
            "kl < nan",
            "kl < inf",
            "kl < 1 2",
            "kl < 1 * model",
        ],
        *["kl < 1; x", "kl < 1\nkl < 2", "kl. < 1", "1kl < 1", "kl < 1 < 2", "kl <> 1", "kl < 1%%", "kl < 1e9999"],
        *["kl < \u0661", "kl < 1 * model"],
    ],
)
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_gate(text)
    assert error.value.message.startswith("cannot read gate ")
    assert error.value.fix == "write it like `perplexity_ratio < 1.02` or `weight_bytes <= 30% * original`"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("perplexty < 20", "gate 'perplexty < 20': unknown metric 'perplexty'; did you mean 'perplexity'?"),
        ("kl < 2 * original", "gate 'kl < 2 * original': the original has no kl; leave out `* original`"),
    ],
)
def test_refused_before_the_run(text: str, line: str) -> None:
    with pytest.raises(RecipeError) as error:
        check_gate(text)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("text", "passed", "value", "limit"),
    [
        ("perplexity_ratio < 1.02", True, 1.01, 1.02),
        ("perplexity_ratio < 101%", False, 1.01, 1.01),
        ("perplexity_ratio <= 101%", True, 1.01, 1.01),
        ("kl > 0.02", False, 0.02, 0.02),
        ("kl >= 0.02", True, 0.02, 0.02),
        ("weight_bytes <= 30% * original", True, 300, 300),
        ("weight_bytes < 30% * original", False, 300, 300),
        ("perplexity < 1.05 * original", False, 11, 10.5),
        ("tasks.facts.accuracy > 0.85 * original", True, 0.8, 0.765),
    ],
)
def test_checked(text: str, passed: bool, value: float, limit: float) -> None:
    (result,) = check_gates([text], VALUES)
    assert (result.text, result.passed, result.value) == (text, passed, value)
    assert result.limit == pytest.approx(limit)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_what_was_not_measured_passes_no_gate(missing: float | None) -> None:
    for op in ("<", "<=", ">", ">="):
        (result,) = check_gates([f"kl {op} 1"], {"kl": missing})
        assert not result.passed
    (result,) = check_gates(["perplexity < 2 * original"], {"perplexity": 1.0, "original_perplexity": missing})
    assert not result.passed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "speed > 1",
            "gate 'speed > 1': unknown metric 'speed'; choose one of: perplexity, perplexity_ratio, kl, "
            "top1_agreement, weight_bytes, original_perplexity, original_weight_bytes",
        ),
        (
            "tasks.facts > 1",
            "gate 'tasks.facts > 1': 'tasks.facts' is not a number; choose one of: perplexity, perplexity_ratio, kl, "
            "top1_agreement, weight_bytes, original_perplexity, original_weight_bytes",
        ),
    ],
)
def test_figures_that_there_are_not(text: str, line: str) -> None:
    with pytest.raises(RecipeError) as error:
        check_gates([text], VALUES)
    assert str(error.value) == line


MEASURED = {
    "kl": 0.02,
    "perplexity": 10.5,
    "original_perplexity": 10.0,
    "flip_rate": 0.004,
    "weight_bytes": 300,
    "intervals": {
        "kl": [0.015, 0.025],
        "perplexity": [9.0, 12.0],
        "perplexity_ratio": [1.04, 1.06],
        "flip_rate": [0.0, 0.03],
        "top1_agreement": [None, 0.9],
    },
    "top1_agreement": 0.5,
    "tasks": {
        "arc.v2": {
            "accuracy": 0.6,
            "original_accuracy": 0.62,
            "intervals": {"accuracy": [0.5, 0.7], "accuracy_ratio": [0.93, 1.0]},
        }
    },
}


@pytest.mark.parametrize(
    ("text", "outcome", "interval"),
    [
        ("kl < 0.03", "passed", (0.015, 0.025)),
        ("kl < 0.022", "unresolved", (0.015, 0.025)),
        ("kl < 0.018", "unresolved", (0.015, 0.025)),
        ("kl < 0.01", "failed", (0.015, 0.025)),
        ("kl > 0.015", "unresolved", (0.015, 0.025)),
        ("kl >= 0.015", "passed", (0.015, 0.025)),
        ("flip_rate < 1%", "unresolved", (0.0, 0.03)),
        ("flip_rate < 4%", "passed", (0.0, 0.03)),
        # paired: the ratio is known far better than either perplexity
        ("perplexity < 1.07 * original", "passed", (10.4, 10.6)),
        ("perplexity < 1.05 * original", "unresolved", (10.4, 10.6)),
        ("perplexity < 1.03 * original", "failed", (10.4, 10.6)),
        ("task.arc.v2 >= 0.9 * original", "passed", (0.93 * 0.62, 0.62)),
        ("task.arc.v2 >= 95% * original", "unresolved", (0.93 * 0.62, 0.62)),
        ("task.arc.v2 > 0.55", "unresolved", (0.5, 0.7)),
        ("weight_bytes < 301", "passed", None),
        ("weight_bytes > 301", "failed", None),
        # an edge beyond a float: no end on that side
        ("top1_agreement > 0.4", "unresolved", (-math.inf, 0.9)),
        ("top1_agreement < 0.95", "passed", (-math.inf, 0.9)),
    ],
)
def test_an_interval_has_to_pass_as_a_whole(text: str, outcome: str, interval: tuple[float, float] | None) -> None:
    (result,) = check_gates([text], MEASURED)
    assert (result.outcome, result.passed) == (outcome, outcome == "passed")
    assert result.interval == (interval if interval is None else pytest.approx(interval))
    (allowed,) = check_gates([text], MEASURED, allow_unresolved=True)
    assert (allowed.outcome, allowed.passed) == (outcome, outcome != "failed")


def test_a_task_that_was_not_evaluated() -> None:
    with pytest.raises(RecipeError) as error:
        check_gates(["task.arc > 0.5"], MEASURED)
    assert str(error.value).startswith(
        "gate 'task.arc > 0.5': unknown metric 'tasks.arc.accuracy'; choose one of: kl, "
    )


@given(st.sampled_from(METRICS), st.sampled_from(["<", "<=", ">", ">="]), st.floats(0, 1e12), st.floats(0, 1e12))
def test_agrees_with_python(metric: str, op: str, number: float, value: float) -> None:
    table = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
    (result,) = check_gates([f"{metric} {op} {number!r}"], {metric: value})
    assert result.passed is table[op](value, number)


def test_metrics_are_what_eval_gives() -> None:
    from llmc.eval.reports.report import EvalReport

    kinds = {field.name: str(field.type) for field in dataclasses.fields(EvalReport)}
    assert all(kinds[metric].startswith(("float", "int")) for metric in METRICS)
