"""`llmc eval`: what the compression cost."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Option

from llmc.cli.options import Against, Device, Folder
from llmc.cli.output import Output

Text = Annotated[str, Option("--text", metavar="FILE", help="Text to measure on.")]
ContextLength = Annotated[int | None, Option("--context", metavar="N", help="Tokens in one window.")]
Stride = Annotated[int | None, Option("--stride", metavar="N", help="Tokens between the starts of windows.")]
MaxTokens = Annotated[int | None, Option("--max-tokens", metavar="N", help="Stop after this many tokens.")]
Prompt = Annotated[str | None, Option("--prompt", metavar="P", help="Also continue this text, greedily.")]


def evaluate(
    output: Output,
    folder: Folder,
    text: Text,
    against: Against = None,
    context: ContextLength = None,
    stride: Stride = None,
    max_tokens: MaxTokens = None,
    prompt: Prompt = None,
    device: Device = None,
) -> None:
    """Measure what the compression cost.

    Perplexity and size; with --against also the KL divergence and top-1 agreement to the original.

    \b
    Example:
      llmc eval ./model-w4 --against ./model --text held-out.txt --prompt "Once upon a time"
    """
    import llmc

    chosen = {
        "against": against,
        "context": context,
        "stride": stride,
        "max_tokens": max_tokens,
        "prompt": prompt,
        "device": device,
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    output.result(llmc.evaluate(folder, text=text, **given, progress=output.progress))
