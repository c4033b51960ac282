"""Tasks of lm-evaluation-harness (EleutherAI) on a model that is open already, and what changed from its original.

The harness is asked for every item, so that two runs are compared item by item as llmc's own tasks are. It is not
installed with llmc. Its tasks may run Python of theirs: those it ships with, and what `include_path` names.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import CalibrationError, InputError, NetworkError, UnsupportedError, UsageError, first_line
from llmc.eval.reports.intervals import paired_intervals
from llmc.eval.reports.task_report import compare_items
from llmc.late import np
from llmc.models.open import quiet
from llmc.registry import suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.reports.intervals import Figure

BATCH = 8
BOOTSTRAPS = 1000  # of the harness, for the standard errors of metrics that are no means

MEANS: dict[str, Figure] = {
    "value": lambda s: s[:, 1] / s[:, 0],
    "original_value": lambda s: s[:, 2] / s[:, 0],
    "difference": lambda s: (s[:, 1] - s[:, 2]) / s[:, 0],
}
"""Of sums over items `[draws, (items, values, values of the original)]`."""


@dataclass(frozen=True)
class HarnessScores:
    """One model on one task or group of the harness.

    Attributes:
        metrics: by name, `acc` and `acc_stderr` for one; with a filter, `exact_match,strict-match`.
        items: metric -> value of each item, `[items]`; only of metrics that give a number for each.
        documents: metric -> what the harness knows each item by, `[items]`.
    """

    metrics: Mapping[str, float]
    items: Mapping[str, NDArray[np.float64]]
    documents: Mapping[str, tuple[str, ...]]


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int = BATCH,
) -> dict[str, HarnessScores]:
    """Put tasks to a causal language model; by task, groups and their parts among them.

    Args:
        tasks: names of tasks, groups or tags, as the harness calls them.
        limit: only the first items of each.
        include_path: a folder with more tasks.

    Raises:
        UnsupportedError: the harness is not installed, or will not run a task. UsageError: no such task.
        CalibrationError: the task's data is not there. NetworkError: it cannot be reached.
    """
    evaluator, wrapper, _ = _installed()
    if not tasks:
        raise UsageError("no task is named", where="--lm-eval", fix="see `lm-eval ls tasks`")
    if include_path is not None and not Path(include_path).is_dir():
        raise UsageError("no such folder of tasks", where=str(include_path))
    with _silence(), _failures(tasks):
        manager = _index(None if include_path is None else str(include_path))
        _require_known(tasks, manager.all_tasks)
        wrapped = wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=str(model.device))
        found = evaluator(
            wrapped,
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,
        )
    every = {**found.get("groups", {}), **found["results"]}
    return {name: _scores(figures, found["samples"].get(name, ())) for name, figures in every.items()}


def compare_harness(
    mine: Mapping[str, HarnessScores], original: Mapping[str, HarnessScores] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """`{task: {metric: figures}}`, JSON-ready.

    Each metric has `value`, `stderr` (the harness's) and `items`; with an original `original_value`, `difference` and
    95 % `intervals` by the paired bootstrap over items; where items are right or wrong, also what a task of llmc has:
    `flip_rate`, `lost`, `gained`, `mcnemar_p`, `resolved` and `items_to_resolve`.

    Raises:
        InputError: the two runs did not judge the same items.
    """
    return {
        task: {
            metric: _compared(task, metric, scores, None if original is None else original[task])
            for metric in scores.metrics
            if not metric.partition(",")[0].endswith("_stderr")
        }
        for task, scores in mine.items()
    }


def _compared(task: str, metric: str, mine: HarnessScores, original: HarnessScores | None) -> dict[str, Any]:
    name, comma, kind = metric.partition(",")
    values = mine.items.get(metric)
    figures: dict[str, Any] = {
        "value": mine.metrics[metric],
        "stderr": mine.metrics.get(f"{name}_stderr{comma}{kind}"),
        "items": None if values is None else len(values),
        "intervals": {},
    }
    if original is None:
        return figures
    figures["original_value"] = original.metrics[metric]
    figures["difference"] = mine.metrics[metric] - original.metrics[metric]
    if values is None:
        return figures
    if mine.documents[metric] != original.documents[metric]:
        raise InputError(f"the two models were not asked the same items of {task}", where="--lm-eval")
    before = original.items[metric]
    if not np.isclose([values.mean(), before.mean()], [figures["value"], figures["original_value"]]).all():
        return figures  # the harness does not take the mean of these
    table = np.stack([np.ones(len(values)), values, before], axis=1)  # [items, columns]
    figures["intervals"] = {name: list(pair) for name, pair in paired_intervals(table, MEANS).items()}
    if {*values.tolist(), *before.tolist()} <= {0.0, 1.0}:
        flips = compare_items(values > 0, before > 0)
        shown = ("flip_rate", "lost", "gained", "mcnemar_p", "resolved", "items_to_resolve")
        figures |= {key: flips[key] for key in shown}
        figures["intervals"]["flip_rate"] = list(flips["intervals"]["flip_rate"])
    return figures


def _scores(figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> HarnessScores:
    """From the harness's own names, `metric,filter`, where the filter that changes nothing is called `none`."""
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in figures.items()
        if "," in key and isinstance(value, int | float)
    }
    items: dict[str, NDArray[np.float64]] = {}
    documents: dict[str, tuple[str, ...]] = {}
    for metric in metrics:
        name, _, kind = metric.partition(",")
        rows = sorted((row for row in samples if row["filter"] == (kind or "none")), key=lambda row: row["doc_id"])
        values = [row.get(name) for row in rows]
        if rows and all(isinstance(value, int | float | np.number) for value in values):
            items[metric] = np.array(values, dtype=np.float64)
            documents[metric] = tuple(f"{row['doc_id']} {row['doc_hash']}" for row in rows)
    return HarnessScores(metrics, items, documents)


def _installed() -> tuple[Any, Any, Any]:
    """Its evaluator, its wrapper of a model of transformers and its index of tasks."""
    try:
        wrappers = import_module("lm_eval.models.huggingface")
        return import_module("lm_eval").simple_evaluate, wrappers.HFLM, import_module("lm_eval.tasks").TaskManager
    except ImportError as error:
        fix = "pip install lm-eval"
        raise UnsupportedError("lm-evaluation-harness is not installed", where="--lm-eval", fix=fix) from error


@lru_cache(maxsize=1)  # it reads thousands of files, and the original is asked right after the other model
def _index(include_path: str | None) -> Any:
    """What tasks there are."""
    return _installed()[2](include_path=include_path)


def _require_known(tasks: Sequence[str], known: Sequence[str]) -> None:
    for task in tasks:
        if task not in known:
            near = suggest(task, list(known))
            fix = near if near.startswith("did you mean") else "see `lm-eval ls tasks`"
            raise UsageError(f"lm-evaluation-harness has no task {task!r}", where="--lm-eval", fix=fix)


@contextlib.contextmanager
def _failures(tasks: Sequence[str]) -> Iterator[None]:
    """What goes wrong inside the harness and is no fault of it, in one line."""
    from huggingface_hub.errors import HfHubHTTPError

    client: Any = HfHubHTTPError.__mro__[1]  # the HTTP client's base error, whichever is installed
    where = ", ".join(tasks)
    try:
        yield
    except FileNotFoundError as error:
        raise CalibrationError(f"its data is not there: {first_line(error)}", where=where) from error
    except (OSError, client) as error:
        raise NetworkError(
            f"its data cannot be reached ({type(error).__name__})",
            where=where,
            fix="check the network, or give tasks with local data",
        ) from error
    except (ValueError, ImportError) as error:
        raise UnsupportedError(f"the harness cannot run it: {first_line(error)}", where=where) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back what the harness and `datasets` tell on the way: progress bars and warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # a handler that was made before keeps its stream
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
