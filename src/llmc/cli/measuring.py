"""What `eval` and `compare` share: the options that say on what, and how, models are measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from llmc.cli.options import Device, RawText, was_given
from llmc.errors import UsageError


@dataclass(frozen=True)
class Measuring:
    """As the command line gives them."""

    text: Annotated[
        str | None, Option("--text", metavar="FILE", help="Text to measure on, a file or tiny:evaluation.")
    ] = None
    task: Annotated[
        list[str] | None,
        Option("--task", metavar="FILE[,FILE]", help="Questions with answers, .jsonl or tiny:recall; repeatable."),
    ] = None
    pairs: Annotated[
        str | None,
        Option("--pairs", metavar="FILE", help="For encoder-decoders: source, target; for encoders: sentences, score."),
    ] = None
    limit: Annotated[int | None, Option("--limit", metavar="N", help="Use the first N items of each task.")] = None
    context: Annotated[int | None, Option("--context", metavar="N", help="Tokens in one window.")] = None
    stride: Annotated[int | None, Option("--stride", metavar="N", help="Tokens between the starts of windows.")] = None
    max_tokens: Annotated[int | None, Option("--max-tokens", metavar="N", help="Stop after this many tokens.")] = None
    prompt: Annotated[str | None, Option("--prompt", metavar="P", help="Also continue this text, greedily.")] = None
    speed: Annotated[bool, Option("--speed", help="Also measure loading, prefill, decoding and peak memory.")] = False
    degeneration: Annotated[
        bool, Option("--degeneration", help="Also continue parts of the text greedily, and count what repeats.")
    ] = False
    lm_eval: Annotated[
        list[str] | None,
        Option("--lm-eval", metavar="TASK[,TASK]", help="Tasks of lm-evaluation-harness, if installed; repeatable."),
    ] = None
    lm_eval_path: Annotated[str | None, Option("--lm-eval-path", metavar="DIR", help="A folder with more of them.")] = (
        None
    )
    bits_per_byte: Annotated[
        bool, Option("--bits-per-byte", help="Compare this alone on the text: the tokenizers may differ.")
    ] = False
    raw_text: RawText = False
    gate: Annotated[
        list[str] | None, Option("--gate", metavar="GATE", help='Fail unless it holds, as in "kl < 0.02"; repeatable.')
    ] = None
    allow_unresolved: Annotated[
        bool, Option("--allow-unresolved", help="Let gates pass that the intervals of their figures do not decide.")
    ] = False
    device: Device = None
    dtype: Annotated[
        str | None, Option("--dtype", metavar="T", help="Type of the computation: float32, bfloat16, float16.")
    ] = None
    cache: Annotated[
        str | None, Option("--cache", metavar="DIR", help="Where what the original shows is kept for the next time.")
    ] = None
    cache_size: Annotated[
        str | None, Option("--cache-size", metavar="SIZE", help="Most bytes to keep there, as in 8GiB; 0 keeps none.")
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the library. What was not given is left out: defaults are the library's.

        Raises:
            UsageError: a size that cannot be read, or a cache that is no folder.
        """
        given = was_given(self)
        if "task" in given:
            given["tasks"] = files(given.pop("task"))
        if "lm_eval" in given:
            given["lm_eval"] = [name for each in given["lm_eval"] for name in each.split(",") if name]
        if "gate" in given:
            given["gates"] = given.pop("gate")
        limit = _size(given.pop("cache_size")) if "cache_size" in given else None
        if limit == 0:
            return {name: value for name, value in given.items() if name != "cache"}
        given["cache"] = cache_folder(self.cache)
        return {**given, **({} if limit is None else {"cache_limit": limit})}


def cache_folder(given: str | None) -> Path:
    """Where evaluations keep what originals show, unless `--cache` says otherwise.

    Raises UsageError where that names no folder.
    """
    if given is not None:
        if not given or (os.path.exists(given) and not os.path.isdir(given)):
            raise UsageError(f"not a folder: {given!r}", where="--cache", fix="name a folder; it is made where missing")
        return Path(given)
    base = os.environ.get("LLMC_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "llmc")
    return Path(base).expanduser() / "originals"


def _size(text: str) -> int:
    from llmc.recipe.schema import byte_count

    size = 0 if text.strip() == "0" else byte_count(text)
    if size is None:
        raise UsageError(f"not a size: {text!r}", where="--cache-size", fix="write it like 8GiB or 500MB")
    return size


def files(texts: list[str]) -> list[str]:
    """The files that `--task` names, each text one of them or several with commas between."""
    return [part for text in texts for part in ([text] if os.path.exists(text) else text.split(",")) if part]
