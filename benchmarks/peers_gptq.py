"""llmc against llm-compressor and GPTQModel: the same model, tokens and settings; quality, time and memory.

    python benchmarks/peers_gptq.py --model FOLDER --calibration FILE --text FILE [FILE ...] \\
        --peer llm-compressor=PYTHON --peer gptqmodel=PYTHON

PYTHON is the interpreter of an environment that has the tool: their requirements exclude each other. A peer that is not
given, or whose imports fail, is listed as absent. Every tool runs as a process of its own, in turns; one that only does
a tool's imports is measured too. All outputs are then judged by `llmc.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import Usage, machine, measured, own_peak_mb, threads_environment
from peer_rows import OURS, Case, Row, comparisons, report, row_json

DRIVERS = {"llm-compressor": "llm_compressor.py", "gptqmodel": "gptq_model.py"}
OUR_IMPORTS = (
    "import accelerate, llmc.cli.quantize, llmc.compressors.gptq, llmc.artifacts.export, llmc.pipeline.run",
    "import rich.progress, typer",
    "import transformers.conversion_mapping",
    "from transformers import AutoTokenizer",
)
DAMPING = 0.01


@dataclass(frozen=True)
class Runner:
    """Turns cases into processes."""

    options: argparse.Namespace
    pythons: dict[str, str]
    tokens: Path
    scratch: Path

    def run(self, case: Case, out: Path) -> Usage:
        command = self._ours(case, out) if case.tool == OURS else self._theirs(case, out)
        return measured(command, self.scratch / "log", threads_environment(self.options.threads))

    def _ours(self, case: Case, out: Path) -> list[str]:
        options = self.options
        if case.method == "imports":
            lines = [*OUR_IMPORTS, f"import {_modeling_module(options.model)}"]
            return [sys.executable, "-c", "\n".join(lines)]
        command = [sys.executable, "-m", "llmc", "quantize", options.model, "-o", str(out), "--method", case.method]
        command += ["--bits", str(case.bits), "--group-size", str(options.group_size), "--seed", str(options.seed)]
        if case.method == "gptq":
            command += ["--calibration", options.calibration, "--num-samples", str(options.num_samples)]
            command += ["--sequence-length", str(options.sequence_length), "-O", f"damping={DAMPING}"]
        command += ["--act-order"] if case.order == "active" else []
        return command + [word for setting in case.extra for word in ("-O", setting)]

    def _theirs(self, case: Case, out: Path) -> list[str]:
        job = self.scratch / "job.json"
        document = {
            "model": str(Path(self.options.model).resolve()),
            "out": str(out),
            "tokens": str(self.tokens),
            "method": case.method,
            "imports": _modeling_module(self.options.model) if case.method == "imports" else None,
            "bits": case.bits,
            "group_size": self.options.group_size,
            "damping": DAMPING,
            "act_order": case.order == "active",
            "dtype": case.dtype,
        }
        job.write_text(json.dumps(document), encoding="utf-8")
        return [self.pythons[case.tool], str(Path(__file__).parent / "peers" / DRIVERS[case.tool]), str(job)]


def main() -> None:
    options = _options()
    pythons = dict(pair.split("=", 1) for pair in options.peer)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        place = Path(scratch)
        digest = _in_another_process(write_tokens, options, place / "tokens.json")
        runner = Runner(options, pythons, place / "tokens.json", place)
        before = machine()
        absent = _absent(runner)
        tools = [OURS, *(tool for tool in DRIVERS if tool not in absent)]
        rows = [Row(case) for case in _cases(options, tools)]
        _run_all(runner, rows, options.repeats)
        floor = own_peak_mb()  # before anything big is imported here
        _judge_all(rows, place, digest, options)
    document = {
        "machine": {**before, "load_after": machine()["load"]},
        "settings": _settings(options, digest),
        "absent": absent,
        "least_measurable_rss_mb": floor,
        "rows": [row_json(row) for row in rows],
        "comparisons": list(comparisons(rows)),
    }
    print(json.dumps(document, indent=2) if options.json else report(document))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--calibration", required=True, help="a .txt, .jsonl or .parquet file")
    parser.add_argument("--text", required=True, nargs="+", help="texts to judge on")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--num-samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["rtn", "gptq"], choices=["rtn", "gptq"])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=" or ".join(DRIVERS))
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME=VALUE[,...]", help="more rows of llmc gptq"
    )
    parser.add_argument("--repeats", type=int, default=1, help="rounds; every second one runs backwards")
    parser.add_argument("--threads", type=int, help="of numerical libraries, for every tool")
    parser.add_argument("--max-tokens", type=int, help="judge on the first tokens of each text only")
    parser.add_argument("--scratch", help="folder for outputs, which are removed at the end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = [p for p in options.peer if p.split("=", 1)[0] not in DRIVERS or "=" not in p]
    if unknown:
        parser.error(f"--peer takes NAME=PYTHON with NAME one of {', '.join(DRIVERS)}, not {unknown[0]}")
    return options


def _in_another_process(function: Any, *arguments: Any) -> Any:
    """This process stays small: see `measured`."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _modeling_module(model: str) -> str:
    """Where transformers keeps the model's code, which every tool imports when it meets the model."""
    kind = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["model_type"]
    return f"transformers.models.{kind}.modeling_{kind}"


def write_tokens(options: argparse.Namespace, file: Path) -> str:
    """The calibration tokens as llmc draws them, as JSON `[samples][length]`; returns their SHA-256."""
    from transformers import AutoConfig, AutoTokenizer

    from llmc.calibration.data import CalibrationOptions, load_calibration

    wanted = CalibrationOptions(options.calibration, options.num_samples, options.sequence_length, options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    drawn = load_calibration(wanted, tokenizer, AutoConfig.from_pretrained(options.model).vocab_size)
    file.write_text(json.dumps(drawn.token_ids.tolist()), encoding="utf-8")
    return drawn.sha256


def _absent(runner: Runner) -> dict[str, str]:
    """Peer -> why it takes no part."""
    reasons = {tool: "not given" for tool in DRIVERS if tool not in runner.pythons}
    for tool, python in runner.pythons.items():
        if shutil.which(python) is None:
            reasons[tool] = f"{Path(python).name} is no interpreter"
            continue
        usage = runner.run(Case(tool, "imports"), runner.scratch / "none")
        reasons |= {tool: usage.last_line} if usage.code else {}
    return reasons


def _cases(options: argparse.Namespace, tools: Sequence[str]) -> Iterator[Case]:
    """In the order of the first round."""
    for tool in tools:
        yield Case(tool, "imports", 0)
    for bits in options.bits:
        for tool in tools:
            yield from (replace(case, bits=bits) for case in _of_tool(tool, options))


def _of_tool(tool: str, options: argparse.Namespace) -> Iterator[Case]:
    peers_default = "bfloat16" if tool == "llm-compressor" else "float32"
    if "rtn" in options.methods and tool != "gptqmodel":
        yield Case(tool, "rtn", dtype=peers_default)
    if "gptq" not in options.methods:
        return
    yield Case(tool, "gptq")
    yield Case(tool, "gptq", order="active")
    if peers_default != "float32":
        yield Case(tool, "gptq", dtype=peers_default)
    if tool == OURS:
        yield from (Case(tool, "gptq", extra=tuple(also.split(","))) for also in options.also)


def _run_all(runner: Runner, rows: Sequence[Row], rounds: int) -> None:
    """Forwards, backwards, forwards ...: a drift of the machine hits all alike. The last output of each case stays."""
    for number in range(rounds):
        for index in range(len(rows)) if number % 2 == 0 else reversed(range(len(rows))):
            row = rows[index]
            out = runner.scratch / f"case-{index}"
            if row.failure is not None:
                continue
            _remove(out)
            _say(f"round {number + 1}: {row.case.label} {row.case.bits or ''}")
            row.usages.append(runner.run(row.case, out))


def _judge_all(rows: Sequence[Row], place: Path, digest: str, options: argparse.Namespace) -> None:
    from judging import judge, set_threads

    set_threads(options.threads)
    for index, row in enumerate(rows):
        if row.failure is not None or row.case.method == "imports":
            continue
        folder = place / f"case-{index}"
        row.weight_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        _check_tokens(folder, row.case, digest)
        for text in options.text:
            _say(f"judge {row.case.label} {row.case.bits} on {Path(text).name}")
            row.reports[Path(text).name] = judge(folder, options.model, text, options.max_tokens)


def _check_tokens(folder: Path, case: Case, digest: str) -> None:
    if case.tool == OURS and case.method == "gptq":
        used = json.loads((folder / "llmc.json").read_text(encoding="utf-8"))["calibration"]["sha256"]
        if used != digest:
            raise RuntimeError(f"llmc calibrated on other tokens ({used}) than the peers ({digest})")


def _settings(options: argparse.Namespace, digest: str) -> dict[str, Any]:
    names = {name: Path(getattr(options, name)).name for name in ("model", "calibration")}
    kept = ("bits", "group_size", "num_samples", "sequence_length", "seed", "repeats", "threads", "max_tokens")
    texts = [Path(text).name for text in options.text]
    values = {name: getattr(options, name) for name in kept}
    return {**names, **values, "text": texts, "damping": DAMPING, "symmetric": True, "tokens_sha256": digest}


def _remove(folder: Path) -> None:
    for name in (folder.name, f"{folder.name}.llmc-partial"):
        shutil.rmtree(folder.parent / name, ignore_errors=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
