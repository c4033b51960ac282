"""`llmc eval`: what the compression cost."""

from __future__ import annotations

import os
from typing import Annotated, Any

from typer import Option

from llmc.cli.options import Against, Device, Folder
from llmc.cli.output import Output

Text = Annotated[str | None, Option("--text", metavar="FILE", help="Text to measure on, a file or tiny:evaluation.")]
Tasks = Annotated[
    list[str] | None,
    Option("--task", metavar="FILE[,FILE]", help="Questions with answers, .jsonl or tiny:recall; repeatable."),
]
Limit = Annotated[int | None, Option("--limit", metavar="N", help="Use the first N items of each task.")]
ContextLength = Annotated[int | None, Option("--context", metavar="N", help="Tokens in one window.")]
Stride = Annotated[int | None, Option("--stride", metavar="N", help="Tokens between the starts of windows.")]
MaxTokens = Annotated[int | None, Option("--max-tokens", metavar="N", help="Stop after this many tokens.")]
Prompt = Annotated[str | None, Option("--prompt", metavar="P", help="Also continue this text, greedily.")]


def evaluate(
    output: Output,
    folder: Folder,
    text: Text = None,
    against: Against = None,
    task: Tasks = None,
    limit: Limit = None,
    context: ContextLength = None,
    stride: Stride = None,
    max_tokens: MaxTokens = None,
    prompt: Prompt = None,
    device: Device = None,
) -> None:
    """Measure what the compression cost.

    Perplexity on a text, accuracy in tasks, and size; with --against also what changed from the original: KL divergence
    and top-1 agreement on the text, and the answers that flipped in the tasks. Needs --text, --task or both.

    \b
    Example:
      llmc eval ./model-w4 --against ./model --text held-out.txt --prompt "Once upon a time"
      llmc eval ./model-w4 --against ./model --task arc.jsonl,piqa.jsonl --limit 500
    """
    import llmc

    chosen = {
        "text": text,
        "tasks": files(task or []) or None,
        "limit": limit,
        "against": against,
        "context": context,
        "stride": stride,
        "max_tokens": max_tokens,
        "prompt": prompt,
        "device": device,
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    output.result(llmc.evaluate(folder, **given, progress=output.progress))


def files(texts: list[str]) -> list[str]:
    """The files that `--task` names, each text one of them or several with commas between."""
    return [part for text in texts for part in ([text] if os.path.exists(text) else text.split(",")) if part]
