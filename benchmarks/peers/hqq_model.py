"""Quantize one model with HQQ, which takes no calibration. Runs in that tool's own environment, where llmc is not.

Scales and zero points are float16, its default, and so is what it decodes to and computes with. Its own writer of
safetensors refuses a tied head: its state is written here, a tied tensor once.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peers.dense import forward_of, read_job, safetensors_sizes, write
from safetensors.torch import save_file

NOTE = "takes no calibration; 5 and 6 bits are stored in bytes; its state is written as safetensors, a tied head once"


def main() -> None:
    job = read_job()
    from transformers import AutoModelForCausalLM

    core: Any = import_module("hqq.core.quantize")  # by name: not installed where types are checked
    hf: Any = import_module("hqq.models.hf.base").AutoHQQHFModel
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float16)
    settings = core.BaseQuantizeConfig(nbits=job["bits"], group_size=job["group_size"], axis=1)
    hf.quantize_model(model, settings, compute_dtype=torch.float16, device="cpu")
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, out / "model.safetensors")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, core.HQQLinear)}
    weights = {f"{name}.weight": layer.dequantize() for name, layer in layers.items()}
    packages = ("hqq", "transformers", "torch")
    write(job, weights, forward_of(model, job), safetensors_sizes(out), packages, NOTE)


if __name__ == "__main__":
    main()
