"""`evaluate` and `beside`: folders, with or without their original, on a text, on tasks, or on both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import UsageError
from llmc.eval.cache import Cache
from llmc.eval.conditions import check_device, for_kind, read_conditions
from llmc.eval.measurement import measure, show
from llmc.eval.original import Original
from llmc.eval.reports.comparison import Comparison, Row, compared
from llmc.eval.reports.report import EvalReport
from llmc.eval.subject import Opener, Subject, folder_of
from llmc.public import public
from llmc.results import silent

if TYPE_CHECKING:
    from llmc.results import Progress

CACHE_LIMIT = 8 * 2**30
"""Bytes that a cache may hold unless told otherwise."""


@public()
def evaluate(
    folder: str | Path,
    *,
    text: str | Path | None = None,
    against: str | Path | None = None,
    tasks: Sequence[str | Path] = (),
    limit: int | None = None,
    context: int = 512,
    stride: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    pairs: str | Path | None = None,
    speed: bool = False,
    degeneration: bool = False,
    lm_eval: Sequence[str] = (),
    lm_eval_path: str | Path | None = None,
    bits_per_byte: bool = False,
    raw_text: bool = False,
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
        tasks: JSONL files, or `tiny:recall` and its like; see `llmc.eval.tasks.tasks`.
        limit: use only the first items of each task, pairs, and lines of an encoder's text.
        context, stride: length and distance of windows, in tokens (see `eval.measures.metrics`); None: in a row.
        max_tokens: use only the first tokens of the text.
        prompt: also continue this greedily.
        pairs: for an encoder-decoder, JSONL of `source` and `target`; for an encoder of `sentence1`, `sentence2` and
            `score`, in place of a text, of which lines are compared two by two.
        speed: also measure loading, prefill, decoding and peak memory.
        degeneration: also continue parts of the text greedily, and count what repeats.
        lm_eval: tasks of lm-evaluation-harness, which has to be installed; `lm_eval_path`: a folder with more of them.
        bits_per_byte: compare this alone on the text, which needs no common tokenizer.
        raw_text: keep line ends of Windows and byte order marks, which are dropped otherwise, with a note.
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
        pairs=pairs,
        speed=speed,
        degeneration=degeneration,
        lm_eval=lm_eval,
        lm_eval_path=lm_eval_path,
        bits_per_byte=bits_per_byte,
        raw_text=raw_text,
    )
    for each in (folder, *(() if against is None else (against,))):
        folder_of(each, progress)  # one that is not there is said before anything is opened
    make = partial(
        Subject, opener=opener, device=device, dtype=check_device(device, dtype), progress=progress or silent
    )
    subject = make(folder)
    if against is None:
        report = measure(subject, None, for_kind(conditions, [subject]), progress)
        return replace(report, notes=(*conditions.ends.notes(), *subject.made, *report.notes))
    original = make(against)
    conditions = for_kind(conditions, [original, subject])
    with _cache(None if opener else cache, cache_limit) as place:
        report = measure(subject, show(Original(original, place, progress), conditions, progress), conditions, progress)
    return replace(report, notes=(*conditions.ends.notes(), *place.notes, *subject.made, *report.notes))


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
    conditions = read_conditions(**measured)
    for each in (*folders, against):
        folder_of(each, progress)
    make = partial(
        Subject, opener=opener, device=device, dtype=check_device(device, dtype), progress=progress or silent
    )
    subjects = [make(folder) for folder in folders]
    labels = _labels([subject.folder for subject in subjects], [subject.name for subject in subjects])
    original = make(against)
    conditions = for_kind(conditions, [original, *subjects])
    rows = []
    with _cache(None if opener else cache, cache_limit) as place:
        shown = show(Original(original, place, progress), conditions, progress)
        for folder, subject, label in zip(folders, subjects, labels, strict=True):
            report = measure(subject, shown, conditions, progress)
            report = replace(report, notes=(*subject.made, *report.notes))
            of = (controls or {}).get(str(folder))
            rows.append(Row(label, report, None if of is None else labels[[str(f) for f in folders].index(of)]))
            subject.close()
        alone = replace(shown.report(conditions), notes=(*conditions.ends.notes(), *place.notes))
    return compared(alone, rows)


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
