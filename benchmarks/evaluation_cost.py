"""What the second candidate costs when the original is kept, and whether memory grows with the text.

    python benchmarks/evaluation_cost.py --model MODEL --candidate A --candidate B --text FILE

Every evaluation is a process of its own, once with an empty cache and once with what the first one left there, and once
without a cache at all. CPU seconds are given with imports and without them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from measuring import Usage, machine, measured

IMPORTS = "import llmc.pipeline.compare; from transformers import AutoModelForCausalLM, AutoTokenizer"


def evaluated(options: argparse.Namespace, folder: str, tokens: int, cache: Path | None, scratch: Path) -> Usage:
    """One `llmc eval`."""
    kept = ["--cache-size", "0"] if cache is None else ["--cache", str(cache)]
    command = [sys.executable, "-m", "llmc", "eval", folder, "--against", options.model, "--text", options.text]
    usage = measured([*command, "--max-tokens", str(tokens), *kept, "--json"], scratch / "log")
    if usage.code:
        raise SystemExit(f"{folder}: {usage.last_line}")
    return usage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--candidate", action="append", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, load {about['load']}.")
    print(f"Threads: {os.environ.get('OMP_NUM_THREADS', 'default')}.\n")
    print("| tokens | run | CPU s | without imports | of the first | peak MB |")
    print("|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        imports = [measured([sys.executable, "-c", IMPORTS], scratch / "log") for _ in range(options.repeats)]
        base = statistics.median(each.cpu_s for each in imports)
        for tokens in options.tokens:
            rows: dict[str, list[Usage]] = {"first, empty cache": [], "second": [], "no cache": []}
            for repeat in range(options.repeats):
                cache = scratch / f"cache-{tokens}-{repeat}"
                first, *others = options.candidate
                rows["first, empty cache"].append(evaluated(options, first, tokens, cache, scratch))
                rows["second"] += [evaluated(options, other, tokens, cache, scratch) for other in others]
                rows["no cache"].append(evaluated(options, first, tokens, None, scratch))
            whole = statistics.median(each.cpu_s for each in rows["first, empty cache"]) - base
            for name, found in rows.items():
                cpu, peak = (
                    statistics.median(values) for values in zip(*((u.cpu_s, u.peak_rss_mb) for u in found), strict=True)
                )
                print(
                    f"| {tokens:,} | {name} | {cpu:.1f} | {cpu - base:.1f} | {(cpu - base) / whole:.0%} | {peak:,.0f} |"
                )
    print(f"\nimports alone: {base:.1f} CPU s")


if __name__ == "__main__":
    main()
