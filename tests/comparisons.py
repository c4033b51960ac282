"""Comparisons to show: measured on tiny models once, and changed from there."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from tiny_models import build, corpus

from llmc.eval.evaluation import evaluate
from llmc.eval.measures.metrics import WindowSums
from llmc.eval.reports.comparison import Comparison, Row, compared
from llmc.eval.reports.report import EvalReport

HOSTILE = "</script><img src=x onerror=alert(1)>|`a``b`\\| **c** [d](http://e) @f $g$ _\x1b[31m\u202e"
"""A name that no page, table or plot may act on."""

SPEED = {
    "load_seconds": 1.25,
    "load_mb_per_s": 812.0,
    "prefill_tokens_per_s": 4321.0,
    "decode_tokens_per_s": 38.5,
    "peak_memory_bytes": 1_234_567_890,
    "ranges": {"decode_tokens_per_s": [37.0, 39.5]},
}


@cache
def measured() -> tuple[EvalReport, EvalReport, EvalReport]:
    """A tiny model, and a slightly and a badly damaged copy held against it, on a text, two tasks and a prompt."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build("llama", place / "original")
        options: dict[str, Any] = {
            "text": corpus(place, words=500),
            "tasks": _tasks(place),
            "context": 64,
            "stride": 64,
            "max_tokens": 700,
            "prompt": "the old river",
        }
        reports = [evaluate(place / "original", **options)]
        for name, factor in (("light", 0.8), ("heavy", -1.0)):
            shutil.copytree(place / "original", place / name)
            tensors = load_file(place / name / "model.safetensors")
            tensors["model.layers.1.mlp.up_proj.weight"] *= factor
            save_file(tensors, place / name / "model.safetensors", metadata={"format": "pt"})
            reports.append(evaluate(place / name, against=place / "original", **options))
    original, light, heavy = reports
    return original, replace(light, weight_bytes=90_000), replace(heavy, weight_bytes=60_000)


def _tasks(place: Path) -> list[Path]:
    choices = [
        {"query": f"{word} is", "choices": ["red", "a lamp"], "gold": i % 2} for i, word in enumerate("abcdefgh")
    ]
    short = [{"question": f"{word}?", "answer": "yes"} for word in "abcd"]
    for name, items in (("choice", choices), ("short", short)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return [place / "choice.jsonl", place / "short.jsonl"]


def full() -> Comparison:
    """Every part there is: marks, a control, errors per block, speed, notes."""
    original, light, heavy = measured()
    blocks = ("model.layers.0", "model.layers.1")
    matrices = {"up_proj": {"output_error": 0.0123, "snr_db": 17.25}, "down_proj": {"snr_db": 21.5}}
    small = replace(heavy, layer_error=dict(zip(blocks, (0.25, 0.5), strict=True)), speed=SPEED, notes=("a note",))
    small = replace(small, matrix_error=matrices)
    large = replace(light, layer_error=dict(zip(blocks, (0.0, 0.001), strict=True)))
    worse = replace(heavy, weight_bytes=95_000, layer_error={})
    rows = [Row("small", small), Row("large", large), Row("worse", worse, control_of="large")]
    return compared(original, rows)


def hostile() -> Comparison:
    """The same with a name, a task, a block, a note and texts that try to break out."""
    comparison = full()

    def spoiled(report: EvalReport) -> EvalReport:
        return replace(
            report,
            model=HOSTILE,
            against=report.against and HOSTILE,
            tasks=tuple(replace(task, name=HOSTILE) for task in report.tasks[:1]),
            layer_error={HOSTILE: 0.5},
            matrix_error={HOSTILE: {"output_error": 0.5}},
            notes=(HOSTILE,),
            text=report.text and replace(report.text, name=HOSTILE),
            tokenizer=replace(report.tokenizer, name=HOSTILE),
            dtype=HOSTILE,
            worst=tuple({**place, "text": HOSTILE} for place in report.worst),
            samples=tuple(replace(s, prompt=HOSTILE, compressed=HOSTILE, original=HOSTILE) for s in report.samples),
        )

    rows = [Row(f"{HOSTILE}{i}", spoiled(row.report), control_of=HOSTILE) for i, row in enumerate(comparison.rows)]
    return compared(spoiled(comparison.original), rows)


def bare() -> Comparison:
    """Tasks alone: no text, no blocks, no samples."""
    original, light, heavy = measured()
    nothing: dict[str, Any] = {
        **dict.fromkeys(("perplexity", "original_perplexity", "perplexity_ratio", "kl", "kl_median", "kl_p99")),
        **{"top1_agreement": None, "tokens": None, "text": None, "worst": (), "samples": (), "bits_per_byte": None},
        "windows": WindowSums(np.zeros(0), np.zeros(0)),
        "layer_error": {},
    }
    nothing["intervals"] = {"flip_rate": (0.01, 0.6)}
    rows = [
        Row("light", replace(light, **nothing, flip_rate=0.1)),
        Row("heavy", replace(heavy, **nothing, flip_rate=0.2)),
    ]
    return compared(replace(original, **{**nothing, "intervals": {}}), rows)


def many(count: int) -> Comparison:
    """A crowd of models of long names and nearby sizes."""
    original, light, _ = measured()
    kl = light.kl or 0.0
    rows = [
        Row(
            f"a-model-of-a-rather-long-name-{i:02}",
            replace(light, weight_bytes=50_000 + 997 * i, kl=kl * 1.3 ** (i % 7)),
        )
        for i in range(count)
    ]
    return compared(original, rows)
