"""Memory and time against depth: `python benchmarks/scaling.py --scratch FOLDER`.

Two random Llamas, the second twice as deep (`random_llama.py`), through `llmc quantize` by rtn and gptq: peak memory
must not grow with depth. RTN's throughput, of the extension and of torch, stands beside the copy bandwidth of memory,
measured in the same run with as many threads; all count bytes read and written. On disk this takes twice the bf16
weights of the deeper model.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from measuring import Usage, machine, markdown, measured, own_peak_mb, threads_environment

COPIED = 1 << 29  # bytes of the tensor that is copied: beyond every cache
KERNEL_SHAPE = (4096, 4096)
TRIES = 5
METHODS = {
    "rtn": ("--method", "rtn"),
    "rtn absmax": ("--method", "rtn", "-O", "scales=absmax"),
    "gptq": ("--method", "gptq"),
}


@dataclass(frozen=True)
class Run:
    """One command on one model. Bytes are those of the weight files."""

    layers: int
    method: str
    usage: Usage
    read_bytes: int
    written_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "usage": self.usage.to_json()}


@dataclass(frozen=True)
class Memory:
    """What `probe` found. Rates are 10**9 bytes read and written per second.

    Attributes:
        rtn: by kind of scales and what did it, of rounding one matrix in memory. What came first is what llmc uses.
    """

    copy: float
    rtn: dict[str, dict[str, float]]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        place = Path(scratch)
        memory = _apart(probe, options.threads)
        imports = _imports(place, options)
        runs = [run for depth in (1, 2) for run in _of_depth(place, depth, options)]
    document = {
        "machine": machine(),
        "settings": {k: v for k, v in vars(options).items() if k not in ("scratch", "calibration", "json")},
        "memory": vars(memory),
        "imports": imports.to_json(),
        "least_measurable_rss_mb": own_peak_mb(),
        "runs": [run.to_json() for run in runs],
    }
    print(json.dumps(document, indent=2) if options.json else report(document))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--mlp", type=int, default=5632)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--layers", type=int, default=16, help="of the shallower model")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--calibration", help="a text file; without it, this script's own source")
    parser.add_argument("--threads", type=int, help="of numerical libraries")
    parser.add_argument("--scratch", help="folder on a disk with room; all is removed at the end")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own: this one stays small, see `measured`."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def probe(threads: int | None) -> Memory:
    """Copy bandwidth, and RTN of one bf16 matrix, 4 bits, group 128: the best of some tries."""
    import torch

    from llmc import _native
    from llmc.compressors.method import Context
    from llmc.compressors.rtn import Rtn
    from llmc.encodings import int_kernel

    torch.set_num_threads(threads or torch.get_num_threads())
    extension, definition = f"extension ({int_kernel.paths()[-1]})", f"torch {torch.__version__}"
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    weight = torch.randn(KERNEL_SHAPE).bfloat16()
    context = Context(torch.float32, "cpu", torch.get_num_threads(), scale_dtypes=("bfloat16",))
    traffic = weight.numel() * (2 + 1)  # bf16 in, one byte a code out
    kinds = ("absmax", "mse")
    best: dict[Any, float] = defaultdict(lambda: math.inf)
    for _ in range(TRIES):  # side by side: what else the machine does is the same for all
        best["copy"] = min(best["copy"], _seconds(lambda: target.copy_(source)))
        for scales in kinds:
            work = partial(Rtn(scales=scales), weight, {}, context)
            with patch.object(_native, "grid_fit", wraps=_native.grid_fit) as compiled:
                best[scales, extension] = min(best[scales, extension], _seconds(work))
            if not compiled.called:
                raise SystemExit("the extension did not run")
            with patch.object(int_kernel, "applies", lambda *_: False):
                best[scales, definition] = min(best[scales, definition], _seconds(work))
    rtn = {scales: {by: traffic / best[scales, by] / 1e9 for by in (extension, definition)} for scales in kinds}
    return Memory(2 * COPIED / best["copy"] / 1e9, rtn)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _imports(place: Path, options: argparse.Namespace) -> Usage:
    lines = (
        "import llmc.cli.quantize, llmc.pipeline.run, transformers.models.llama.modeling_llama, rich.progress, typer"
    )
    command, environment = [sys.executable, "-c", lines], threads_environment(options.threads)
    runs = [measured(command, place / "log", environment) for _ in range(2)]  # the first one reads from disk
    return min(runs, key=lambda run: run.wall_s)


def _of_depth(place: Path, depth: int, options: argparse.Namespace) -> Iterator[Run]:
    """Make the model, quantize it by every method, remove it."""
    model, layers = place / "model", options.layers * depth
    _say(f"writing a model of {layers} layers")
    size = _apart(make, model, options, layers)
    text = options.calibration or str(_text(place))
    for method in options.methods:
        _say(f"{method}, {layers} layers")
        out = place / "out"
        command = [sys.executable, "-m", "llmc", "quantize", str(model), "-o", str(out), *METHODS[method]]
        command += ["--bits", str(options.bits), "--group-size", str(options.group_size)]
        if method == "gptq":
            command += ["--calibration", text, "--num-samples", str(options.num_samples)]
            command += ["--sequence-length", str(options.sequence_length)]
        usage = measured(command, place / "log", threads_environment(options.threads))
        if usage.code:
            raise SystemExit(f"{method} failed: {usage.last_line}")
        yield Run(layers, method, usage, size, sum(f.stat().st_size for f in out.glob("*.safetensors")))
        shutil.rmtree(out)
    shutil.rmtree(model)


def make(model: Path, options: argparse.Namespace, layers: int) -> int:
    """The model folder; returns the bytes of its weights."""
    from random_llama import Shape, write_random_llama

    shape = Shape(**{name: getattr(options, name) for name in vars(Shape()) if name != "tied"})
    return write_random_llama(model, replace(shape, layers=layers))


def _text(place: Path) -> Path:
    """Some calibration text: what it says does not matter to a random model."""
    file = place / "text.txt"
    file.write_text(Path(__file__).read_text(encoding="utf-8") * 200, encoding="utf-8")
    return file


def report(document: dict[str, Any]) -> str:
    """Markdown."""
    about, memory, runs = document["machine"], document["memory"], document["runs"]
    lines = [
        f"{about['processor']}, {about['cores']} cores, load {about['load']}.",
        f"Imports alone: {document['imports']['wall_s']:.1f} s, {document['imports']['peak_rss_mb']:.0f} MB.",
        f"Copy bandwidth {memory['copy']:.2f} GB/s, read and written. RTN of one matrix in memory:",
    ]
    return "\n".join(lines) + "\n\n" + _rates_table(memory) + "\n" + _runs_table(document, runs)


def _rates_table(memory: dict[str, Any]) -> str:
    rows = [
        [scales, by, f"{rate:.2f}", f"{rate / memory['copy']:.1%}"]
        for scales, rates in memory["rtn"].items()
        for by, rate in rates.items()
    ]
    return markdown(["scales", "by", "GB/s", "of copy"], rows)


def _runs_table(document: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    columns = ["", "layers", "weights GB", "wall s", "CPU s", "peak RSS MB", "GB/s less imports", "of copy"]
    rows = []
    for run in runs:
        usage, moved = run["usage"], run["read_bytes"] + run["written_bytes"]
        net = usage["wall_s"] - document["imports"]["wall_s"]
        rate = moved / net / 1e9 if net > 0 else float("nan")
        cells = [run["method"], str(run["layers"]), f"{run['read_bytes'] / 1e9:.2f}"]
        cells += [f"{usage['wall_s']:.1f}", f"{usage['cpu_s']:.1f}", f"{usage['peak_rss_mb']:.0f}"]
        rows.append([*cells, f"{rate:.2f}", f"{rate / document['memory']['copy']:.1%}"])
    return markdown(columns, rows)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
