"""Kill a run at random moments and go on: `python benchmarks/kill_resume.py MODEL --calibration FILE --kills 20`.

An uninterrupted run gives the reference. Then the same command is started and killed (SIGKILL) after a random part of
the time that run took, until as many kills as asked for have hit; after each the command is run to its end, and every
file must be the same. Then single bits of the artifact are flipped, one at a time, and `llmc verify` must report each.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a run at random moments and go on.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--num-samples", default="16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        command = [sys.executable, "-m", "llmc", "quantize", str(options.model), "--method", "gptq"]
        command += ["--calibration", str(options.calibration), "--num-samples", options.num_samples]
        started = time.monotonic()
        subprocess.run([*command, "-o", str(place / "whole" / "out")], check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - started
        reference = digests(place / "whole" / "out")
        same = sum(one_kill(command, place, draw.random() * took) == reference for _ in range(options.kills))
        print(f"{same} of {options.kills} killed and resumed runs gave the same {len(reference)} files")
        reported = count_reported(place / "whole" / "out", options.flips, draw) if options.flips else 0
        print(f"{reported} of {options.flips} single-bit flips were reported by verify")
    return 0 if same == options.kills and reported == options.flips else 1


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def one_kill(command: list[str], place: Path, after: float) -> dict[str, str]:
    """Kill the run after so many seconds, look that nothing seems finished, run it to its end; its digests."""
    shutil.rmtree(place / "cut", ignore_errors=True)
    out = place / "cut" / "out"
    full = [*command, "-o", str(out)]
    process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            print(f"killed after {after:.2f} s, just when it had finished")
    if not out.exists():
        subprocess.run(full, check=True, stdout=subprocess.DEVNULL)
    return digests(out)


def count_reported(folder: Path, flips: int, draw: random.Random) -> int:
    """How many of `flips` single-bit flips, anywhere in the folder's bytes, `verify` reports."""
    from llmc import verify

    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in files]
    reported = 0
    for number in range(flips):
        # Every other flip by bytes (nearly all in weights), the others by file, so that small files are hit too.
        path = draw.choices(files, sizes)[0] if number % 2 else draw.choice(files)
        at, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        flip(path, at, bit)
        problems = verify(folder).problems
        flip(path, at, bit)
        named = any(path.name in problem for problem in problems)
        reported += named
        if not named:
            print(f"missed: {path.relative_to(folder)} byte {at} bit {bit}: {problems[:1]}")
    return reported


def flip(path: Path, at: int, bit: int) -> None:
    """Flip one bit of a file in place."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))


if __name__ == "__main__":
    sys.exit(main())
