"""`evaluate` and `beside`: folders, with or without their original, on a text, on tasks, or on both."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from llmc.errors import UsageError
from llmc.eval.cache import Cache
from llmc.eval.comparison import Comparison, Row, compared
from llmc.eval.conditions import (
    Conditions,
    check_device,
    read_conditions,
    require_positions,
    require_same_ids,
    token_ids,
)
from llmc.eval.layers import TOKENS, layer_errors
from llmc.eval.loading import require_ids_fit
from llmc.eval.metrics import Scored, WindowSums, score, windows
from llmc.eval.original import OnText, Original
from llmc.eval.report import EvalReport
from llmc.eval.samples import Sample, greedy
from llmc.eval.speed import measure_speed, peak_memory, start_peak
from llmc.eval.subject import Opener, Subject
from llmc.eval.tail import worst
from llmc.eval.task_judging import judge
from llmc.eval.task_report import TaskReport, TaskScores, flip_figures, task_report
from llmc.eval.text_figures import NO_TEXT, text_figures
from llmc.structure import silent

if TYPE_CHECKING:
    from llmc.structure import Progress

CACHE_LIMIT = 8 * 2**30
"""Bytes that a cache may hold unless told otherwise."""


def evaluate(
    folder: str | Path,
    *,
    text: str | Path | None = None,
    against: str | Path | None = None,
    tasks: Sequence[str | Path] = (),
    limit: int | None = None,
    context: int = 512,
    stride: int = 512,
    max_tokens: int | None = None,
    prompt: str | None = None,
    speed: bool = False,
    bits_per_byte: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    cache: str | Path | None = None,
    cache_limit: int = CACHE_LIMIT,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> EvalReport:
    """Perplexity of the model in `folder` on a text and accuracy in tasks; with `against`, what the original has more.

    Args:
        folder: a model folder, or a Hub id.
        text: UTF-8 file or `tiny:evaluation`, tokenized whole and once, with the tokenizer's own special tokens.
        against: the original, on the same tokens and items.
        tasks: JSONL files, or `tiny:recall` and its like; see `llmc.eval.tasks`.
        limit: use only the first items of each task.
        context, stride: window length and distance in tokens (see `llmc.eval.metrics`).
        max_tokens: use only the first tokens of the text.
        prompt: also continue this greedily.
        speed: also measure loading, prefill, decoding and peak memory.
        bits_per_byte: compare this alone on the text, which needs no common tokenizer.
        dtype: of the computation, `float32`, `bfloat16` or `float16`.
        cache: folder where what the original shows is kept for the next candidate; None keeps nothing.
        cache_limit: bytes that this folder may hold; what was unused longest goes first.
        opener: opens both folders in place of `open_model`, for a container that transformers does not read. What
            it opens is not kept.

    Raises:
        InputError: of any kind, one line; see `llmc.errors`.
        NetworkError: a Hub id that cannot be fetched.
    """
    conditions = read_conditions(
        text=text,
        tasks=tasks,
        limit=limit,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        prompt=prompt,
        speed=speed,
        bits_per_byte=bits_per_byte,
    )
    make = partial(
        Subject, opener=opener, device=device, dtype=check_device(device, dtype), progress=progress or silent
    )
    subject = make(folder)
    if against is None:
        return _measured(subject, None, conditions, progress)
    original = make(against)
    with _cache(None if opener else cache, cache_limit) as place:
        beside = _shown(Original(original, place, progress), conditions)
        report = _measured(subject, beside, conditions, progress)
    return replace(report, notes=(*place.notes, *report.notes))


def beside(
    folders: Sequence[str | Path],
    *,
    against: str | Path,
    controls: Mapping[str, str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    cache: str | Path | None = None,
    cache_limit: int = CACHE_LIMIT,
    opener: Opener | None = None,
    progress: Progress | None = None,
    **measured: Any,
) -> Comparison:
    """Several models beside their original on the same tokens and items; one is in memory at a time.

    Args:
        folders: model folders or Hub ids, also of other tools.
        against: the original.
        controls: folder of a control -> folder whose size it has.
        measured: `text`, `tasks` and the other options of `evaluate` that say what is measured.

    Raises as `evaluate` does, and UsageError when a folder is given twice.
    """
    defaults = {"text": None, "tasks": (), "limit": None, "context": 512, "stride": 512, "max_tokens": None}
    conditions = read_conditions(**{**defaults, "prompt": None, **measured})
    make = partial(
        Subject, opener=opener, device=device, dtype=check_device(device, dtype), progress=progress or silent
    )
    subjects = [make(folder) for folder in folders]
    labels = _labels([subject.folder for subject in subjects], [subject.name for subject in subjects])
    original = make(against)
    rows = []
    with _cache(None if opener else cache, cache_limit) as place:
        beside = _shown(Original(original, place, progress), conditions)
        for folder, subject, label in zip(folders, subjects, labels, strict=True):
            report = _measured(subject, beside, conditions, progress)
            of = (controls or {}).get(str(folder))
            rows.append(Row(label, report, None if of is None else labels[[str(f) for f in folders].index(of)]))
            subject.close()
        alone = replace(beside.report(conditions), notes=tuple(place.notes))
    return compared(alone, rows)


@dataclass(frozen=True)
class _Shown:
    """What the original shows; `ids` and `text` are None where there is no text."""

    subject: Subject
    ids: Tensor | None
    text: OnText | None
    tasks: tuple[TaskScores, ...]
    sample: str | None
    speed: dict[str, Any] | None

    def report(self, conditions: Conditions) -> EvalReport:
        """The original alone."""
        figures = dict(NO_TEXT)
        if self.text is not None and self.ids is not None:
            sums = WindowSums(self.text.tokens, self.text.nll)
            figures = _on_text(sums, conditions, self.subject, self.ids)
        tasks = tuple(task_report(*both) for both in zip(conditions.tasks, self.tasks, strict=True))
        samples = () if self.sample is None else (Sample(conditions.prompt or "", self.sample),)
        return _report(self.subject, None, conditions, figures, tasks, samples, speed=self.speed)


def _shown(original: Original, conditions: Conditions) -> _Shown:
    """Run the original, or read back what was kept of it; its memory is given back where it can be."""
    subject, text, ids, speed = original.subject, None, None, None
    start_peak(subject.device)
    if conditions.text is not None:
        ids = token_ids(conditions, subject)
        text = original.on_text(ids, conditions.context, conditions.stride)
    tasks = tuple(original.on_task(task) for task in conditions.tasks)
    sample = None if conditions.prompt is None else original.sample(conditions.prompt)
    if conditions.speed:
        speed = measure_speed(subject, peak_memory(subject.device))
    original.close(but=None if text is None else text.reference)
    return _Shown(subject, ids, text, tasks, sample, speed)


def _measured(
    subject: Subject, original: _Shown | None, conditions: Conditions, progress: Progress | None
) -> EvalReport:
    """One model, beside the original where there is one."""
    start_peak(subject.device)
    ids = None if conditions.text is None else _ids(subject, original, conditions)
    scored = Scored(subject.name, subject.model)
    figures: dict[str, Any] = dict(NO_TEXT)
    errors: dict[str, float] = {}
    if ids is not None:
        require_positions(subject, conditions.context)
        require_ids_fit(scored.model, int(ids.max()), subject.name)
        text = None if original is None or conditions.bits_per_byte else original.text
        figures = _on_text(_sums(scored, text, ids, conditions, progress), conditions, subject, ids)
        if text is not None:
            errors = layer_errors(scored.model, ids[: conditions.context][:TOKENS], text.layers)
        elif original is not None:
            figures["original_bits_per_byte"] = original.report(conditions).bits_per_byte
    tasks = []
    for i, task in enumerate(conditions.tasks):
        mine = judge(scored, subject.tokenizer, task, progress=progress)
        tasks.append(task_report(task, mine, None if original is None else original.tasks[i]))
    samples: tuple[Sample, ...] = ()
    if conditions.prompt is not None:
        mine_text = greedy(scored.model, subject.tokenizer, conditions.prompt)
        samples = (Sample(conditions.prompt, mine_text, None if original is None else original.sample),)
    peak = peak_memory(subject.device)
    speed = measure_speed(subject, peak) if conditions.speed else None
    beside = None if original is None else original.subject
    return _report(subject, beside, conditions, figures, tuple(tasks), samples, layer_error=errors, speed=speed)


def _ids(subject: Subject, original: _Shown | None, conditions: Conditions) -> Tensor:
    """The text in a subject's tokens, which are the original's but where only bits per byte are compared."""
    if original is None or original.ids is None:
        return token_ids(conditions, subject)
    if not conditions.bits_per_byte:
        ids = token_ids(conditions, subject)
        require_same_ids(conditions, ids, original.ids, (subject.name, original.subject.name))
        return ids
    covered = _covered(conditions, original.subject, original.ids)  # the same text, however many tokens that is
    return token_ids(replace(conditions, text=covered, max_tokens=None), subject)


def _covered(conditions: Conditions, subject: Subject, ids: Tensor) -> str:
    """The part of the text that the tokens `ids` stand for."""
    text = conditions.text or ""
    if conditions.max_tokens is None or len(ids) < conditions.max_tokens:
        return text
    return subject.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _sums(
    scored: Scored, text: OnText | None, ids: Tensor, conditions: Conditions, progress: Progress | None
) -> WindowSums:
    how: dict[str, Any] = {"context": conditions.context, "stride": conditions.stride, "progress": progress}
    return score(scored, None if text is None else text.reference, ids=ids, **how)


def _on_text(sums: WindowSums, conditions: Conditions, subject: Subject, ids: Tensor) -> dict[str, Any]:
    """What the sums show, under the names of the report."""
    content = _covered(conditions, subject, ids).encode()
    figures = text_figures(sums, len(ids) / (len(content) * math.log(2)))
    places: list[dict[str, Any]] = []
    if sums.kl is not None:
        found = list(windows(len(ids), conditions.context, conditions.stride))
        places = worst(found, sums.kl, sums.tokens, partial(_text_of, subject.tokenizer, ids))
    more = {"tokens": int(sums.tokens.sum()), "text": conditions.source, "windows": sums}
    return {**figures, **more, "worst": tuple(places)}


def _text_of(tokenizer: Any, ids: Tensor, first: int, end: int) -> str:
    return tokenizer.decode(ids[first:end].tolist())


def _report(
    mine: Subject,
    original: Subject | None,
    conditions: Conditions,
    figures: Mapping[str, Any],
    tasks: tuple[TaskReport, ...],
    samples: tuple[Sample, ...],
    **more: Any,
) -> EvalReport:
    """Put together; the flips of all tasks are of this model."""
    flip_rate, flips = flip_figures(tasks)
    found = {**figures, "intervals": {**figures["intervals"], **flips}, "flip_rate": flip_rate}
    return EvalReport(
        model=mine.name,
        against=None if original is None else original.name,
        weight_bytes=mine.sizes.weight_bytes,
        bits_per_weight=mine.sizes.bits_per_weight,
        overhead_bits_per_weight=mine.sizes.overhead_bits_per_weight,
        model_bits_per_weight=mine.sizes.model_bits_per_weight,
        original_weight_bytes=None if original is None else original.sizes.weight_bytes,
        original_bits_per_weight=None if original is None else original.sizes.bits_per_weight,
        dtype=str(mine.dtype).removeprefix("torch."),
        tokenizer=mine.tokenizer_source,
        context=conditions.context,
        stride=conditions.stride,
        tasks=tasks,
        samples=samples,
        **found,
        **more,
    )


@contextmanager
def _cache(folder: str | Path | None, limit: int) -> Iterator[Cache]:
    """The cache in `folder`, or one that lasts as long as the block."""
    if folder is not None:
        yield Cache(Path(folder), limit)
        return
    with tempfile.TemporaryDirectory(prefix="llmc-") as place:
        yield Cache(Path(place), 1 << 62)


def _labels(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Names, with as much of the path before them as tells them apart. Raises UsageError for one given twice."""
    places = [folder.resolve() for folder in folders]
    twice = next((names[i] for i, place in enumerate(places) if place in places[:i]), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice", fix="name each model once")
    labels = list(names)
    depth = 1
    while len(set(labels)) < len(labels) and depth < max(len(place.parts) for place in places):
        depth += 1
        shared = {label for label in labels if labels.count(label) > 1}
        labels = ["/".join(p.parts[-depth:]) if n in shared else n for p, n in zip(places, labels, strict=True)]
    return labels
