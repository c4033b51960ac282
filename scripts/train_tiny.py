"""Train the embedded tiny model from nothing: `python scripts/train_tiny.py [--out FOLDER] [--steps N]`.

The tokenizer and the weights depend on the world's seed, the settings below and the machine's arithmetic only: running
this again on the same machine, with the same versions of torch and tokenizers, writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmc.embedded import tiny_model_path
from llmc.embedded.world import Drill, build_world, documents, drills

SEED = 0
LENGTH = 512
STEP_TOKENS = 2048
# Text, steps on it, length of a row. Heads that copy form within some hundred steps on text that nothing else can
# predict, and late or never in a mixture. Short rows are cheaper; the long ones come last.
PHASES = (
    ("copying", 350, 64),
    ("finding", 500, 256),
    ("documents", 500, 128),
    ("documents", 950, 256),
    ("documents", 300, LENGTH),
)
CHARACTERS = {"copying": 3_500_000, "finding": 4_500_000, "documents": 14_000_000}  # enough: no row is seen twice
STEPS = sum(steps for _, steps, _ in PHASES)
VOCABULARY, VOCABULARY_DOCUMENTS = 1024, 10_000
END = "<|endoftext|>"
MATRIX_RATE, VECTOR_RATE, WARMUP = 0.008, 0.006, 50


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)  # other counts sum in another order
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(SEED)
    began = time.monotonic()
    world = build_world(SEED)
    text = list(documents(world, "train", characters=CHARACTERS["documents"]))
    tokenizer = train_tokenizer(text[:VOCABULARY_DOCUMENTS])
    texts = {kind: list(drills(world, kind, CHARACTERS[kind])) for kind in get_args(Drill)} | {"documents": text}
    streams = {name: token_stream(tokenizer, lines) for name, lines in texts.items()}
    _say(f"tokens: { {name: len(stream) for name, stream in streams.items()} }, {time.monotonic() - began:.0f} s")
    model = LlamaForCausalLM(configuration())
    train(model, batches(streams), arguments.steps)
    save(model, tokenizer, arguments.out)
    _say(f"{model.num_parameters()} parameters in {arguments.out}, {time.monotonic() - began:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=tiny_model_path(), help="the model folder to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer for a trial run")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def configuration() -> LlamaConfig:
    """About 0.9 million parameters; every linear has a multiple of 128 inputs, so that all group sizes fit."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )


def train_tokenizer(text: list[str]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` entries; id 0 is `END`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, text: list[str]) -> Tensor:
    """All documents in a row, int64; behind every other one `END`, behind the others a blank line as in text files."""
    ids: list[int] = []
    ends = (tokenizer.encode("\n\n").ids, [0])
    for number, encoded in enumerate(tokenizer.encode_batch(text)):
        ids += encoded.ids + ends[number % 2]
    return torch.tensor(ids)


def batches(streams: dict[str, Tensor]) -> Iterator[Tensor]:
    """`[rows, length + 1]`, `STEP_TOKENS` to predict in each: `PHASES`, each going on in its text, rows shuffled."""
    order = torch.Generator().manual_seed(SEED)
    used = dict.fromkeys(streams, 0)
    for name, steps, length in PHASES:
        count = STEP_TOKENS // length
        begin, used[name] = used[name], used[name] + steps * count * (length + 1)
        rows = streams[name][begin : used[name]].view(-1, length + 1)
        for chosen in torch.randperm(steps * count, generator=order).view(steps, count):
            yield rows[chosen]


def train(model: LlamaForCausalLM, batches: Iterator[Tensor], steps: int) -> None:
    """Next-token prediction in float32, one batch of `batches` a step."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    momenta = [torch.zeros_like(p) for p in matrices]
    model.train()
    began = time.monotonic()
    for step, rows in zip(range(steps), batches, strict=False):
        factor = min((step + 1) / WARMUP, 1.0, 1.5 * (1 - step / steps))
        loss = _loss(model, rows)
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        adam.param_groups[0]["lr"] = VECTOR_RATE * factor
        adam.step()
        _muon_step(matrices, momenta, MATRIX_RATE * factor)
        if step % 50 == 49 or step == steps - 1:
            _say(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s")


def _loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits  # [batch, length, vocabulary]
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def _muon_step(matrices: list[torch.nn.Parameter], momenta: list[Tensor], rate: float) -> None:
    """Muon (Jordan et al. 2024): each matrix moves along its momentum with all singular values made about equal.

    The update's RMS is about AdamW's at the same rate (Liu et al. 2025, arXiv 2502.16982). Same shapes go together.
    """
    for shape in sorted({tuple(p.shape) for p in matrices}):
        chosen = [i for i, p in enumerate(matrices) if tuple(p.shape) == shape]
        updates = []
        for i in chosen:
            gradient = matrices[i].grad
            if gradient is None:
                raise RuntimeError("a matrix had no part in the loss")
            momenta[i].lerp_(gradient, 0.05)
            updates.append(gradient.lerp(momenta[i], 0.95))  # Nesterov
        steps = _orthogonal(torch.stack(updates)) * (0.2 * math.sqrt(max(shape)))
        for i, update in zip(chosen, steps, strict=True):
            matrices[i].mul_(1 - 0.1 * rate).add_(update, alpha=-rate)


def _orthogonal(x: Tensor) -> Tensor:
    """Newton-Schulz: the orthogonal factor of each matrix of `x`, [n, rows, columns], roughly."""
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """A Hugging Face model folder in bfloat16."""
    model.bfloat16().save_pretrained(folder)
    wrap: Any = PreTrainedTokenizerFast  # untyped
    wrapped = wrap(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=LENGTH)
    wrapped.save_pretrained(folder)
    generation = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "max_new_tokens": 64}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
