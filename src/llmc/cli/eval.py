"""`llmc eval`: what the compression cost."""

from __future__ import annotations

from typing import Any

from llmc.cli.measuring import Measuring
from llmc.cli.options import Against, Folder
from llmc.cli.output import Output


def evaluate(output: Output, folder: Folder, against: Against = None, **measuring: Any) -> None:
    """Measure what the compression cost.

    Perplexity on a text, accuracy in tasks, and size; with --against also what changed from the original: KL divergence
    and top-1 agreement on the text, and the answers that flipped in the tasks. Needs --text, --task or both. Exit code
    1 when a gate fails, or when the interval of its figure leaves it unresolved.

    \b
    Example:
      llmc eval ./model-w4 --against ./model --text held-out.txt --gate "kl < 0.02"
      llmc eval ./model-w4 --against ./model --task arc.jsonl,piqa.jsonl --limit 500
    """
    import llmc
    from llmc.pipeline.compare import check_before, judged

    options = Measuring(**measuring).arguments()
    gates, allowed = options.pop("gates", ()), options.pop("allow_unresolved", False)
    check_before(gates, options)
    if against is not None:
        options["against"] = against
    report = llmc.evaluate(folder, **options, progress=output.progress)
    output.notes(report.notes)
    output.result(judged(report, gates, allow_unresolved=allowed, where=report.model))
