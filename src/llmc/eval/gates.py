"""Gates: what a run must reach, as `METRIC OP NUMBER[%] [* original]`.

    perplexity_ratio < 1.02
    top1_agreement >= 95%
    weight_bytes <= 30% * original      against `original_weight_bytes`
    task.arc >= 0.98 * original         the accuracy of the task `arc`: `tasks.arc.accuracy`

A metric is a key of the JSON of `llmc eval`; `a.b` is key `b` of the section `a`. A figure that has an interval passes
or fails when its whole interval does; else the gate is unresolved, which passes only where that was allowed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmc.errors import GateError, RecipeError
from llmc.registry import suggest
from llmc.results import Table

METRICS = (
    "perplexity",
    "perplexity_ratio",
    "kl",
    "kl_median",
    "kl_p99",
    "top1_agreement",
    "weight_bytes",
    "bits_per_weight",
    "model_bits_per_weight",
    "original_perplexity",
    "original_weight_bytes",
    "original_bits_per_weight",
    "tokens",
    "flip_rate",
    "bits_per_byte",
    "original_bits_per_byte",
    "overhead_bits_per_weight",
)
"""Numbers that `llmc eval` gives, so that a misspelt gate fails before the run and not after it."""

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
GRAMMAR = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*(?:\.[\w-]+)*)\s*(?P<op><=?|>=?)\s*"
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*(?P<percent>%)?\s*(?P<relative>\*\s*original)?\s*",
    re.ASCII,
)
OF_A_TEXT = (
    "perplexity", "perplexity_ratio", "kl", "kl_median", "kl_p99", "top1_agreement", "original_perplexity", "tokens",
    "bits_per_byte", "original_bits_per_byte",
)  # fmt: skip
TASK = "task."
SHOWN = 3  # failed gates that the one line of an error names

ADD_TASK = "add --task FILE, or `tasks: [FILE]` to `eval:`"
EXAMPLE = "write it like `perplexity_ratio < 1.02` or `weight_bytes <= 30% * original`"


@dataclass(frozen=True)
class Gate:
    """One gate. With `relative`, the limit is `number` times the figure of the original model."""

    text: str
    metric: str
    op: str
    number: float
    relative: bool = False


@dataclass(frozen=True)
class GateResult:
    """What became of a gate.

    Attributes:
        passed: whether the run may go on.
        value, limit: the figure, and what it was held against; None when it could not be measured.
        interval: of the figure; with `* original`, of its ratio to the original, times the original.
        outcome: `passed`, `failed` or `unresolved`.
        model: label of the model it was held against, where there are several.
    """

    text: str
    passed: bool
    value: float | None
    limit: float | None
    interval: tuple[float, float] | None = None
    outcome: str = "failed"
    model: str = ""

    @property
    def measured(self) -> str:
        """The figure for people, with its interval."""
        if self.value is None:
            return "not finite"
        if self.interval is None and self.value.is_integer():  # bytes, tokens
            return f"{self.value:,.0f}"
        edges = "" if self.interval is None else f" [{self.interval[0]:.5g}, {self.interval[1]:.5g}]"
        return f"{self.value:.5g}{edges}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `model` is there where there are several."""
        plain = {"gate": self.text, "passed": self.passed, "outcome": self.outcome, "value": self.value}
        interval = None if self.interval is None else list(self.interval)
        return {**({"model": self.model} if self.model else {}), **plain, "interval": interval}


def gates_failure(gates: Sequence[GateResult], where: str) -> GateError | None:
    """The error that failed gates amount to; None where all passed."""
    failed = [g for g in gates if not g.passed]
    if not failed:
        return None
    of = {g: f" of {g.model}" if g.model else "" for g in failed}
    lines = [f"gate {g.text!r}{of[g]} {g.outcome} at {g.measured}" for g in failed[:SHOWN]]
    lines += [f"{len(failed) - SHOWN} more gates"] if len(failed) > SHOWN else []
    undecided = all(g.outcome == "unresolved" for g in failed)
    fix = "measure on more, or add --allow-unresolved" if undecided else "use more bits or a weaker gate"
    return GateError("; ".join(lines), where=where, fix=fix)


def gates_table(gates: Sequence[GateResult]) -> Table:
    """Outcomes for people; what did not pass in capitals."""
    several = any(g.model for g in gates)
    rows = [(g.text, g.outcome if g.passed else g.outcome.upper(), g.measured) for g in gates]
    if not several:
        return Table("Gates", ("gate", "outcome", "value"), tuple(rows))
    named = tuple((g.model, *row) for g, row in zip(gates, rows, strict=True))
    return Table("Gates", ("model", "gate", "outcome", "value"), named)


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Raises:
        RecipeError: it is not one.
    """
    match = GRAMMAR.fullmatch(text)
    number = float(match["number"]) / (100 if match["percent"] else 1) if match else math.inf
    if match is None or not math.isfinite(number):
        raise RecipeError(f"cannot read gate {text!r}", fix=EXAMPLE)
    return Gate(text, match["metric"], match["op"], number, match["relative"] is not None)


def task_name(path: str | Path) -> str:
    """What gates and reports call a task: the name of its file without folder and ending, `recall` of `tiny:recall`, or
    that of its data set, where `-` stands for the marks before configuration and split.

    >>> task_name("tasks/arc.jsonl"), task_name("allenai/ai2_arc:ARC-Easy@test")
    ('arc', 'ai2_arc-ARC-Easy-test')
    """
    name = Path(path).name.removeprefix("tiny:")
    for ending in (".jsonl", ".parquet"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return re.sub("[:@]", "-", name)


def check_gate(text: str) -> None:
    """Refuse, before a run, a gate that cannot be checked after it. Dotted names are taken on trust.

    Raises:
        RecipeError: it is not a gate, or no metric is called so.
    """
    gate = parse_gate(text)
    if "." in gate.metric:
        return
    if gate.metric not in METRICS:
        raise RecipeError(f"gate {text!r}: unknown metric {gate.metric!r}", fix=suggest(gate.metric, list(METRICS)))
    if gate.relative and f"original_{gate.metric}" not in METRICS:
        raise RecipeError(f"gate {text!r}: the original has no {gate.metric}", fix="leave out `* original`")


def check_measured(text: str, *, on_text: bool, tasks: Sequence[str]) -> None:
    """Refuse, before a run, a gate on what its evaluation will not measure.

    Args:
        text: a gate.
        on_text: whether there is a text to measure on.
        tasks: names of the tasks.

    Raises:
        RecipeError: what it needs is not there.
    """
    metric = parse_gate(text).metric
    if metric.startswith(TASK) and metric.removeprefix(TASK) not in tasks:
        name = metric.removeprefix(TASK)
        fix = suggest(name, list(tasks)) if tasks else ADD_TASK
        raise RecipeError(f"gate {text!r}: no task {name!r} is evaluated", fix=fix)
    if metric == "flip_rate" and not tasks:
        raise RecipeError(f"gate {text!r}: no task is evaluated", fix=ADD_TASK)
    if metric in OF_A_TEXT and not on_text:
        raise RecipeError(f"gate {text!r}: no text is evaluated", fix="add --text FILE, or `text: FILE` to `eval:`")


def check_gates(
    gates: Sequence[str], values: Mapping[str, Any], *, allow_unresolved: bool = False, model: str = ""
) -> list[GateResult]:
    """Hold figures against gates. A figure that is null or NaN (not measured, or beyond a float) passes no gate.

    Args:
        gates: as in a recipe.
        values: the JSON of `llmc eval`.
        allow_unresolved: let gates pass that the intervals do not decide.
        model: what the results are to call the model.

    Raises:
        RecipeError: a gate names what `values` does not have.
    """
    return [replace(_check(parse_gate(text), values, allow_unresolved), model=model) for text in gates]


def _check(gate: Gate, values: Mapping[str, Any], allow_unresolved: bool) -> GateResult:
    keys = _keys(gate.metric)
    value = _figure(keys, gate, values)
    limit: float | None = gate.number
    interval = _interval(keys, values)
    if gate.relative:
        original = _figure(_original(keys), gate, values)
        limit = None if original is None else gate.number * original
        shares = _interval([*keys[:-1], f"{keys[-1]}_ratio"], values)
        interval = None if shares is None or original is None else (shares[0] * original, shares[1] * original)
    if value is None or limit is None:
        return GateResult(gate.text, False, value, limit)
    holds = {OPERATORS[gate.op](figure, limit) for figure in (value, *(interval or ()))}
    outcome = "unresolved" if len(holds) == 2 else "passed" if holds == {True} else "failed"
    passed = outcome == "passed" or (outcome == "unresolved" and allow_unresolved)
    return GateResult(gate.text, passed, value, limit, interval, outcome)


def _keys(metric: str) -> list[str]:
    """Where a metric stands in the JSON; the name of a task may hold dots."""
    return ["tasks", metric.removeprefix(TASK), "accuracy"] if metric.startswith(TASK) else metric.split(".")


def _figure(keys: Sequence[str], gate: Gate, values: Mapping[str, Any]) -> float | None:
    """The number at `keys`, or None when it is null."""
    found: Any = values
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            metric = ".".join(keys)
            raise RecipeError(f"unknown metric {metric!r}", where=f"gate {gate.text!r}", fix=_known(values))
        found = found[key]
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise RecipeError(f"{'.'.join(keys)!r} is not a number", where=f"gate {gate.text!r}", fix=_known(values))
    return float(found)


def _interval(keys: Sequence[str], values: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of the figure at `keys`, which stands beside it; None where there is none.

    An edge that is null was beyond a float: the interval has no end there.
    """
    section: Any = values
    for key in keys[:-1]:
        section = section.get(key) if isinstance(section, Mapping) else None
    edges = section.get("intervals", {}).get(keys[-1]) if isinstance(section, Mapping) else None
    if edges is None:
        return None
    low, high = edges
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _known(values: Mapping[str, Any]) -> str:
    return "choose one of: " + ", ".join(k for k, v in values.items() if isinstance(v, int | float) or v is None)


def _original(keys: Sequence[str]) -> list[str]:
    return [*keys[:-1], f"original_{keys[-1]}"]
