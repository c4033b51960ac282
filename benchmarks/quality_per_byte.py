"""KL and perplexity against file bytes: ours, and every peer that installs, on the same model and calibration tokens.

    python benchmarks/quality_per_byte.py --model FOLDER --calibration FILE --text FILE [FILE ...] --cache FOLDER \\
        --peer llm-compressor=PYTHON --peer gptqmodel=PYTHON ... --out benchmarks/results/quality-per-byte

PYTHON is the interpreter of an environment that has the tool; one that is not given or does not have it is named in
one line and left out. Every setting (see `quality_settings.py`) leaves `CACHE/SETTING/`: `own`, what the tool wrote;
`dense`, the same decoded to float32; `forward.safetensors`, what the tool's own forward says; `result.json`. What is
there is not made again unless what it depends on changed. All are judged by `llmc.evaluate`; a table and a plot are
written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import machine, measured, threads_environment
from peers_gptq import _in_another_process as in_another_process
from peers_gptq import write_tokens
from quality_settings import OUR_SETTINGS, OURS, PEERS, Setting


@dataclass(frozen=True)
class Maker:
    """Runs settings; what they leave in the cache stays there."""

    options: argparse.Namespace
    pythons: dict[str, str]
    digests: dict[str, str]

    def folder(self, setting: Setting) -> Path:
        return Path(self.options.cache).resolve() / setting.slug

    def make(self, setting: Setting) -> dict[str, Any]:
        """The setting's result; `failure` says in one line why there is none."""
        folder = self.folder(setting)
        stored = _read(folder / "result.json")
        if stored.get("key") == self._key(setting) and not (self.options.retry and "failure" in stored):
            return stored
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _say(f"make {setting.label}")
        command = self._ours(setting) if setting.tool == OURS else self._theirs(setting)
        environment = threads_environment(self.options.threads)
        if setting.tool != OURS:
            environment["PYTHONPATH"] = str(Path(__file__).parent)  # the drivers share a module
        usage = measured(command, folder / "log", environment)
        result = _read(folder / "result.json") if usage.code == 0 else {"failure": _why(folder / "log")}
        if setting.tool == OURS and usage.code == 0:
            result = self._sizes(setting)
        result |= {"key": self._key(setting), "cpu_s": usage.cpu_s, "wall_s": usage.wall_s}
        (folder / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
        return result

    def made(self, setting: Setting) -> bool:
        """Whether the cache holds it with figures on all texts, or how it failed."""
        stored, judged = (_read(self.folder(setting) / name) for name in ("result.json", "judged.json"))
        complete = judged.get("key") == stored.get("key") and len(judged.get("texts", ())) >= len(self.options.text)
        return stored.get("key") == self._key(setting) and ("failure" in stored or complete)

    def _key(self, setting: Setting) -> str:
        what = json.dumps([setting.label, dict(setting.options), self.digests], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()

    def _ours(self, setting: Setting) -> list[str]:
        options, out = self.options, self.folder(setting) / "own"
        if "stages" in setting.options:
            recipe = self.folder(setting) / "recipe.yaml"
            recipe.write_text(json.dumps(self._recipe(setting)), encoding="utf-8")  # JSON is YAML
            return [sys.executable, "-m", "llmc", "run", str(recipe), "-o", str(out)]
        command = [sys.executable, "-m", "llmc", "quantize", options.model, "-o", str(out), *setting.options["words"]]
        command += ["--calibration", options.calibration, "--num-samples", str(options.num_samples)]
        return [*command, "--sequence-length", str(options.sequence_length), "--seed", str(options.seed)]

    def _recipe(self, setting: Setting) -> dict[str, Any]:
        options = self.options
        drawn = {"source": str(Path(options.calibration).resolve()), "seed": options.seed}
        drawn |= {"num_samples": options.num_samples, "sequence_length": options.sequence_length}
        model = str(Path(options.model).resolve())
        return {"model": model, "stages": list(setting.options["stages"]), "calibration": drawn}

    def _sizes(self, setting: Setting) -> dict[str, Any]:
        return in_another_process(our_result, self.folder(setting) / "own", self.digests["tokens"])

    def _theirs(self, setting: Setting) -> list[str]:
        folder = self.folder(setting)
        places = {"out": "own", "dense": "dense", "forward": "forward.safetensors", "result": "result.json"}
        job = {
            **setting.options,
            **{name: str(folder / place) for name, place in places.items()},
            "model": str(Path(self.options.model).resolve()),
            "tokens": str(Path(self.options.cache).resolve() / "tokens.json"),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        driver = Path(__file__).parent / "peers" / PEERS[setting.tool].driver
        return [self.pythons[setting.tool], str(driver), str(folder / "job.json")]


def our_result(folder: Path, digest: str) -> dict[str, Any]:
    """Sizes and version of what llmc wrote. Raises RuntimeError when it calibrated on other tokens than the peers."""
    from peers.dense import safetensors_sizes

    import llmc

    calibration = _read(folder / "llmc.json").get("calibration")
    if calibration and calibration["sha256"] != digest:
        raise RuntimeError(f"llmc calibrated on other tokens ({calibration['sha256']}) than the peers ({digest})")
    return {**safetensors_sizes(folder), "versions": {"llmc": llmc.__version__}, "notes": ""}


def main() -> None:
    options = _options()
    pythons = dict(pair.split("=", 1) for pair in options.peer)
    cache = Path(options.cache)
    cache.mkdir(parents=True, exist_ok=True)
    before = machine()
    fresh = cache / f"tokens-{os.getpid()}.json"
    digest = in_another_process(write_tokens, options, fresh)
    fresh.replace(cache / "tokens.json")  # at once: another run may be reading it
    weights = {file.name: _sha256(file) for file in sorted(Path(options.model).glob("*.safetensors"))}
    maker = Maker(options, pythons, {"tokens": digest, **weights})
    absent = _absent(pythons, options.only)
    settings = [s for s in _settings(options.only) if s.tool not in absent]
    if options.made:
        settings = [setting for setting in settings if maker.made(setting)]
    from quality_judging import new_judge
    from quality_tables import plot, report

    judge = new_judge(options)
    rows = [judge.row(setting, maker.make(setting), maker.folder(setting)) for setting in settings]
    document = {
        "machine": {**before, "load_after": machine()["load"]},
        "settings": _conditions(options, digest),
        "absent": absent,
        "rows": [row.to_json() for row in rows],
    }
    print(report(document, rows))
    if options.out:
        out = Path(options.out)
        out.with_suffix(".md").write_text(_page(out.with_suffix(".md"), report(document, rows)), encoding="utf-8")
        plot(rows, [Path(text).name for text in options.text], out.with_suffix(".svg"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder of a model with the names of Llama")
    parser.add_argument("--calibration", required=True, help="a .txt, .jsonl or .parquet file")
    parser.add_argument("--text", required=True, nargs="+", help="texts to judge on")
    parser.add_argument("--cache", required=True, help="folder where what the tools made stays")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=" or ".join(PEERS))
    parser.add_argument("--only", nargs="+", choices=[OURS, *PEERS], help="leave out all other tools")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=32768, help="judge on the first tokens of each text only")
    parser.add_argument("--threads", type=int, default=1, help="of numerical libraries, for every tool")
    parser.add_argument("--made", action="store_true", help="make and judge nothing: show what the cache holds")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument("--out", help="write OUT.md and OUT.svg; text above the first heading `## ` of OUT.md stays")
    options = parser.parse_args()
    unknown = [p for p in options.peer if p.split("=", 1)[0] not in PEERS or "=" not in p]
    if unknown:
        parser.error(f"--peer takes NAME=PYTHON with NAME one of {', '.join(PEERS)}, not {unknown[0]}")
    return options


def _settings(only: Sequence[str] | None) -> list[Setting]:
    every = [*OUR_SETTINGS, *(setting for peer in PEERS.values() for setting in peer.settings)]
    return [setting for setting in every if only is None or setting.tool in only]


def _absent(pythons: dict[str, str], only: Sequence[str] | None) -> dict[str, str]:
    """Peer -> why it takes no part."""
    reasons = {}
    for tool, peer in PEERS.items():
        look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{peer.module}') is None)"
        if only is not None and tool not in only:
            continue
        if tool not in pythons or shutil.which(pythons[tool]) is None:
            reasons[tool] = "no interpreter given" if tool not in pythons else "its interpreter is not there"
        elif subprocess.run([pythons[tool], "-c", look], check=False).returncode:
            reasons[tool] = f"no {peer.module} in its environment"
        if tool in reasons:
            _say(f"{tool} is left out: {reasons[tool]}")
    return reasons


def _conditions(options: argparse.Namespace, digest: str) -> dict[str, Any]:
    names = {name: Path(getattr(options, name)).name for name in ("model", "calibration")}
    kept = ("num_samples", "sequence_length", "seed", "max_tokens", "threads")
    values = {name: getattr(options, name) for name in kept}
    return {**names, **values, "text": [Path(text).name for text in options.text], "tokens_sha256": digest}


def _page(file: Path, tables: str) -> str:
    """What a person wrote above the tables stays."""
    old = file.read_text(encoding="utf-8") if file.exists() else "# Quality per byte\n\n"
    return old.split("\n## ", 1)[0].rstrip() + "\n\n" + tables.strip() + "\n"


def _why(log: Path) -> str:
    """The last line a tool printed that says something."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    errors = [line.strip() for line in lines if "Error" in line]
    return (errors or [line.strip() for line in lines if line.strip()] or ["it said nothing"])[-1][:200]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
