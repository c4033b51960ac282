"""One model measured, and what its original shows beside it: whatever the conditions ask for, put into one report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llmc.eval.conditions import Conditions, require_positions, require_same_ids, token_ids
from llmc.eval.measures.degeneration import Degeneration, compare, degeneration
from llmc.eval.measures.embeddings import Embeddings
from llmc.eval.measures.layers import TOKENS, layer_errors
from llmc.eval.measures.metrics import Scored, WindowSums, score, windows
from llmc.eval.measures.samples import Sample, greedy
from llmc.eval.measures.speed import measure_speed, peak_memory, start_peak
from llmc.eval.measures.tail import worst
from llmc.eval.measures.text_figures import NO_TEXT, text_figures
from llmc.eval.original import OnText, Original
from llmc.eval.other_kinds import on_pairs, on_vectors, pooling_for, vectors
from llmc.eval.reports.report import EvalReport
from llmc.eval.reports.task_report import TaskReport, TaskScores, flip_figures, task_report
from llmc.eval.subject import Subject
from llmc.eval.tasks.harness import HarnessScores, compare_harness, run_harness
from llmc.eval.tasks.judging import judge
from llmc.eval.tasks.scoring import leading_ids
from llmc.models.open import require_ids_fit

if TYPE_CHECKING:
    from torch import Tensor

    from llmc.results import Progress


@dataclass
class Shown:
    """What the original shows; None or empty where it was not asked for."""

    subject: Subject
    ids: Tensor | None = None
    text: OnText | None = None
    vectors: Embeddings | None = None
    greedy: Degeneration | None = None
    tasks: tuple[TaskScores, ...] = ()
    harness: dict[str, HarnessScores] | None = None
    sample: str | None = None
    speed: dict[str, Any] | None = None

    def report(self, conditions: Conditions) -> EvalReport:
        """The original alone."""
        figures = dict(NO_TEXT)
        if self.text is not None and self.ids is not None:
            sums = WindowSums(self.text.tokens, self.text.nll)
            figures = _text_figures(sums, conditions, self.subject, self.ids)
        elif self.vectors is not None:
            figures = on_vectors(self.vectors, None, conditions)
        elif self.subject.kind == "encoder_decoder":
            figures = on_pairs(self.subject, None, conditions, None)
        if self.greedy is not None:
            figures["degeneration"] = compare(self.greedy)
        if self.harness is not None:
            figures["lm_eval"] = compare_harness(self.harness)
        figures["tasks"] = tuple(task_report(*both) for both in zip(conditions.tasks, self.tasks, strict=True))
        figures["samples"] = () if self.sample is None else (Sample(conditions.prompt or "", self.sample),)
        return _report(self.subject, None, conditions, {**figures, "speed": self.speed})


def show(original: Original, conditions: Conditions, progress: Progress | None) -> Shown:
    """Run the original, or read back what was kept of it; its memory is given back where it can be."""
    subject = original.subject
    start_peak(subject.device)
    shown = Shown(subject)
    if subject.kind == "encoder":
        shown.vectors = vectors(subject, conditions, pooling_for(subject), progress)
    if subject.kind == "encoder_decoder":
        return shown  # it runs beside each candidate
    if subject.kind == "decoder" and conditions.text is not None:
        shown.text = original.on_text(conditions)
        shown.ids = shown.text.ids
    if conditions.degeneration and shown.ids is not None:
        shown.greedy = original.degeneration(shown.ids)
    shown.tasks = tuple(original.on_task(task) for task in conditions.tasks)
    shown.harness = _harness(subject, conditions)
    shown.sample = None if conditions.prompt is None else original.sample(conditions.prompt)
    if conditions.speed:
        shown.speed = measure_speed(subject, peak_memory(subject.device))
    original.close(but=None if shown.text is None else shown.text.reference)
    return shown


def measure(subject: Subject, original: Shown | None, conditions: Conditions, progress: Progress | None) -> EvalReport:
    """One model, beside the original where there is one."""
    start_peak(subject.device)
    beside = None if original is None else original.subject
    if subject.kind == "encoder":
        pooling = pooling_for(subject if beside is None else beside)
        mine = vectors(subject, conditions, pooling, progress)
        figures = on_vectors(mine, None if original is None else original.vectors, conditions)
    elif subject.kind == "encoder_decoder":
        figures = on_pairs(subject, beside, conditions, progress)
    else:
        figures = _of_decoder(subject, original, conditions, progress)
    peak = peak_memory(subject.device)
    speed = measure_speed(subject, peak) if conditions.speed else None
    return _report(subject, beside, conditions, {**figures, "speed": speed})


def _of_decoder(
    subject: Subject, original: Shown | None, conditions: Conditions, progress: Progress | None
) -> dict[str, Any]:
    """On the text, in the tasks, and continuing the prompt."""
    scored = Scored(subject.name, subject.model)
    figures = dict(NO_TEXT) if conditions.text is None else _of_text(scored, subject, original, conditions, progress)
    tasks = []
    for i, task in enumerate(conditions.tasks):
        mine = judge(scored, subject.tokenizer, task, progress=progress)
        tasks.append(task_report(task, mine, None if original is None else original.tasks[i]))
    harness = _harness(subject, conditions)
    if harness is not None:
        figures["lm_eval"] = compare_harness(harness, None if original is None else original.harness)
    samples: tuple[Sample, ...] = ()
    if conditions.prompt is not None:
        text = greedy(scored.model, subject.tokenizer, conditions.prompt)
        samples = (Sample(conditions.prompt, text, None if original is None else original.sample),)
    return {**figures, "tasks": tuple(tasks), "samples": samples}


def _harness(subject: Subject, conditions: Conditions) -> dict[str, HarnessScores] | None:
    if not conditions.lm_eval:
        return None
    how: dict[str, Any] = {"limit": conditions.limit, "include_path": conditions.lm_eval_path}
    return run_harness(subject.model, subject.tokenizer, conditions.lm_eval, **how)


def _of_text(
    scored: Scored,
    subject: Subject,
    original: Shown | None,
    conditions: Conditions,
    progress: Progress | None,
) -> dict[str, Any]:
    conditions, ids = _ids(subject, original, conditions)
    require_positions(subject, conditions.context)
    require_ids_fit(scored.model, int(ids.max()), subject.name)
    text = None if original is None or conditions.bits_per_byte else original.text
    how: dict[str, Any] = {"context": conditions.context, "stride": conditions.stride, "progress": progress}
    figures = _text_figures(
        score(scored, None if text is None else text.reference, ids=ids, **how), conditions, subject, ids
    )
    if text is not None:
        figures["layer_error"] = layer_errors(scored.model, ids[: conditions.context][:TOKENS], text.layers)
    elif original is not None:
        figures["original_bits_per_byte"] = original.report(conditions).bits_per_byte
    if conditions.degeneration:
        mine = degeneration(scored.model, ids, begin=leading_ids(subject.tokenizer), progress=progress)
        figures["degeneration"] = compare(mine, None if original is None else original.greedy)
    return figures


def _ids(subject: Subject, original: Shown | None, conditions: Conditions) -> tuple[Conditions, Tensor]:
    """The text in a subject's tokens, which are the original's but where only bits per byte are compared: then the
    conditions are those of the text that the original's tokens cover, however many that is."""
    theirs = None if original is None else original.ids
    if original is None or theirs is None:
        return conditions, token_ids(conditions, subject)
    if conditions.bits_per_byte:
        conditions = replace(conditions, text=_covered(conditions, original.subject, theirs), max_tokens=None)
        return conditions, token_ids(conditions, subject)
    if subject.tokenizer_sha256 is not None and subject.tokenizer_sha256 == original.subject.tokenizer_sha256:
        return conditions, theirs
    ids = token_ids(conditions, subject)
    require_same_ids(conditions, ids, theirs, (subject.name, original.subject.name))
    return conditions, ids


def _covered(conditions: Conditions, subject: Subject, ids: Tensor) -> str:
    """The part of the text that the tokens `ids` stand for."""
    text = conditions.text or ""
    if conditions.max_tokens is None or len(ids) < conditions.max_tokens:
        return text
    return subject.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _text_figures(sums: WindowSums, conditions: Conditions, subject: Subject, ids: Tensor) -> dict[str, Any]:
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


def _report(mine: Subject, original: Subject | None, conditions: Conditions, figures: Mapping[str, Any]) -> EvalReport:
    """Put together; the flips of all tasks are of this model."""
    tasks: tuple[TaskReport, ...] = figures.get("tasks", ())
    flip_rate, flips = flip_figures(tasks)
    found = {"tasks": (), "samples": (), **figures, "flip_rate": flip_rate}
    found["intervals"] = {**figures["intervals"], **flips}
    if original is not None:
        found["original_weight_bytes"] = original.sizes.weight_bytes
        found["original_bits_per_weight"] = original.sizes.bits_per_weight
    else:
        found |= dict.fromkeys(("original_weight_bytes", "original_bits_per_weight"))
    return EvalReport(
        model=mine.name,
        against=None if original is None else original.name,
        weight_bytes=mine.sizes.weight_bytes,
        bits_per_weight=mine.sizes.bits_per_weight,
        overhead_bits_per_weight=mine.sizes.overhead_bits_per_weight,
        model_bits_per_weight=mine.sizes.model_bits_per_weight,
        matrix_error=mine.matrix_error,
        dtype=str(mine.dtype).removeprefix("torch."),
        tokenizer=mine.tokenizer_source,
        context=conditions.context,
        stride=conditions.stride,
        **found,
    )
