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

from llmc.calibration.statistics import Hessian
from llmc.compressors.feedback import by_activity, prepare
from llmc.compressors.method import Context
from llmc.compressors.trellis import SEGMENTS, Search, Trellis
from llmc.encodings import trellis_search
from llmc.encodings.coding import rans, trellis_stream
from llmc.encodings.encoded import Encoded
from llmc.encodings.trellis import MACHINES, FittedTrellis, encoded

SLAB = 16
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def rates(step: float) -> torch.Tensor:
    """Those of normal weights."""
    at = step * (torch.arange(trellis_search.RATES) + torch.tensor([[0.0], [0.5]]))
    bits = 0.5 * at.square() / np.log(2.0)
    slope = (bits[:, -1:] - bits[:, -2:-1]).clamp(min=0.05)
    return (0.45 / 4 * torch.cat([bits, slope], 1)).unsqueeze(0).float().contiguous()


def grid_of(states: int, columns: int, step: float) -> FittedTrellis:
    plane = torch.zeros(columns, dtype=torch.uint8)
    return FittedTrellis(states, step=float(np.float32(step)), step_code=plane, column_class=plane)


def searched(W: torch.Tensor, states: int, step: float, path: str) -> Callable[[], torch.Tensor]:
    """A function that quantizes `W: [columns, rows]`, errors carried on within slabs: codes [columns, rows]."""
    columns, rows = W.shape
    grid, rate, row_class = grid_of(states, columns, step), rates(step), torch.zeros(rows, dtype=torch.uint8)
    unit = torch.eye(SLAB) + 0.01 * torch.ones(SLAB, SLAB).triu(1)
    codes, values, running = torch.empty(columns, rows, dtype=torch.int16), torch.empty(SLAB, rows), W[:SLAB].clone()

    def run() -> torch.Tensor:
        for a in range(0, columns, SLAB):
            running.copy_(W[a : a + SLAB])
            out = codes[a : a + SLAB], values
            which = torch.arange(a, a + SLAB)
            trellis_search.search(running, unit, grid, which, row_class, rate, out, dtype=torch.bfloat16, path=path)
        return codes

    return run


def best(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of the best round of each."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            found[name] = min(found[name], time.process_time() - begin)
    return found


def search_rows(W: torch.Tensor, step: float, rounds: int) -> None:
    paths = ["baseline", *(path for path in ("avx2", "avx512") if path in rans.paths())]
    print("| states |", " | ".join(f"{path}, M weights/s" for path in paths), "| of plain C |")
    print("| ---: |" + " ---: |" * (len(paths) + 1))
    for states in sorted(MACHINES):
        seconds = best({path: searched(W, states, step, path) for path in paths}, rounds)
        speeds = [W.numel() / seconds[path] / 1e6 for path in paths]
        print(f"| {states} |", " | ".join(f"{speed:.0f}" for speed in speeds), f"| {speeds[-1] / speeds[0]:.1f} |")


def stream_rows(made: Encoded, rounds: int) -> None:
    n, stream = made.shape[0] * made.shape[1], trellis_stream.pack(made)
    seconds = best({"pack": lambda: trellis_stream.pack(made)}, rounds)
    print(f"\n{8 * stream.size / n:.3f} bits per weight; packed with {n / seconds['pack'] / 1e6:.0f} M weights/s\n")
    print("| row | M weights/s | GB/s written | of memcpy |\n| --- | ---: | ---: | ---: |")
    for name, dtype in DTYPES.items():
        out = np.zeros(n * dtype.itemsize, np.uint8)
        source = out.copy()
        runs: dict[str, Callable[[], object]] = {f"{name}: memcpy": lambda o=out, s=source: np.copyto(o, s)}  # type: ignore[misc]
        for path in (path for path in rans.paths() if path != "avx512-search"):
            runs[f"{name}: {path}"] = lambda o=out, d=dtype, p=path: trellis_stream.decode_into(  # type: ignore[misc]
                stream, made.shape, d, o, threads=1, path=p
            )
        seconds = best(runs, rounds)
        for row, spent in seconds.items():
            share = seconds[f"{name}: memcpy"] / spent
            print(f"| {row} | {n / spent / 1e6:.0f} | {out.size / spent / 1e9:.2f} | {share:.2f} |")


def feedback_rows(step_bits: float, rounds: int) -> None:
    """A pass of GPTQ over a matrix; beside it, its products of matrices alone."""
    rows, columns = 4096, 2048
    draw = torch.Generator().manual_seed(0)
    W, X = torch.randn(rows, columns, generator=draw), torch.randn(2 * columns, columns, generator=draw)
    mix = torch.eye(columns) + 0.03 * torch.randn(columns, columns, generator=draw)
    hessian = Hessian(columns)
    hessian.update(X @ mix)
    method, context = Trellis(bits_per_weight=step_bits), Context(torch.float32)
    problem = prepare(hessian, method.damping, by_activity, method.slab, context)
    assert problem is not None
    search = Search(method, W.bfloat16(), problem, context)
    search.run(4, learn=True)
    E = torch.randn(columns, SEGMENTS * 256)

    def products() -> None:
        for _ in range(0, rows, E.shape[1]):
            for slab in problem.slabs:
                _ = slab.carried @ E[: slab.start]

    whole = -(-rows // E.shape[1]) * E.shape[1] / rows  # the last tile is not full
    seconds = best({"products": products, "pass": lambda: search.run(1, learn=False)}, rounds)
    print(f"\n| GPTQ, {rows} x {columns}, 8 states | M weights/s |\n| --- | ---: |")
    print(f"| a pass | {W.numel() / seconds['pass'] / 1e6:.1f} |")
    print(f"| its products alone | {W.numel() * whole / seconds['products'] / 1e6:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, default in (("rows", int, 1024), ("columns", int, 4096), ("step", float, 0.98), ("rounds", int, 7)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    W = torch.randn(options.columns, options.rows, generator=torch.Generator().manual_seed(0))
    search_rows(W[:256], options.step, options.rounds)
    feedback_rows(3.0, options.rounds)
    codes = searched(W, 8, options.step, "auto")().t().contiguous()
    row_class = torch.zeros(options.rows, dtype=torch.uint8)
    stream_rows(encoded(grid_of(8, options.columns, options.step), codes, row_class, torch.bfloat16), options.rounds)


if __name__ == "__main__":
    main()
