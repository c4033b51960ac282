"""What goes first, knowledge or perplexity: `python benchmarks/knowledge.py [--threads 1]`.

The embedded model with its smaller weights zeroed (by magnitude, in each matrix of the blocks) and rounded to few bits,
against itself: perplexity and KL on text it has not seen, and the five kinds of questions of its world. After LLM-KICK
(Jaiswal et al. 2024, arXiv 2310.01382), where closed-book knowledge falls while perplexity hardly moves and answers
that stand in the context survive. Prints a Markdown table and sentences computed from it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import machine, markdown
from safetensors.torch import load_file, save_file

import llmc
from llmc.embedded import tiny_model_path, write_texts

if TYPE_CHECKING:
    from llmc.eval.reports.report import EvalReport
    from llmc.eval.reports.task_report import TaskReport

KINDS = ("recall", "in_context", "copy", "multi_hop", "story")
SHARES = (0.25, 0.35, 0.5)
ROUNDED = (("rtn", 2), ("gptq", 3), ("gptq", 2))
GROUP_SIZE = 32
SAMPLES, LENGTH = 128, 256  # of calibration
LEVELS = (1.05, 1.1, 1.2)  # of the perplexity ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    rows: list[tuple[str, EvalReport]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in made(Path(scratch)):
            print(name, file=sys.stderr, flush=True)
            tasks = [f"tiny:{kind}" for kind in KINDS]
            rows.append((name, llmc.evaluate(folder, against=tiny_model_path(), text="tiny:evaluation", tasks=tasks)))
            shutil.rmtree(folder)
    rows.sort(key=lambda row: row[1].perplexity_ratio or 0.0)
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, load {about['load']}.\n")
    print(original(rows[0][1]))
    print(table(rows))
    print("\n".join(f"- {sentence(kind, rows)}" for kind in KINDS))


def made(place: Path) -> Iterator[tuple[str, Path]]:
    """Each damaged model: what was done, and its folder."""
    for share in SHARES:
        yield f"{share:.0%} zeroed", zeroed(place / "zeroed", share)
    for method, bits in ROUNDED:
        out = place / "rounded"
        options: dict[str, Any] = {}
        if method == "gptq":
            text = write_texts(place)["calibration"]
            options = {"calibration": str(text), "num_samples": SAMPLES, "sequence_length": LENGTH}
        llmc.quantize(str(tiny_model_path()), out, method=method, bits=bits, group_size=GROUP_SIZE, **options)
        yield f"{method}, {bits} bits", out


def zeroed(folder: Path, share: float) -> Path:
    """The model with the smallest `share` of the weights of each block matrix set to zero."""
    shutil.copytree(tiny_model_path(), folder)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        if ".layers." in name and weight.ndim == 2:
            order = weight.abs().flatten().argsort(stable=True)
            weight.view(-1)[order[: int(share * weight.numel())]] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def original(report: EvalReport) -> str:
    """One line: the model before anything was done to it."""
    answers = ", ".join(f"{task.name} {task.original_accuracy:.3f}" for task in report.tasks)
    return f"The original: perplexity {report.original_perplexity:.3f}; {answers}.\n"


def table(rows: Sequence[tuple[str, EvalReport]]) -> str:
    """A row for each damaged model, mildest first by perplexity."""
    cells = []
    for name, report in rows:
        low, high = report.intervals["perplexity_ratio"]
        ratio = f"{report.perplexity_ratio:.4f} [{low:.4f}, {high:.4f}]"
        cells.append([name, ratio, f"{report.kl:.3g}", *map(_difference, report.tasks)])
    return markdown(["", "perplexity ratio", "KL", *KINDS], cells)


def _difference(task: TaskReport) -> str:
    low, high = task.intervals["difference"]
    value = f"{task.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{value}**" if task.resolved else value


def sentence(kind: str, rows: Sequence[tuple[str, EvalReport]]) -> str:
    """Where the answers of one kind are lost first, and whether the perplexity ratio tells by then."""
    for name, report in rows:
        task = next(task for task in report.tasks if task.name == kind)
        ratio = report.perplexity_ratio or 0.0
        if task.resolved and (task.difference or 0) < 0:
            level = next((f"below {level}" for level in LEVELS if ratio < level), f"not below {LEVELS[-1]}")
            return f"`{kind}` is lost first at {name} ({task.difference:+.3f}), perplexity ratio {ratio:.3f}, {level}."
    return f"`{kind}` is lost nowhere in this table."


if __name__ == "__main__":
    main()
