"""Quantize one model with GPTQModel, on given tokens. Runs in that tool's own environment, where llmc is not.

GPTQModel 7.6 cannot start on two cores or fewer (it asks for two loader threads out of half as many): it is told there
are four. How many threads torch uses does not change by that.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    place = Path(_arguments().job).resolve()
    job: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    job |= {name: str(Path(job[name]).resolve()) for name in ("tokens", "out")}
    os.chdir(place.parent)  # it leaves its logs where it is started
    if (os.cpu_count() or 1) < 4:
        os.cpu_count = lambda: 4
    import torch
    from transformers import AutoTokenizer

    gptqmodel: Any = import_module("gptqmodel")  # by name: not installed where types are checked

    if job["imports"]:  # all that the tool imports for this model, and nothing else
        import_module(job["imports"])
        return
    settings = gptqmodel.QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        sym=True,
        desc_act=False,
        act_group_aware=job["act_order"],
        damp_percent=job["damping"],
    )
    model = gptqmodel.GPTQModel.load(job["model"], settings, dtype=getattr(torch, job["dtype"]), device="cpu")
    ids = json.loads(Path(job["tokens"]).read_text(encoding="utf-8"))
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], batch_size=1)
    model.save(job["out"])
    AutoTokenizer.from_pretrained(job["model"]).save_pretrained(job["out"])
    if "dense" in job:
        decode(job)


def decode(job: dict[str, Any]) -> None:
    """The folder as the tool opens it, in float16: its own forward, then its own dequantization with float32 scales.

    What it left as it was is stored in the original's type again, without loss: it computed in float32.
    """
    import torch
    from peers.dense import forward_of, safetensors_sizes, store_as_original, write

    gptqmodel: Any = import_module("gptqmodel")
    store_as_original(Path(job["out"]), Path(job["model"]))
    opened = gptqmodel.GPTQModel.load(job["out"], device="cpu", dtype=torch.float16, backend=gptqmodel.BACKEND.TORCH)
    model = opened.model.eval()
    logits = forward_of(model, job)
    weights = {}
    for name, module in model.named_modules():
        if hasattr(module, "dequantize_weight"):
            module.scales = module.scales.float()
            weights[f"{name}.weight"] = module.dequantize_weight().T
    write(job, weights, logits, safetensors_sizes(Path(job["out"])), ("gptqmodel", "torch"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="JSON file: what to do")
    return parser.parse_args()


if __name__ == "__main__":
    main()
