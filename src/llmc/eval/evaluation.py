"""`evaluate`: one folder, with or without its original, on a text, on tasks, or on both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmc.errors import CalibrationError, InputError, UsageError
from llmc.eval.intervals import paired_intervals
from llmc.eval.loading import check_config, open_model, position_limit, quiet, require_ids_fit
from llmc.eval.metrics import Scored, WindowSums, score, windows
from llmc.eval.report import EvalReport, Source
from llmc.eval.samples import Sample, greedy
from llmc.eval.sizes import Sizes, folder_sizes
from llmc.eval.tail import QUANTILES, binned, worst
from llmc.eval.task_judging import judge
from llmc.eval.task_report import TaskReport, flip_figures, task_report
from llmc.eval.tasks import Task, load_tasks
from llmc.hub import resolve_model
from llmc.recipe_paths import embedded_text
from llmc.structure import silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmc.eval.intervals import Figure
    from llmc.structure import Progress

Opener = Callable[[Path], tuple[Any, Any]]
"""`opener(folder) -> (model, tokenizer)`; the model is used in the dtype it comes in."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


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
    device: str = "cpu",
    dtype: str = "float32",
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
        dtype: of the computation, `float32`, `bfloat16` or `float16`.
        opener: opens both folders in place of `open_model`, for a container that transformers does not read.

    Raises:
        InputError: of any kind, one line; see `llmc.errors`.
        NetworkError: a Hub id that cannot be fetched.
    """
    _check_options(context, stride, max_tokens, device, dtype)
    if text is None and not tasks:
        raise UsageError("nothing to measure on", where="--text", fix="give --text FILE, --task FILE or both")
    content = None if text is None else embedded_text(str(text)) or _read(Path(text))
    loaded = load_tasks(tasks, limit)
    models = [folder] if against is None else [folder, against]
    subjects = _open(models, opener or partial(open_model, dtype=DTYPES[dtype]), device, progress or silent)
    figures = dict(NO_TEXT)
    if content is not None:
        figures |= _on_text(str(text), content, subjects, (context, stride), max_tokens, progress)
    samples = () if prompt is None else (Sample(prompt, *(greedy(s.model, s.tokenizer, prompt) for s in subjects)),)
    reports = tuple(_on_task(task, subjects, progress) for task in loaded)
    figures["flip_rate"], flips = flip_figures(reports)
    figures["intervals"] = figures["intervals"] | flips
    return EvalReport(**_identity(subjects), **figures, context=context, stride=stride, tasks=reports, samples=samples)


@dataclass(frozen=True)
class _Subject:
    """A model to be judged, or its original."""

    name: str
    folder: Path
    sizes: Sizes
    model: Any
    tokenizer: Any


NO_TEXT: dict[str, Any] = {
    **dict.fromkeys(("perplexity", "original_perplexity", "perplexity_ratio", "kl", *QUANTILES, "top1_agreement")),
    **{"tokens": None, "text": None, "intervals": {}, "windows": WindowSums(np.zeros(0), np.zeros(0)), "worst": ()},
}
"""What a text shows, under the names of the report, where there is none."""


def _on_text(
    path: str,
    content: bytes,
    subjects: Sequence[_Subject],
    how: tuple[int, int],
    max_tokens: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """What a text shows in windows of `how`, context and stride in tokens, under the names of the report."""
    context, stride = how
    ids = _token_ids(content, Path(path), subjects, max_tokens)
    for subject in subjects:
        _require_positions(subject, context)
        require_ids_fit(subject.model, int(ids.max()), subject.name)
    scored = [Scored(subject.name, subject.model) for subject in subjects]
    sums = score(*scored, ids=ids, context=context, stride=stride, progress=progress)
    source = Source(Path(path).name, hashlib.sha256(content).hexdigest())
    places: list[dict[str, Any]] = []
    if sums.kl is not None:
        read = partial(_text_of, subjects[0].tokenizer, ids)
        places = worst(list(windows(len(ids), context, stride)), sums.kl, sums.tokens, read)
    figures = _figures(sums) | {"worst": tuple(places)}
    return {**figures, "tokens": int(sums.tokens.sum()), "text": source, "windows": sums}


def _text_of(tokenizer: Any, ids: Tensor, first: int, end: int) -> str:
    return tokenizer.decode(ids[first:end].tolist())


def _on_task(task: Task, subjects: Sequence[_Subject], progress: Progress | None) -> TaskReport:
    """Each model on the same items, with its own tokenizer."""
    scored = [(Scored(subject.name, subject.model), subject.tokenizer) for subject in subjects]
    return task_report(task, *(judge(model, tokenizer, task, progress=progress) for model, tokenizer in scored))


def _open(models: Sequence[str | Path], opener: Opener, device: str, progress: Progress) -> list[_Subject]:
    """All models, opened once all of them have passed the checks that need no weights."""
    folders = [resolve_model(str(model), progress=progress) for model in models]
    for folder in folders:
        check_config(folder)
    sizes = [folder_sizes(folder) for folder in folders]
    subjects: list[_Subject] = []
    for i, folder in enumerate(folders):
        progress("open", i, len(folders))
        model, tokenizer = opener(folder)
        subjects.append(_Subject(_name(models[i], folder), folder, sizes[i], model.to(device).eval(), tokenizer))
    return subjects


def _identity(subjects: Sequence[_Subject]) -> dict[str, Any]:
    """What the models are, under the names of the report."""
    mine, original = subjects[0], subjects[1] if len(subjects) > 1 else None
    return {
        "model": mine.name,
        "against": original and original.name,
        "weight_bytes": mine.sizes.weight_bytes,
        "bits_per_weight": mine.sizes.bits_per_weight,
        "model_bits_per_weight": mine.sizes.model_bits_per_weight,
        "original_weight_bytes": original and original.sizes.weight_bytes,
        "original_bits_per_weight": original and original.sizes.bits_per_weight,
        "dtype": str(mine.model.dtype).removeprefix("torch."),
        "tokenizer": _tokenizer_source(mine.folder, mine.tokenizer),
    }


def _figures(sums: WindowSums) -> dict[str, Any]:
    """The figures that are functions of the sums, under their names in the report, and their intervals."""
    figures: dict[str, Figure] = {"perplexity": lambda s: _exp(s[:, 1] / s[:, 0])}
    columns = [sums.tokens, sums.nll]
    if sums.original_nll is not None and sums.kl is not None and sums.agree is not None:
        columns += [sums.original_nll, sums.kl, sums.agree]
        figures["perplexity_ratio"] = lambda s: _exp((s[:, 1] - s[:, 2]) / s[:, 0])
        figures["kl"] = lambda s: s[:, 3] / s[:, 0]
        figures["top1_agreement"] = lambda s: s[:, 4] / s[:, 0]
    table = np.stack(columns, axis=1)  # [windows, columns]
    if sums.token_kl is not None:
        counts, quantiles = binned(sums.token_kl, sums.tokens)
        figures |= {name: partial(_of_columns, table.shape[1], figure) for name, figure in quantiles.items()}
        table = np.concatenate([table, counts], axis=1)
    total = table.sum(axis=0, keepdims=True)
    values: dict[str, Any] = dict.fromkeys(("perplexity_ratio", "kl", "top1_agreement", *QUANTILES))
    values |= {name: float(figure(total)[0]) for name, figure in figures.items()}
    values["original_perplexity"] = None if sums.original_nll is None else float(_exp(total[:, 2] / total[:, 0])[0])
    return values | {"intervals": paired_intervals(table, figures)}


def _of_columns(first: int, figure: Figure, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    return figure(totals[:, first:])


def _exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.exp(x)


def _check_options(context: int, stride: int, max_tokens: int | None, device: str, dtype: str) -> None:
    if context < 2:
        raise UsageError(f"context {context} leaves no token to score", where="--context", fix="use 2 or more")
    if not 1 <= stride <= context:
        raise UsageError(
            f"stride {stride} is not between 1 and the context {context}",
            where="--stride",
            fix="a stride beyond the context would skip tokens",
        )
    if max_tokens is not None and max_tokens < 2:
        raise UsageError(f"max_tokens {max_tokens} leaves no token to score", where="--max-tokens", fix="use 2 or more")
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", where="--dtype", fix="choose one of: " + ", ".join(DTYPES))
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}", where="--device", fix="choose cpu or cuda")
    if device != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} is not available here", where="--device", fix="use cpu")


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"cannot read the text: {error.strerror}", where=str(path)) from error
    if not content.strip():
        raise CalibrationError("the text is empty", where=str(path), fix="give a text of some thousand words")
    return content


def _token_ids(content: bytes, path: Path, subjects: Sequence[_Subject], limit: int | None) -> Tensor:
    """Token ids `[tokens]`, int64, the same from every tokenizer."""
    try:
        words = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"not UTF-8 at byte {error.start}", where=str(path), fix="convert it to UTF-8"
        ) from error
    with quiet():
        made = [torch.tensor(s.tokenizer(words)["input_ids"][:limit], dtype=torch.int64) for s in subjects]
    ids = made[0]
    if len(made) == 2 and not torch.equal(ids, made[1]):
        shared = min(len(ids), len(made[1]))
        at = next(iter((ids[:shared] != made[1][:shared]).nonzero().flatten().tolist()), shared)
        both = f"{subjects[0].name} and {subjects[1].name}"
        raise InputError(
            f"the tokenizers of {both} differ: token {at} of the text is not the same",
            where=str(path),
            fix="compare a model with the one it was made from, or leave out --against",
        )
    if len(ids) < 2:
        raise CalibrationError(f"the text has {len(ids)} token, and 2 are needed", where=str(path))
    return ids


def _require_positions(subject: _Subject, context: int) -> None:
    limit = position_limit(subject.model)
    if limit is not None and context > limit:
        raise UsageError(
            f"context {context} exceeds the {limit} positions of {subject.name}",
            where="--context",
            fix=f"use at most {limit}",
        )


def _name(model: str | Path, path: Path) -> str:
    """Folder name or Hub id: a report goes to others, to whom paths of this machine say nothing."""
    return path.resolve().name if Path(model).exists() else str(model)


def _tokenizer_source(folder: Path, tokenizer: Any) -> Source:
    file = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    digest = None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    return Source(type(tokenizer).__name__, digest)
