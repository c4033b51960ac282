"""`quantize --check`: what a fresh model loses on calibration text that no statistic saw.

The sequences are those that the seeded draw would have taken next: statistics and bytes are what they are without it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmc.calibration.mixture import load_mixture, names_of
from llmc.errors import LlmcError, UsageError
from llmc.models.tokenizer import tokenizer_of, vocabulary
from llmc.pipeline.plan import Job
from llmc.recipe.recipe import resolve_text
from llmc.results import Progress, Table

SEQUENCES = 16
SMALL = 200_000_000
"""Bytes of an original up to which it is checked unless told not to: some seconds on a laptop."""


@dataclass(frozen=True)
class Check:
    """KL(original || compressed) per token on text that was not calibrated on.

    Attributes:
        kl, interval: mean in nats, and its 95 % interval.
        sequences: how many were drawn.
        seconds: that it took.
        skipped: why nothing was measured; "" where it was.
    """

    kl: float | None = None
    interval: tuple[float, float] | None = None
    perplexity_ratio: float | None = None
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "interval": self.interval and list(self.interval)}

    def table(self) -> Table:
        """What was measured, or why not."""
        if self.skipped:
            return Table("Check", ("what", ""), (("not checked", self.skipped),))
        low, high = self.interval or (0.0, 0.0)
        rows = [
            ("KL divergence, nats", f"{self.kl:.4g} [{low:.4g}, {high:.4g}]"),
            ("perplexity ratio", f"{self.perplexity_ratio:.4f}"),
            ("measured on", f"{self.sequences} sequences, {self.tokens:,} tokens beyond the calibration set"),
            ("took", f"{self.seconds:.0f} s"),
        ]
        return Table("Check", ("what", ""), tuple(rows))


def is_cheap(job: Job) -> bool:
    """Whether a job is checked unless told otherwise: text is at hand, nothing else is measured, the model is small."""
    recipe = job.recipe
    return recipe.calibration is not None and recipe.eval is None and job.checkpoint.file_bytes <= SMALL


def check(job: Job, folder: Path, progress: Progress | None) -> Check:
    """Measure the model in `folder`, which `job` wrote, beside its original. What cannot be measured is said."""
    from llmc.models.open import model_kind

    begin = time.monotonic()
    try:
        if model_kind(job.checkpoint.folder) != "decoder":
            return Check(skipped="it predicts no next token")
        texts = _texts(job)
        report = _measure(job, folder, texts, progress)
    except LlmcError as error:
        return Check(skipped=str(error))
    interval = report.intervals["kl"]
    return Check(
        kl=report.kl,
        interval=interval,
        perplexity_ratio=report.perplexity_ratio,
        sequences=len(texts),
        tokens=report.tokens or 0,
        seconds=time.monotonic() - begin,
    )


def _texts(job: Job) -> list[str]:
    """The sequences that would have been drawn next, as text. Raises UsageError where there are none."""
    options = job.recipe.calibration
    if options is None:
        raise UsageError("there is no calibration text to draw from", where="--check", fix="add --calibration FILE")
    tokenizer = tokenizer_of(job.checkpoint.folder)
    with tempfile.TemporaryDirectory() as texts:
        resolved = tuple(resolve_text(name, Path(texts)) for name in names_of(options))
        there = replace(options, source=resolved)
        found = load_mixture(there, tokenizer, vocabulary(job.checkpoint.model), beyond=SEQUENCES)
    ids = found.token_ids
    if not len(ids):
        fix = "give more text, or fewer --num-samples"
        raise UsageError("the calibration text has no sequence beyond those it was calibrated on", fix=fix)
    out: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return out


def _measure(job: Job, folder: Path, texts: list[str], progress: Progress | None) -> Any:
    from llmc.eval.evaluation import evaluate

    options = job.recipe.calibration
    context = max(2, options.sequence_length if options is not None else 0)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "check.txt"
        path.write_text("\n".join(texts), encoding="utf-8")
        return evaluate(
            folder,
            text=path,
            against=job.checkpoint.folder,
            context=context,
            device=job.recipe.device,
            raw_text=True,
            progress=progress,
        )
