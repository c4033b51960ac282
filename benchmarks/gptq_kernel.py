"""How fast the quantizers are on one thread, beside what the machine could do at most.

RTN is compared with a copy of the same bytes, GPTQ with its floating point operations at the speed of a float32 matrix
product, all measured in the same run, interleaved; the best of several counts, in CPU seconds of this process.

    python benchmarks/gptq_kernel.py [--rows 4096] [--columns 4096] [--repeats 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from llmc.calibration.statistics import Hessian
from llmc.compressors.cholesky import factor_upper
from llmc.compressors.gptq import Gptq
from llmc.compressors.method import Context
from llmc.compressors.rtn import Rtn
from llmc.threads import run_single

PRODUCT = 2048  # size of the reference matrix product
TOKENS = 512


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call on one thread."""

    def timed() -> float:
        start = time.thread_time()
        work()
        return time.thread_time() - start

    return run_single(timed)


def best(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best time of each, taken in turns so that all meet the same disturbances."""
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: min(one[name] for one in rounds) for name in works}


def context() -> Context:
    return Context(torch.float32, scale_dtypes=("bfloat16",))


def inputs(columns: int, count: int) -> torch.Tensor:
    """Correlated activations `[count, columns]`."""
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(count, 64, generator=draw) @ torch.randn(64, columns, generator=draw)
    return torch.randn(count, columns, generator=draw) + 0.3 * shared


def measure(rows: int, columns: int, repeats: int) -> dict[str, float]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).mul_(0.02).bfloat16()
    target = torch.empty_like(weight)
    hessian = Hessian(columns)
    for x in torch.split(inputs(columns, columns + 512), TOKENS):
        hessian.update(x)
    tokens, square, H = inputs(columns, TOKENS), torch.randn(PRODUCT, PRODUCT), hessian.mean()
    H.diagonal().add_(0.01 * H.diagonal().mean())
    quick: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(weight),
        "product": lambda: square @ square,
        "rtn absmax": lambda: Rtn(scales="absmax")(weight, {}, context()),
    }
    slow: dict[str, Callable[[], object]] = {
        "product": lambda: square @ square,
        "rtn mse": lambda: Rtn(scales="mse")(weight, {}, context()),
        "gptq absmax": lambda: Gptq(scales="absmax")(weight, {"hessian": hessian}, context()),
        "gptq mse": lambda: Gptq(scales="mse")(weight, {"hessian": hessian}, context()),
        "factorization": lambda: factor_upper(H.clone()),
        "library factorization": lambda: torch.linalg.cholesky_ex(H),
        "Hessian of 512 tokens": lambda: Hessian.partial(tokens),
    }
    first, second = best(quick, 4 * repeats), best(slow, repeats)
    return {**first, **second, "product": min(first["product"], second["product"])}


def operations(rows: int, columns: int) -> dict[str, float]:
    """Multiplications and additions that cannot be avoided, halves of symmetric and triangular matrices left out."""
    factor = columns**3 / 3
    solve = 2 * rows * columns**2  # errors carried on, and the norm of the outputs
    return {
        "gptq absmax": factor + solve,
        "gptq mse": factor + solve,
        "factorization": factor,
        "library factorization": factor,
        "Hessian of 512 tokens": TOKENS * columns * (columns + 1),
    }


def report(rows: int, columns: int, times: dict[str, float]) -> dict[str, Any]:
    peak = 2 * PRODUCT**3 / times["product"]
    needed = operations(rows, columns)
    out: dict[str, Any] = {
        "shape": [rows, columns],
        "gflops_of_product": peak / 1e9,
        "copy_gb_per_s": 4 * rows * columns / times["copy"] / 1e9,  # read and written
        "rows": {},
    }
    for name, time_s in times.items():
        if name in ("copy", "product"):
            continue
        row = {"seconds": time_s, "megaweights_per_s": rows * columns / time_s / 1e6}
        if name in needed:
            row["share_of_product_speed"] = needed[name] / peak / time_s
        else:
            row["share_of_copy_speed"] = times["copy"] / time_s
        out["rows"][name] = row
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("rows", 4096), ("columns", 4096), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = report(given.rows, given.columns, measure(given.rows, given.columns, given.repeats))
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{given.rows} x {given.columns}, W4 g128 from bfloat16, one thread, best CPU time of {given.repeats}")
    print(f"copy {found['copy_gb_per_s']:.1f} GB/s, float32 product {found['gflops_of_product']:.0f} GFLOP/s")
    for name, row in found["rows"].items():
        shares = [f"{100 * v:5.1f} % of the {k.split('_')[2]}'s speed" for k, v in row.items() if k.startswith("share")]
        print(f"{name:22} {row['seconds']:7.3f} s {row['megaweights_per_s']:8.1f} M weights/s  {shares[0]}")


if __name__ == "__main__":
    main()
