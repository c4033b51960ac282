"""Compress one model with NNCodec (ISO/IEC 15938-17), which takes no calibration. Runs where that tool is; llmc is not.

One step size for all matrices, which doubles with every four `qp`; the codes are chosen by dependent (trellis)
quantization and coded by DeepCABAC, both its defaults. Vectors have its default step, which is fine.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peers.dense import BLOCK, EMBEDDING, forward_of, original, read_job, write


def coded(codec: Any, tensors: dict[str, torch.Tensor], qp: int, file: Path) -> bytes:
    """The bitstream, which is also written to `file`."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return codec.compress(arrays, str(file), qp=qp, row_skipping=True, return_bitstream=True)


def main() -> None:
    job = read_job()
    from transformers import AutoModelForCausalLM

    codec: Any = import_module("nncodec.nnc")  # by name: not installed where types are checked
    tensors, out = original(job), Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    blocks = {name: tensor for name, tensor in tensors.items() if BLOCK.search(name)}
    others = {name: tensor for name, tensor in tensors.items() if name not in blocks}
    outside = sum(tensor.numel() for name, tensor in tensors.items() if EMBEDDING.search(name))
    stream = coded(codec, blocks, job["qp"], out / "blocks.nnc")
    decoded = dict(codec.decompress(stream))
    sizes = {"block_bytes": len(stream), "embedding_bytes": 2 * outside}
    rest = 2 * sum(tensor.numel() for tensor in others.values())  # left in bfloat16, beside the stream
    if job["embedding"]:
        stream = coded(codec, others, job["qp"], out / "others.nnc")
        decoded |= codec.decompress(stream)
        rest = len(stream)
        sizes["embedding_bytes"] = rest  # a few thousand weights of vectors with it
    sizes["weight_bytes"] = sizes["block_bytes"] + rest
    decoded = {name: torch.from_numpy(array) for name, array in decoded.items()}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.load_state_dict(decoded, strict=False)
    notes = "takes no calibration; two bitstreams: the block matrices, and all else (in the other line bfloat16)"
    write(job, decoded, forward_of(model, job), sizes, ("nncodec", "torch"), notes)


if __name__ == "__main__":
    main()
