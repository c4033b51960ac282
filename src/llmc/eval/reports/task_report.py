"""What a model got right in a task, and beside its original: a value, its JSON and its row in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmc.eval.reports.intervals import paired_intervals
from llmc.eval.reports.statistics import items_to_resolve, mcnemar, share_interval
from llmc.eval.tasks.tasks import METRICS, Task
from llmc.late import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.reports.intervals import Figure

LEVEL = 0.95

FIGURES: dict[str, Figure] = {
    "accuracy": lambda s: s[:, 1] / s[:, 0],
    "original_accuracy": lambda s: s[:, 2] / s[:, 0],
    "difference": lambda s: (s[:, 1] - s[:, 2]) / s[:, 0],
    # a draw without a right answer of the original counts half of one, so that no ratio is infinite
    "accuracy_ratio": lambda s: s[:, 1] / np.maximum(s[:, 2], 0.5),
}
"""Of sums over items `[draws, (items, right, right of the original)]`."""

COMPARED = (
    *("original_accuracy", "accuracy_ratio", "difference", "flip_rate", "lost", "gained"),
    *("mcnemar_p", "resolved", "items_to_resolve"),
)
"""Fields that are None without an original."""


@dataclass(frozen=True)
class TaskScores:
    """One model on one task.

    Attributes:
        correct: metric -> whether each item is right, `[items]` bool; the first metric is the task's accuracy.
        log_likelihood: of the right continuation of each item, nats, `[items]`; None for a short answer.
        truncated: items of which the context was cut from the left.
    """

    correct: Mapping[str, NDArray[np.bool_]]
    log_likelihood: NDArray[np.float64] | None
    truncated: int = 0


@dataclass(frozen=True)
class TaskReport:
    """A task of one model, and with an original what changed; without one, what compares is None.

    Attributes:
        metric: what `accuracy` counts: the first of `llmc.eval.tasks.tasks.METRICS` for the shape.
        metrics: every metric of the shape, and `original_` before its name for the original.
        chance: accuracy of guessing; None where there is nothing to choose from.
        truncated: items that were cut from the left to fit, by the model that cut more.
        flip_rate: share of items whose correctness changed: those lost and those gained.
        mcnemar_p: exact, two-sided.
        resolved: whether `mcnemar_p` is below 5 %.
        items_to_resolve: such items as would show the difference with 80 % power; None if it is resolved or 0.
        intervals: 95 %; of `flip_rate` exact, of all others the paired bootstrap over items.
        flipped: per item; not part of the JSON.
    """

    name: str
    shape: str
    metric: str
    items: int
    sha256: str
    chance: float | None
    truncated: int
    accuracy: float
    original_accuracy: float | None
    accuracy_ratio: float | None
    difference: float | None
    flip_rate: float | None
    lost: int | None
    gained: int | None
    mcnemar_p: float | None
    resolved: bool | None
    items_to_resolve: int | None
    log_likelihood: float | None
    original_log_likelihood: float | None
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    flipped: NDArray[np.bool_] | None = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; the keys are the attributes, the metrics stand among them."""
        plain = {key: value for key, value in vars(self).items() if key not in ("name", "metrics", "flipped")}
        return {**plain, **self.metrics, "intervals": {name: list(edges) for name, edges in self.intervals.items()}}

    def row(self) -> tuple[str, ...]:
        """Cells under `columns`."""
        chance = "" if self.chance is None else f"{self.chance:.3g}"
        head, notes = (self.name, f"{self.items:,}", self.metric, chance), []
        if self.truncated:
            notes.append(f"{self.truncated} cut from the left")
        if self.original_accuracy is None:
            return (*head, self._cell("accuracy", ".4g"), "; ".join(notes))
        if not self.difference:
            notes.insert(0, "no difference" if self.flip_rate else "no item changed")
        elif not self.resolved:
            notes.insert(0, f"not resolved: about {self.items_to_resolve:,} items would")
        return (
            *head,
            f"{self.original_accuracy:.4g}",
            f"{self.accuracy:.4g}",
            self._cell("difference", "+.3g"),
            self._cell("flip_rate", ".3g"),
            f"{self.mcnemar_p:.2g}",
            "; ".join(notes),
        )

    def _cell(self, name: str, form: str) -> str:
        value = format(getattr(self, name), form)
        if name not in self.intervals:
            return value
        low, high = self.intervals[name]
        return f"{value} [{low:{form}}, {high:{form}}]"


def columns(model: str, against: str | None) -> tuple[str, ...]:
    """Headings of the table of tasks."""
    head = ("task", "items", "metric", "chance")
    if against is None:
        return (*head, model, "")
    return (*head, f"original ({against})", model, "difference", "flip_rate", "McNemar p", "")


def task_report(task: Task, mine: TaskScores, original: TaskScores | None = None) -> TaskReport:
    """Put the scores of one task together, and compare them with those of the original on the same items."""
    main = METRICS[task.shape][0]
    right = mine.correct[main]
    figures: dict[str, float] = {name: float(each.mean()) for name, each in mine.correct.items()}
    if original is not None:
        figures |= {f"original_{name}": float(each.mean()) for name, each in original.correct.items()}
    return TaskReport(
        name=task.name,
        shape=task.shape,
        metric=main,
        items=len(task.items),
        sha256=task.sha256,
        chance=task.chance,
        truncated=max(mine.truncated, 0 if original is None else original.truncated),
        accuracy=float(right.mean()),
        log_likelihood=_mean(mine),
        original_log_likelihood=None if original is None else _mean(original),
        metrics=figures,
        **compare_items(right, None if original is None else original.correct[main]),
    )


def flip_figures(reports: Sequence[TaskReport]) -> tuple[float | None, dict[str, tuple[float, float]]]:
    """The share of all items of all tasks whose correctness changed (None without an original), and its interval."""
    flipped = [report.flipped for report in reports if report.flipped is not None]
    if not flipped:
        return None, {}
    every = np.concatenate(flipped)
    return float(every.mean()), {"flip_rate": share_interval(int(every.sum()), len(every), level=LEVEL)}


def _mean(scores: TaskScores) -> float | None:
    return None if scores.log_likelihood is None else float(scores.log_likelihood.mean())


def compare_items(right: NDArray[np.bool_], before: NDArray[np.bool_] | None) -> dict[str, Any]:
    """What comes from who got which items right, `[items]` each: fields of a TaskReport, `accuracy` left out."""
    columns = [np.ones(len(right)), right] + ([] if before is None else [before])
    table = np.stack(columns, axis=1).astype(np.float64)  # [items, columns]
    intervals = paired_intervals(table, FIGURES if before is not None else {"accuracy": FIGURES["accuracy"]})
    if before is None:
        return {**dict.fromkeys(COMPARED), "intervals": intervals, "flipped": None}
    lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
    p, items = mcnemar(lost, gained), len(right)
    resolved = p < 1 - LEVEL
    needed = None if resolved else items_to_resolve(items, lost, gained, level=LEVEL)
    intervals["flip_rate"] = share_interval(lost + gained, items, level=LEVEL)
    if not before.any():
        del intervals["accuracy_ratio"]
    return {
        "original_accuracy": float(before.mean()),
        "accuracy_ratio": float(right.sum() / before.sum()) if before.any() else None,
        "difference": (gained - lost) / items,
        "flip_rate": (lost + gained) / items,
        "lost": lost,
        "gained": gained,
        "mcnemar_p": p,
        "resolved": resolved,
        "items_to_resolve": needed and max(needed, items + 1),  # of a handful, where the exact test asks for more
        "intervals": intervals,
        "flipped": before ^ right,
    }
