"""Write a Llama with random weights, of any shape: `python benchmarks/random_llama.py OUT --layers 16`.

Rows of a matrix have log-normal scales (spread 0.25), which resembles trained weights better than one Gaussian does.
Every tensor has a seed of its own, so a deeper model begins with the layers of a shallower one. The tokenizer knows the
256 bytes and nothing else. Tensors are made and written in slabs of rows: none is ever held whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

from llmc.files.header import write_header

SPREAD = 0.25  # of the logarithm of a row's scale
SLAB = 1 << 22  # weights made at once
INDEX = "model.safetensors.index.json"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """Of a Llama; the defaults have about a billion weights."""

    hidden: int = 2048
    mlp: int = 5632
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 32000
    tied: bool = False


def write_random_llama(out: Path, shape: Shape, *, seed: int = 0, shard_bytes: int = 1 << 30) -> int:
    """Write the folder, in bfloat16; returns the bytes of its weight files."""
    out.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        bos_token_id=0,
        eos_token_id=0,
    )
    config.save_pretrained(out)
    _tokenizer().save_pretrained(out)
    shards = list(_shards(_shapes(shape), shard_bytes))
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, tensors in zip(names, shards, strict=True):
        _write_shard(out / name, tensors, seed)
    files = {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
    total = sum(2 * math.prod(dimensions) for tensors in shards for dimensions in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return sum((out / name).stat().st_size for name in names)


def _shapes(shape: Shape) -> Shapes:
    """Every tensor, in the order of the model."""
    keys = shape.hidden // shape.heads * shape.kv_heads
    block = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.mlp, shape.hidden),
        "mlp.up_proj": (shape.mlp, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.mlp),
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
    }
    shapes: Shapes = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for i in range(shape.layers):
        shapes |= {f"model.layers.{i}.{name}.weight": dimensions for name, dimensions in block.items()}
    shapes["model.norm.weight"] = (shape.hidden,)
    return shapes if shape.tied else shapes | {"lm_head.weight": (shape.vocabulary, shape.hidden)}


def _shards(shapes: Shapes, limit: int) -> Iterator[Shapes]:
    """Consecutive tensors of at most `limit` bytes together; a larger one is alone."""
    shard: Shapes = {}
    size = 0
    for name, dimensions in shapes.items():
        need = 2 * math.prod(dimensions)
        if shard and size + need > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = dimensions
        size += need
    yield shard


def _write_shard(path: Path, tensors: Shapes, seed: int) -> None:
    header, _ = write_header([(n, torch.bfloat16, d) for n, d in tensors.items()], {"format": "pt"})
    with path.open("wb") as file:
        file.write(header)
        for name, dimensions in tensors.items():
            for slab in _slabs(name, dimensions, seed):
                file.write(slab.view(torch.uint8).numpy().data)


def _slabs(name: str, dimensions: tuple[int, ...], seed: int) -> Iterator[torch.Tensor]:
    """The tensor's values, bfloat16, some rows at a time; norms are ones."""
    if len(dimensions) == 1:
        yield torch.ones(dimensions, dtype=torch.bfloat16)
        return
    rows, columns = dimensions
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
    step = max(1, SLAB // columns)
    for start in range(0, rows, step):
        values = torch.randn(min(step, rows - start), columns, generator=generator)
        scale = torch.randn(values.shape[0], 1, generator=generator).mul_(SPREAD).exp_() / math.sqrt(columns)
        yield values.mul_(scale).bfloat16()


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    for name, default in vars(Shape()).items():
        if not isinstance(default, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=1 << 30)
    options = parser.parse_args()
    shape = Shape(**{name: getattr(options, name) for name in vars(Shape())})
    size = write_random_llama(options.out, shape, seed=options.seed, shard_bytes=options.shard_bytes)
    print(f"{options.out}: {size:,} bytes of weights")


if __name__ == "__main__":
    main()
