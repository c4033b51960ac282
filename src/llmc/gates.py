"""Gates: what a run must reach, as `METRIC OP NUMBER[%] [* original]`.

    perplexity_ratio < 1.02
    top1_agreement >= 95%
    weight_bytes <= 30% * original      against `original_weight_bytes`

A metric is a key of the JSON of `llmc eval`; `a.b` is key `b` of the section `a`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmc.errors import RecipeError
from llmc.registry import suggest

METRICS = (
    "perplexity",
    "perplexity_ratio",
    "kl",
    "top1_agreement",
    "weight_bytes",
    "bits_per_weight",
    "model_bits_per_weight",
    "original_perplexity",
    "original_weight_bytes",
    "original_bits_per_weight",
    "tokens",
)
"""Numbers that `llmc eval` gives, so that a misspelt gate fails before the run and not after it."""

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
GRAMMAR = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*(?:\.\w+)*)\s*(?P<op><=?|>=?)\s*"
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*(?P<percent>%)?\s*(?P<relative>\*\s*original)?\s*",
    re.ASCII,
)
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
    """What became of a gate: the figure, and the limit it was held against; None when it could not be measured."""

    text: str
    passed: bool
    value: float | None
    limit: float | None


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
    if gate.relative and _original(gate.metric) not in METRICS:
        raise RecipeError(f"gate {text!r}: the original has no {gate.metric}", fix="leave out `* original`")


def check_gates(gates: Sequence[str], values: Mapping[str, Any]) -> list[GateResult]:
    """Hold figures against gates. A figure that is null or NaN (not measured, or beyond a float) passes no gate.

    Args:
        gates: as in a recipe.
        values: the JSON of `llmc eval`.

    Raises:
        RecipeError: a gate names what `values` does not have.
    """
    return [_check(parse_gate(text), values) for text in gates]


def _check(gate: Gate, values: Mapping[str, Any]) -> GateResult:
    value = _figure(gate.metric, gate, values)
    limit: float | None = gate.number
    if gate.relative:
        original = _figure(_original(gate.metric), gate, values)
        limit = None if original is None else gate.number * original
    passed = value is not None and limit is not None and OPERATORS[gate.op](value, limit)
    return GateResult(gate.text, passed, value, limit)


def _figure(metric: str, gate: Gate, values: Mapping[str, Any]) -> float | None:
    """The number called `metric`, or None when it is null."""
    found: Any = values
    for key in metric.split("."):
        if not isinstance(found, Mapping) or key not in found:
            raise RecipeError(f"unknown metric {metric!r}", where=f"gate {gate.text!r}", fix=_known(values))
        found = found[key]
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise RecipeError(f"{metric!r} is not a number", where=f"gate {gate.text!r}", fix=_known(values))
    return float(found)


def _known(values: Mapping[str, Any]) -> str:
    return "choose one of: " + ", ".join(k for k, v in values.items() if isinstance(v, int | float) or v is None)


def _original(metric: str) -> str:
    head, dot, name = metric.rpartition(".")
    return f"{head}{dot}original_{name}"
