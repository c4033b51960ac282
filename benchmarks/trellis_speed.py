"""How fast trellises are searched, packed and decoded on one thread, beside memcpy.

Normal weights; the best of several rounds in CPU seconds, the rows of a table in turn, so that a busy machine harms all
alike.

    python benchmarks/trellis_speed.py [--rows 1024] [--columns 4096] [--step 0.98] [--rounds 7]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from llmc.formats import rans, trellis_kernel
from llmc.formats.encoded import Encoded
from llmc.formats.trellis import MACHINES, FittedTrellis, encoded

SLAB = 16
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def rates(step: float) -> torch.Tensor:
    """Those of normal weights."""
    at = step * (torch.arange(trellis_kernel.RATES) + torch.tensor([[0.0], [0.5]]))
    bits = 0.5 * at.square() / np.log(2.0)
    slope = (bits[:, -1:] - bits[:, -2:-1]).clamp(min=0.05)
    return (0.45 / 4 * torch.cat([bits, slope], 1)).unsqueeze(0).float().contiguous()


def grid_of(states: int, columns: int, step: float) -> FittedTrellis:
    plane = torch.zeros(columns, dtype=torch.uint8)
    return FittedTrellis(states, step=float(np.float32(step)), step_code=plane, column_class=plane)


def searched(W: torch.Tensor, states: int, step: float, path: str) -> torch.Tensor:
    """Codes [rows, columns] of `W: [columns, rows]`."""
    columns, rows = W.shape
    grid, rate, row_class = grid_of(states, columns, step), rates(step), torch.zeros(rows, dtype=torch.uint8)
    unit, codes = torch.eye(SLAB), torch.empty(columns, rows, dtype=torch.int16)
    for a in range(0, columns, SLAB):
        which = torch.arange(a, min(a + SLAB, columns))
        triangle = unit[: len(which), : len(which)]
        part = trellis_kernel.search(W[which], triangle, grid, which, row_class, rate, torch.bfloat16, path)
        codes[which] = part[0]
    return codes.t().contiguous()


def best(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of the best round of each."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            found[name] = min(found[name], time.thread_time() - begin)
    return found


def search_rows(W: torch.Tensor, step: float, rounds: int) -> None:
    paths = ["baseline", *(path for path in ("avx2", "avx512") if path in rans.paths())]
    print("| states |", " | ".join(f"{path}, M weights/s" for path in paths), "| of plain C |")
    print("| ---: |" + " ---: |" * (len(paths) + 1))
    for states in sorted(MACHINES):
        seconds = best({p: lambda p=p, s=states: searched(W, s, step, p) for p in paths}, rounds)  # type: ignore[misc]
        speeds = [W.numel() / seconds[path] / 1e6 for path in paths]
        print(f"| {states} |", " | ".join(f"{speed:.0f}" for speed in speeds), f"| {speeds[-1] / speeds[0]:.1f} |")


def stream_rows(made: Encoded, rounds: int) -> None:
    n, stream = made.shape[0] * made.shape[1], trellis_kernel.pack(made)
    seconds = best({"pack": lambda: trellis_kernel.pack(made)}, rounds)
    print(f"\n{8 * stream.size / n:.3f} bits per weight; packed with {n / seconds['pack'] / 1e6:.0f} M weights/s\n")
    print("| row | M weights/s | GB/s written | of memcpy |\n| --- | ---: | ---: | ---: |")
    for name, dtype in DTYPES.items():
        out = np.zeros(n * dtype.itemsize, np.uint8)
        source = out.copy()
        runs: dict[str, Callable[[], object]] = {f"{name}: memcpy": lambda o=out, s=source: np.copyto(o, s)}  # type: ignore[misc]
        for path in (path for path in rans.paths() if path != "avx512-search"):
            runs[f"{name}: {path}"] = lambda o=out, d=dtype, p=path: trellis_kernel.decode_into(  # type: ignore[misc]
                stream, made.shape, d, o, threads=1, path=p
            )
        seconds = best(runs, rounds)
        for row, spent in seconds.items():
            share = seconds[f"{name}: memcpy"] / spent
            print(f"| {row} | {n / spent / 1e6:.0f} | {out.size / spent / 1e9:.2f} | {share:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, default in (("rows", int, 1024), ("columns", int, 4096), ("step", float, 0.98), ("rounds", int, 7)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    W = torch.randn(options.columns, options.rows, generator=torch.Generator().manual_seed(0))
    search_rows(W[:256], options.step, options.rounds)
    codes = searched(W, 8, options.step, "auto")
    row_class = torch.zeros(options.rows, dtype=torch.uint8)
    stream_rows(encoded(grid_of(8, options.columns, options.step), codes, row_class, torch.bfloat16), options.rounds)


if __name__ == "__main__":
    main()
