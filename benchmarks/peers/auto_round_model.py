"""Quantize one model with AutoRound, on given tokens. Runs in that tool's own environment, where llmc is not.

It computes in float32, which is several times faster on processors without bfloat16 instructions; what it left as it
was is then stored in the original's type again, without loss. Written in its own format and opened again by
transformers, whose layer of AutoRound decodes the file.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peers.dense import calibration, forward_of, read_job, safetensors_sizes, store_as_original, write

BATCH = 8


def main() -> None:
    job = read_job()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto_round: Any = import_module("auto_round").AutoRound  # by name: not installed where types are checked
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    ids = torch.tensor(calibration(job))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in torch.split(ids, BATCH)]
    tool = auto_round(
        model,
        AutoTokenizer.from_pretrained(job["model"]),
        bits=job["bits"],
        group_size=job["group_size"],
        sym=True,
        iters=job["iters"],
        lr=job["lr"],
        dataset=batches,
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=BATCH,
        device_map="cpu",
        enable_torch_compile=False,
        seed=0,
    )
    tool.quantize_and_save(job["out"], format="auto_round")
    decode(job)


def decode(job: dict[str, Any]) -> None:
    """The folder as transformers opens it: weights through the layer's own forward of the identity, and logits."""
    from transformers import AutoModelForCausalLM

    folder = next(file.parent for file in sorted(Path(job["out"]).rglob("*.safetensors")))
    store_as_original(folder, Path(job["model"]))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "qweight")}
    weights = {f"{name}.weight": _by_identity(layer) for name, layer in layers.items()}
    notes = f"{job['iters']} iterations at a learning rate of {job['lr']}: its own recipe auto-round-light"
    packages = ("auto-round", "transformers", "torch")
    write(job, weights, forward_of(model, job), safetensors_sizes(folder), packages, notes)


def _by_identity(layer: Any) -> torch.Tensor:
    """`[out_features, in_features]` of a layer without bias."""
    with torch.no_grad():
        return layer(torch.eye(layer.infeatures, dtype=torch.float32)).T


if __name__ == "__main__":
    main()
