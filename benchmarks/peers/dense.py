"""What every driver leaves behind: the tool's result as a plain float32 model, its own forward, and its bytes.

A job (a dict, read from JSON) names the original `model`, the `tokens` file, and the places of all this: `dense` (a
folder), `forward` (a safetensors file) and `result` (a JSON file). Runs in the tools' environments, where llmc is not.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CHECKED = 128
"""Tokens of the first calibration sequence that the tool's own forward is asked for."""

BLOCK = re.compile(r"\.(self_attn|mlp)\.[a-z]+_proj\b")
EMBEDDING = re.compile(r"\b(embed_tokens|lm_head)\b")
KEPT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def read_job() -> dict[str, Any]:
    """The job named on the command line."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def calibration(job: Mapping[str, Any]) -> list[list[int]]:
    """The tokens every tool calibrates on, `[samples][length]`."""
    return json.loads(Path(job["tokens"]).read_text(encoding="utf-8"))


def original(job: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors of the original, in float32."""
    files = sorted(Path(job["model"]).glob("*.safetensors"))
    return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}


def forward_of(model: Any, job: Mapping[str, Any]) -> torch.Tensor:
    """Logits of a transformers model on the checked tokens, float32 `[CHECKED, vocabulary]`."""
    with torch.no_grad():
        return model(torch.tensor([calibration(job)[0][:CHECKED]])).logits[0].float()


def write(
    job: Mapping[str, Any],
    decoded: Mapping[str, torch.Tensor],
    logits: torch.Tensor,
    sizes: Mapping[str, int],
    packages: Iterable[str],
    notes: str = "",
) -> None:
    """Write the dense folder, the logits and the result.

    Args:
        decoded: name in the original -> weights the tool decodes to; what is not there stays as it was.
        logits: of the tool's own forward, `[CHECKED, vocabulary]`.
        sizes: see `safetensors_sizes`.
        packages: whose versions are worth knowing.
        notes: what a reader has to know beside the figures.

    Raises:
        ValueError: a tensor the original does not have, or of another shape.
    """
    tensors = original(job)
    for name, weight in decoded.items():
        if name not in tensors or tensors[name].shape != weight.shape:
            raise ValueError(f"the original has no {name} of shape {tuple(weight.shape)}")
        tensors[name] = weight.detach().float().contiguous()
    folder = Path(job["dense"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in KEPT:
        if (Path(job["model"]) / name).exists():
            shutil.copyfile(Path(job["model"]) / name, folder / name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_file({"logits": logits.contiguous()}, job["forward"])
    document = {**sizes, "versions": versions(packages), "notes": notes}
    Path(job["result"]).write_text(json.dumps(document, indent=2), encoding="utf-8")


def store_as_original(folder: Path, model: Path) -> None:
    """Tensors of the original that are in `folder` unchanged get its dtype again."""
    before: dict[str, torch.Tensor] = {
        name: tensor for file in model.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        for name in tensors.keys() & before.keys():
            if torch.equal(before[name].to(tensors[name].dtype), tensors[name]):
                tensors[name] = before[name]
        save_file(tensors, file, {"format": "pt"})


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> version; those that are not there are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def safetensors_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the weight files (headers included), of the block matrices with params, and of embedding and head."""
    sizes = {"weight_bytes": 0, "block_bytes": 0, "embedding_bytes": 0}
    for file in sorted(folder.glob("*.safetensors")):
        sizes["weight_bytes"] += file.stat().st_size
        for name, (begin, end) in _spans(file).items():
            sizes["block_bytes"] += (end - begin) if BLOCK.search(name) else 0
            sizes["embedding_bytes"] += (end - begin) if EMBEDDING.search(name) else 0
    return sizes


def _spans(file: Path) -> dict[str, tuple[int, int]]:
    """Tensor -> begin and end of its data, from the header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return {name: tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"}
