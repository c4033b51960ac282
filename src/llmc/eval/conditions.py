"""What models are measured on, and how: checked before a model is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.embedded.names import embedded_text
from llmc.errors import CalibrationError, InputError, UsageError
from llmc.eval.reports.report import Source
from llmc.eval.tasks.tasks import Task, check_limit, load_tasks
from llmc.eval.tasks.text_pairs import TextPair, load_similarities, load_translations
from llmc.files.line_ends import LineEnds
from llmc.late import LateTable, torch
from llmc.models.devices import require_device
from llmc.models.open import position_limit, quiet

if TYPE_CHECKING:
    from torch import Tensor

    from llmc.eval.subject import Subject

TAKES = {
    "decoder": ("--text", "--task", "--prompt", "--speed", "--degeneration", "--lm-eval"),
    "encoder": ("--text", "--pairs"),
    "encoder_decoder": ("--pairs",),
}
"""What each kind of model can be measured on."""

ARTICLES = {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder-decoder"}
DTYPES = LateTable(lambda: {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})


@dataclass(frozen=True)
class Conditions:
    """The same for every model of a comparison.

    Attributes:
        text: content of the text, None where there is none; `path` is for messages.
        tasks: as read.
        context, stride: window length and distance in tokens.
        max_tokens: use only the first tokens of the text.
        prompt: to be continued greedily.
        lm_eval: tasks of lm-evaluation-harness; `lm_eval_path` is a folder with more of them.
        pairs: what encoders and encoder-decoders are measured on, None where nothing was given; `pairs_path` of it.
        limit: use only the first items, pairs, and lines for an encoder.
        ends: what became of line ends in all of these.
    """

    path: str
    text: str | None
    source: Source | None
    tasks: tuple[Task, ...]
    context: int
    stride: int
    max_tokens: int | None
    prompt: str | None
    speed: bool
    degeneration: bool
    lm_eval: tuple[str, ...]
    lm_eval_path: str | None
    bits_per_byte: bool
    limit: int | None
    pairs_path: str | None
    pairs: tuple[TextPair, ...] | None = None
    ends: LineEnds = field(default_factory=LineEnds)


def read_conditions(
    *,
    text: str | Path | None = None,
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
) -> Conditions:
    """Read text and tasks.

    Raises:
        UsageError: nothing to measure on, or an option out of its range.
        CalibrationError: a file that cannot be read or used.
    """
    stride = _stride(context, stride, max_tokens)
    check_limit(limit)
    if text is None and not tasks and pairs is None and not lm_eval:
        raise UsageError("nothing to measure on", where="--text", fix="give --text FILE, --task FILE or both")
    for option, wanted in (("bits-per-byte", bits_per_byte), ("degeneration", degeneration)):
        if wanted and text is None:
            raise UsageError("it needs a text", where=f"--{option}", fix="give --text FILE")
    ends = LineEnds(raw_text)
    words, source = (None, None) if text is None else _text(text, ends)
    return Conditions(
        path=str(text),
        text=words,
        source=source,
        tasks=tuple(load_tasks(tasks, limit, ends)),
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        prompt=prompt,
        speed=speed,
        degeneration=degeneration,
        lm_eval=tuple(lm_eval),
        lm_eval_path=None if lm_eval_path is None else str(lm_eval_path),
        bits_per_byte=bits_per_byte,
        limit=limit,
        pairs_path=None if pairs is None else str(pairs),
        ends=ends,
    )


def for_kind(conditions: Conditions, subjects: Sequence[Subject]) -> Conditions:
    """The conditions with the pairs that the kind of the models asks for.

    Raises:
        UsageError: models of several kinds, or what models of this kind cannot be measured on.
        CalibrationError: pairs that cannot be read.
    """
    first = subjects[0]
    other = next((each for each in subjects if each.kind != first.kind), None)
    if other is not None:
        problem = f"{other.name} is {ARTICLES[other.kind]} and {first.name} is {ARTICLES[first.kind]}"
        raise UsageError(problem, fix="compare models of one kind")
    given: dict[str, Any] = {
        "--text": conditions.text,
        "--pairs": conditions.pairs_path,
        "--task": conditions.tasks or None,
    }
    given |= {"--prompt": conditions.prompt, "--speed": conditions.speed or None}
    given |= {"--degeneration": conditions.degeneration or None, "--lm-eval": conditions.lm_eval or None}
    allowed = TAKES[first.kind]
    wrong = next((name for name, value in given.items() if value is not None and name not in allowed), None)
    if wrong is not None:
        fix = "give " + " or ".join(name for name in allowed if name in ("--text", "--pairs", "--task"))
        raise UsageError(f"{first.name} is {ARTICLES[first.kind]}", where=wrong, fix=fix)
    if conditions.pairs_path is None:
        return conditions
    read = load_translations if first.kind == "encoder_decoder" else load_similarities
    source = Source(Path(conditions.pairs_path).name, _sha256_of(Path(conditions.pairs_path)))
    return replace(
        conditions, pairs=tuple(read(conditions.pairs_path, conditions.ends)[: conditions.limit]), source=source
    )


def _sha256_of(path: Path) -> str | None:
    """Of a file; None of a data set."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def token_ids(conditions: Conditions, subject: Subject) -> Tensor:
    """The text, or its first tokens, by a subject's tokenizer: `[tokens]`, int64."""
    with quiet():
        made = subject.tokenizer(conditions.text)["input_ids"][: conditions.max_tokens]
    if len(made) < 2:
        raise CalibrationError(f"the text has {len(made)} token, and 2 are needed", where=conditions.path)
    return torch.tensor(made, dtype=torch.int64)


def require_same_ids(conditions: Conditions, mine: Tensor, theirs: Tensor, names: tuple[str, str]) -> None:
    """Raise InputError where two tokenizers do not make the same of the text."""
    if torch.equal(mine, theirs):
        return
    shared = min(len(mine), len(theirs))
    at = next(iter((mine[:shared] != theirs[:shared]).nonzero().flatten().tolist()), shared)
    raise InputError(
        f"the tokenizers of {names[0]} and {names[1]} differ: token {at} of the text is not the same",
        where=conditions.path,
        fix="compare a model with the one it was made from, leave out --against, or use --bits-per-byte",
    )


def require_positions(subject: Subject, context: int) -> None:
    """Raise UsageError where the context exceeds what the model takes."""
    limit = position_limit(subject.model)
    if limit is not None and context > limit:
        raise UsageError(
            f"context {context} exceeds the {limit} positions of {subject.name}",
            where="--context",
            fix=f"use at most {limit}",
        )


def check_device(device: str, dtype: str) -> torch.dtype:
    """The dtype of the computation. Raises UsageError for one, or a device, that is not there."""
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", where="--dtype", fix="choose one of: " + ", ".join(DTYPES))
    require_device(device)
    return DTYPES[dtype]


def _stride(context: int, stride: int | None, max_tokens: int | None) -> int:
    """Tokens between the starts of windows: the context unless given. Raises UsageError for what leaves no token."""
    stride = context if stride is None else stride
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
    return stride


def _text(text: str | Path, ends: LineEnds) -> tuple[str, Source]:
    """What is measured on, and what it is: its digest is that of what tokenizers get."""
    words = ends.text(_decoded(embedded_text(str(text)) or _read(Path(text)), Path(text)), str(text))
    return words, Source(Path(text).name, hashlib.sha256(words.encode()).hexdigest())


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"cannot read the text: {error.strerror}", where=str(path)) from error
    if not content.strip():
        raise CalibrationError("the text is empty", where=str(path), fix="give a text of some thousand words")
    return content


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"not UTF-8 at byte {error.start}", where=str(path), fix="convert it to UTF-8"
        ) from error
