"""Quantize one model with llm-compressor, on given tokens. Runs in that tool's own environment, where llmc is not."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    job: dict[str, Any] = json.loads(Path(_arguments().job).read_text(encoding="utf-8"))
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    oneshot: Any = import_module("llmcompressor").oneshot  # by name: not installed where types are checked
    gptq: Any = import_module("llmcompressor.modifiers.gptq").GPTQModifier
    rtn: Any = import_module("llmcompressor.modifiers.quantization").QuantizationModifier

    if job["imports"]:  # all that the tool imports for this model, and nothing else
        import_module(job["imports"])
        return
    group = QuantizationStrategy.GROUP
    weights = QuantizationArgs(num_bits=job["bits"], group_size=job["group_size"], strategy=group, symmetric=True)
    where = {"config_groups": {"all": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": ["lm_head"]}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if job["method"] == "rtn":
        oneshot(model=model, tokenizer=tokenizer, recipe=rtn(**where))
    else:
        order = "static" if job["act_order"] else None
        recipe = gptq(**where, dampening_frac=job["damping"], actorder=order)
        ids = json.loads(Path(job["tokens"]).read_text(encoding="utf-8"))
        data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
        oneshot(
            model=model,
            tokenizer=tokenizer,
            recipe=recipe,
            dataset=data,
            num_calibration_samples=len(ids),
            max_seq_length=len(ids[0]),
            shuffle_calibration_samples=False,
        )
    model.save_pretrained(job["out"], save_compressed=True)
    tokenizer.save_pretrained(job["out"])
    if "dense" in job:
        decode(job)


def decode(job: dict[str, Any]) -> None:
    """The folder as the tool's own reader in transformers gives it: decompressed, and asked for its own forward."""
    from peers.dense import forward_of, safetensors_sizes, write
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    settings = CompressedTensorsConfig(run_compressed=False)
    model: Any = AutoModelForCausalLM.from_pretrained(job["out"], dtype="float32", quantization_config=settings)
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if hasattr(m, "quantization_scheme")}
    packages = ("llmcompressor", "compressed-tensors", "torch")
    write(job, weights, forward_of(model, job), safetensors_sizes(Path(job["out"])), packages)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="JSON file: what to do")
    return parser.parse_args()


if __name__ == "__main__":
    main()
