"""Tiny random models of many architectures, built on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 256

DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _decoder(**changes: Any) -> dict[str, Any]:
    return {**DECODER, **changes}


SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _decoder(tie_word_embeddings=True)),
    "llama-untied": ("Llama", _decoder(tie_word_embeddings=False)),
    "qwen3": ("Qwen3", _decoder(head_dim=16)),
    "gemma": ("Gemma", _decoder(head_dim=16)),
    "mistral": ("Mistral", _decoder(sliding_window=32)),
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}),
    "opt": (
        "OPT",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 64,
        },
    ),
    "phi": ("Phi", _decoder(num_key_value_heads=4, partial_rotary_factor=0.5)),
    "gpt-neox": (
        "GPTNeoX",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "bert": (
        "Bert",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "t5": (
        "T5",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "whisper": (
        "Whisper",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_mel_bins": 16,
            "max_source_positions": 64,
            "max_target_positions": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "mixtral": ("Mixtral", _decoder(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": (
        "Qwen3Moe",
        _decoder(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True),
    ),
}

_HEADS = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration", "whisper": "WhisperForConditionalGeneration"}


def _class_name(name: str) -> str:
    family = SPECS[name][0]
    return _HEADS.get(name, {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM"))


def build(name: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **changes: Any) -> Path:
    """Save a random model of architecture `name` with a byte tokenizer into `folder`."""
    import transformers

    family, fields = SPECS[name]
    config = getattr(transformers, f"{family}Config")(**{**fields, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, _class_name(name))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # spread rows as trained weights do, so that scales differ
                parameter.mul_(torch.exp(0.3 * torch.randn(parameter.shape[0], *[1] * (parameter.ndim - 1))) * 4)
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """A tokenizer of one token per byte, 256 in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!", pad_token='"')


def corpus(folder: Path, words: int = 6000) -> Path:
    """A seeded text long enough for calibration and evaluation with the byte tokenizer."""
    import random

    rng = random.Random(7)
    vocabulary = [
        "river",
        "stone",
        "lamp",
        "and",
        "the",
        "a",
        "walks",
        "sings",
        "old",
        "under",
        "bright",
        "keeps",
        "to",
    ]
    lines = [" ".join(rng.choices(vocabulary, k=12)) + "." for _ in range(words // 12)]
    path = folder / "corpus.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


Builder = Callable[..., Path]
