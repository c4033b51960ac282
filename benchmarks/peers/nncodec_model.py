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
    outside = {name: tensor for name, tensor in tensors.items() if EMBEDDING.search(name)}
    kept = (
        {} if job["embedding"] else {n: t for n, t in tensors.items() if n not in blocks}
    )  # bfloat16, beside the stream
    stream = coded(codec, {n: t for n, t in tensors.items() if n not in kept}, job["qp"], out / "model.nnc")
    decoded = {name: torch.from_numpy(array) for name, array in codec.decompress(stream).items()}
    embedding = 2 * sum(t.numel() for t in outside.values())
    sizes = {
        "weight_bytes": len(stream) + 2 * sum(t.numel() for t in kept.values()),
        "block_bytes": len(stream) if kept else len(coded(codec, blocks, job["qp"], out / "blocks.nnc")),
        "embedding_bytes": embedding if kept else len(coded(codec, outside, job["qp"], out / "outside.nnc")),
    }
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.load_state_dict(decoded, strict=False)
    notes = "takes no calibration; the bits of blocks and of the embedding are of streams of their own"
    write(job, decoded, forward_of(model, job), sizes, ("nncodec", "torch"), notes)


if __name__ == "__main__":
    main()
