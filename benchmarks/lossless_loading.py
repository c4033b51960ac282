"""Loading a coded model beside the dense one: seconds from the page cache and from the disk, and memory.

    python benchmarks/lossless_loading.py DENSE CODED [--rounds 3] [--threads 1]

Each measurement is a process of its own, in turns; time counts from after the imports. "cold" drops the weight files
from the page cache before (`posix_fadvise`). "resident" keeps the weights coded; its forward pass of one token is timed
beside the dense model's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import machine, markdown, threads_environment

CHILD = """
import json, resource, sys, time
import torch, llmc, llmc.hf
from llmc.models.classes import model_class
path, resident = sys.argv[1:]
kind = model_class(__import__("pathlib").Path(path))
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
model = llmc.load(path, resident=resident)
seconds = time.perf_counter() - begin
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
held = now()
ids = torch.tensor([[5]])
with torch.no_grad():
    model(input_ids=ids)
    begin = time.perf_counter()
    out = model(input_ids=ids)[0]
    token = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
memory = model.llmc_memory.to_json() if resident == "compressed" else {}
print(json.dumps({"seconds": seconds, "token": token, "held": held - 1024 * base, "peak": 1024 * (peak - base),
                  "sum": float(out.double().sum()), **memory}))
"""


def drop(folder: Path) -> None:
    """Take the weight files out of the page cache."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def once(folder: Path, resident: str, cold: bool, threads: int) -> dict[str, Any]:
    if cold:
        drop(folder)
    command = [sys.executable, "-c", CHILD, str(folder), resident]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=threads_environment(threads))
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("coded", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; llmc decodes with all cores")
    options = parser.parse_args()
    cases = [("dense", options.dense, "dense"), ("coded", options.coded, "dense")]
    cases.append(("coded, resident", options.coded, "compressed"))
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for cold in (False, True):
            for name, folder, resident in cases:
                found.setdefault((name, cold), []).append(once(folder, resident, cold, options.threads))
    print(machine(), "\n")
    assert len({run["sum"] for runs in found.values() for run in runs}) == 1, "outputs differ"
    rows = []
    for (name, cold), runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        sizes = [f"{middle[key] / 1e6:,.0f}" for key in ("held", "peak")]
        coded = [f"{middle.get(key, 0) / 1e6:,.0f}" if key in middle else "" for key in ("compressed", "decoded")]
        seconds = [f"{middle['seconds']:.2f}", f"{1000 * middle['token']:.0f}"]
        rows.append([name, "disk" if cold else "page cache", *seconds, *sizes, *coded])
    columns = ["weights", "from", "load s", "forward of a token, ms", "MB held", "MB at most", "of it coded", "a block"]
    print(markdown(columns, rows))


if __name__ == "__main__":
    main()
