"""A tokenizer with one token per byte."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


EOS, BOS = 256, 257


VOCABULARY = 258


TEMPLATE = "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"  # noqa: E501


def byte_tokenizer(*, bos: bool = False, eos: bool = True, chat: bool = False) -> Any:
    """One token per byte of UTF-8, so that a test can say which ids to expect without a tokenizer."""
    vocabulary = {character: i for i, character in enumerate(ALPHABET)} | {"<eos>": EOS, "<bos>": BOS}
    inner: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    names = {"bos_token": "<bos>"} | ({"eos_token": "<eos>"} if eos else {})
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=inner, **names)
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer
