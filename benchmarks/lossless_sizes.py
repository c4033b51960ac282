"""Bits per weight of llmc's lossless modes beside their limits and other tools.

    python benchmarks/lossless_sizes.py MODEL [MODEL ...] [--zipnn PYTHON] [--scratch FOLDER]

Everything is counted: llmc's column is the weight files it wrote. Limits are order-0 entropies of all tensors. zstd and
xz see the weight file, or the 64 MB in the middle of a larger one. The DFloat11 column is a size model of its published
layout (Huffman codes of the exponents capped at 32 bits, 5 bits for each 64 coded bits, 4 bytes for each 4096 coded
bytes, tables of 256 bytes), which holds bf16 alone. ZipNN runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from measuring import machine, markdown

import llmc
from llmc.encodings.coding.tensor_coder import MODES, entropy
from llmc.files.header import TensorEntry
from llmc.files.safetensors import load, read_folder

SLICE = 64 << 20
LARGE = 1_000_000
PEER = """
import sys, zipnn, json
total = 0
for line in sys.stdin:
    path, start, stop, dtype = json.loads(line)
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    total += len(zipnn.ZipNN(bytearray_dtype=dtype, input_format="byte", threads=1).compress(data)) if data else 0
print(total)
"""


@dataclass
class Limits:
    """Order-0 entropies of large tensors, in bits."""

    weights: int = 0
    exponent: float = 0.0  # exponents coded, everything else raw
    joint: float = 0.0  # sign, exponent, mantissa given the exponent
    huffman: float = 0.0  # the DFloat11 layout
    names: set[str] = field(default_factory=set)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--zipnn", help="the interpreter of an environment that has zipnn")
    parser.add_argument("--scratch", help="folder for outputs, which are removed at the end")
    options = parser.parse_args()
    print(machine(), "\n")
    rows, large = [], []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for model in options.models:
            whole, above = measure(model, Path(scratch), options.zipnn)
            rows.append([model.name, *whole])
            large.append([model.name, *above])
    columns = ["model", "balanced", "small", "fast", "ZipNN", "zstd -19", "xz -9", "groups gain"]
    print("Bits per weight, whole weight files\n")
    print(markdown(columns, rows))
    columns = ["model", "H(exponent) + raw", "balanced", "above", "H(joint)", "small", "above", "DFloat11 layout"]
    print(f"\nBits per weight, tensors of more than {LARGE:,} weights\n")
    print(markdown(columns, large))


def measure(model: Path, scratch: Path, zipnn: str | None) -> tuple[list[str], list[str]]:
    """The cells of a model in both tables."""
    entries = read_folder(model)
    elements = sum(entry.numel for entry in entries.values())
    limits = limits_of(entries)
    whole, above = [], []
    gain = 0.0
    for mode in MODES:
        result = llmc.lossless(model, scratch / "out", mode=mode, force=True)
        whole.append(f"{result.bits_per_weight:.3f}")
        bits = 8 * sum(row["stop"] - row["start"] for row in result.rows if row["name"] in limits.names)
        shutil.rmtree(scratch / "out")
        if mode == "fast":
            continue
        limit = limits.exponent if mode == "balanced" else limits.joint
        numbers = [f"{x / limits.weights:.4f}" for x in (limit, bits)] if limits.weights else ["", ""]
        above += [*numbers, f"{bits / limit - 1:+.3%}" if limits.weights else ""]
        gain = 8 * sum(row["gained_bytes"] for row in result.rows) / elements
    whole.append(zipnn_bits(entries, elements, zipnn) if zipnn else "")
    files = sorted({entry.file for entry in entries.values()}, key=lambda file: file.stat().st_size)
    width = 8 * sum(entry.nbytes for entry in entries.values()) / elements
    whole += [tool_bits(command, files[-1], scratch, width) for command in (["zstd", "-19"], ["xz", "-9"])]
    above.append(f"{limits.huffman / limits.weights:.4f}" if limits.huffman else "")
    return [*whole, f"{gain:.4f}"], above


def limits_of(entries: dict[str, TensorEntry]) -> Limits:
    limits = Limits()
    for entry in entries.values():
        size = entry.dtype.itemsize
        if entry.numel <= LARGE or not entry.dtype.is_floating_point or size not in (2, 4):
            continue
        numbers = load(entry).view(torch.int32 if size == 4 else torch.int16).numpy()
        words = numbers.reshape(-1).view(f"<u{size}")
        half = (words >> 16).astype(np.uint16) if size == 4 else words  # the mantissa of fp32 below 7 bits is noise
        exponents = np.bincount(half >> 7 & 0xFF, minlength=256)
        low = 8 * (size - 2)
        limits.weights += entry.numel
        limits.names.add(entry.name)
        limits.exponent += entry.numel * (entropy(exponents) + 8 + low)
        limits.joint += entry.numel * (entropy(np.bincount(half >> 15)) + entropy(np.bincount(half & 0x7FFF)) + low)
        limits.huffman += dfloat11_bits(exponents) if size == 2 else 0.0
    return limits


def dfloat11_bits(counts: np.ndarray) -> float:
    """Bits of a tensor in the layout of DFloat11."""
    lengths = huffman_lengths(counts[counts > 0])
    coded = float((lengths * counts[counts > 0]).sum())
    tables = 1 + sum(len({int(n) for n in lengths if n > 8 * k}) > 0 for k in range(4))
    return 8.0 * counts.sum() + coded + 5 * math.ceil(coded / 64) + 32 * math.ceil(coded / 32768) + 8 * 256 * tables


def huffman_lengths(counts: np.ndarray) -> np.ndarray:
    """Code lengths of a Huffman code."""
    if counts.size == 1:
        return np.ones(1)
    heap = [(int(count), i, [i]) for i, count in enumerate(counts)]
    heapq.heapify(heap)
    lengths = np.zeros(counts.size)
    while len(heap) > 1:
        (a, i, one), (b, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[one + other] += 1
        heapq.heappush(heap, (a + b, i, one + other))
    return lengths


def zipnn_bits(entries: dict[str, TensorEntry], elements: int, python: str) -> str:
    """Every tensor as bytes of its dtype through ZipNN."""
    known = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}
    lines = [
        json.dumps([str(e.file), e.start, e.stop, known.get(str(e.dtype).removeprefix("torch."), "bfloat16")])
        for e in entries.values()
    ]
    done = subprocess.run([python, "-c", PEER], input="\n".join(lines), capture_output=True, text=True, check=True)
    named = sum(len(entry.name) + 60 for entry in entries.values())  # as in a safetensors header
    return f"{8 * (int(done.stdout.split()[-1]) + named) / elements:.3f}"


def tool_bits(command: list[str], file: Path, scratch: Path, width: float) -> str:
    """Bits per weight of a command line compressor on the file, or on the middle of it."""
    if shutil.which(command[0]) is None:
        return ""
    size = file.stat().st_size
    with file.open("rb") as source:
        source.seek(max(0, (size - SLICE) // 2) // 4 * 4)
        data = source.read(SLICE)
    (scratch / "slice").write_bytes(data)
    packed = sum(len(piece) for piece in _output([*command, "-c", str(scratch / "slice")]))
    return f"{width * packed / len(data):.3f}"


def _output(command: list[str]) -> Iterator[bytes]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(1 << 20):
            yield piece


if __name__ == "__main__":
    main()
