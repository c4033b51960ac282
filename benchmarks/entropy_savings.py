"""What the entropy coder saves of quantized checkpoints, and whether export gives the identical files back.

    python benchmarks/entropy_savings.py MODEL [MODEL ...] [--calibration FILE] [--samples N] [--scratch FOLDER]

Every model is quantized by rtn and gptq to 2, 3, 4 and 8 bits into compressed-tensors and gptq, once plainly and once
with `--entropy`, groups of 128 columns or what divides them. `files` are the weight files with everything in them,
embeddings and norms too; `matrices` are codes, scales and shapes of the quantized matrices; `codes` are the packed
codes alone. `entropy` is the order-0 entropy of each matrix's codes, nothing else counted. `same files`: every file
that `llmc export` makes of the coded folder has the SHA-256 of the plain run's. Rows go to stderr as they are done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, markdown

import llmc
from llmc.encodings.coding.packing import unpack_rows
from llmc.encodings.coding.tensor_coder import entropy
from llmc.errors import LlmcError
from llmc.models.checkpoint import Checkpoint
from llmc.models.config import read_config
from llmc.models.tensors import Stored, stored

METHODS = ("rtn", "gptq")
WIDTHS = (2, 3, 4, 8)
FORMATS = ("compressed-tensors", "gptq")
HEADER = ["model", "method", "format", "bits", "group", "files", "coded", "saved", "of matrices", "of codes",
          "bits per code", "entropy", "same files"]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to quantize one model."""

    model: Path
    method: str
    container: str
    bits: int
    group_size: int | str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--calibration", default="tiny:calibration")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        rows = [row for case in cases(given.models) if (row := measured(case, given, Path(scratch))) is not None]
    if given.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=2))
        return
    print(machine(), "\n")
    print(markdown(HEADER, [[cell(key, row[key]) for key in HEADER] for row in rows]))


def cases(models: list[Path]) -> Iterator[Case]:
    for model in models:
        columns = {target.shape[1] for target in Checkpoint(model).targets if target.kind != "embedding"}
        group = next((g for g in (128, 64, 32) if all(c % g == 0 for c in columns)), "channel")
        for method, container, bits in product(METHODS, FORMATS, WIDTHS):
            yield Case(model, method, container, bits, group)


def measured(case: Case, given: argparse.Namespace, scratch: Path) -> dict[str, Any] | None:
    """The row of a case; None where the container cannot hold it."""
    options: dict[str, Any] = {"method": case.method, "bits": case.bits, "group_size": case.group_size}
    options["formats"] = [case.container]
    if case.method == "gptq":
        options |= {"calibration": given.calibration, "num_samples": given.samples, "sequence_length": 128}
    plain, coded, back = (scratch / name / "model" for name in ("plain", "coded", "back"))
    try:
        llmc.quantize(str(case.model), plain, **options)
    except LlmcError as error:
        print(f"{case}: {error}", file=sys.stderr, flush=True)
        return None
    llmc.quantize(str(case.model), coded, entropy=True, **options)
    llmc.export(coded, back, format=case.container)
    row = {**about(case), **sizes(plain, coded), "same files": "yes" if digests(plain) == digests(back) else "NO"}
    for folder in (plain, coded, back):
        shutil.rmtree(folder)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def about(case: Case) -> dict[str, Any]:
    return {
        "model": case.model.name,
        "method": case.method,
        "format": case.container,
        "bits": case.bits,
        "group": case.group_size,
    }


def sizes(plain: Path, coded: Path) -> dict[str, Any]:
    """Bytes of the weight files, and the share that coding saves of them and of their parts."""
    one, other = (stored(folder, read_config(folder)) for folder in (plain, coded))
    parts = [p.codes.name for p in one.packed.values()]
    whole = [entry.name for p in one.packed.values() for entry in p.parts.values()]
    elements = sum(p.numel for p in one.packed.values())
    return {
        "files": one.weight_bytes,
        "coded": other.weight_bytes,
        "saved": 1 - other.weight_bytes / one.weight_bytes,
        "of matrices": 1 - total(other, whole) / total(one, whole),
        "of codes": 1 - total(other, parts) / total(one, parts),
        "bits per code": 8 * total(other, parts) / elements,
        "entropy": information(one) / elements,
    }


def total(held: Stored, names: list[str]) -> int:
    return sum(held.sizes[name] for name in names)


def information(held: Stored) -> float:
    """Order-0 entropies of the codes of all matrices, in bits."""
    bits = 0.0
    for packed in held.packed.values():
        words = held.read(packed.codes)
        words = words.t().contiguous() if packed.container == "gptq" else words
        codes = unpack_rows(words, packed.bits, packed.shape[1])
        bits += entropy(np.bincount(codes.reshape(-1).numpy())) * codes.numel()
    return bits


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cell(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if key in ("bits per code", "entropy") else f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
