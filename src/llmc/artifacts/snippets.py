"""How a folder that llmc wrote is loaded: the commands and the Python of its card, as they can be run.

The class is the model's own, by transformers' tables. The folder calls itself "." until it is pushed under a name.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmc.distribution import install
from llmc.errors import printable

HERE = "."
"""What a snippet calls the folder that its card lies in."""
BLOCK = re.compile(r"<!-- load (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
"""The part of a card that says how the folder is loaded, and under which name."""

SERVE = {"vllm": "vllm serve {name}", "sglang": "python -m sglang.launch_server --model-path {name}"}
NEEDS = {
    "compressed-tensors": "pip install transformers accelerate compressed-tensors",
    "bitsandbytes": "pip install transformers accelerate bitsandbytes",
    "gptq": "pip install gptqmodel",
    "dense": "pip install transformers",
    "llmc": install(),
}
"""Container -> what its reader asks for."""

KINDS = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "text-generation"),
    "SEQ_TO_SEQ_CAUSAL_LM": ("AutoModelForSeq2SeqLM", "text2text-generation"),
    "MASKED_LM": ("AutoModelForMaskedLM", "fill-mask"),
    "SEQUENCE_CLASSIFICATION": ("AutoModelForSequenceClassification", "text-classification"),
    "TOKEN_CLASSIFICATION": ("AutoModelForTokenClassification", "token-classification"),
    "QUESTION_ANSWERING": ("AutoModelForQuestionAnswering", "question-answering"),
    "IMAGE_TEXT_TO_TEXT": ("AutoModelForImageTextToText", "image-text-to-text"),
    "SPEECH_SEQ_2_SEQ": ("AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"),
    "IMAGE_CLASSIFICATION": ("AutoModelForImageClassification", "image-classification"),
}
"""Table of transformers -> the class that opens a model of it, and what the Hub calls its use."""
TEXT = ("AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModel")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def use_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """The class of transformers that opens a model with this config.json, and the Hub's word for its use or ""."""
    from transformers.models.auto import modeling_auto

    kind, named = str(config.get("model_type")), (config.get("architectures") or [None])[0]
    for table, found in KINDS.items():
        classes = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").get(kind)
        if named is not None and named in ((classes,) if isinstance(classes, str) else classes or ()):
            return found
    known = modeling_auto.MODEL_MAPPING_NAMES.get(kind)
    if named is not None and named in ((known,) if isinstance(known, str) else known or ()):
        return "AutoModel", "feature-extraction"
    return (str(named) if re.fullmatch(r"[A-Za-z]\w{0,99}", str(named)) and named else "AutoModel"), ""


def load_block(folder: Path, container: str, runtimes: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """The part of a card, see `BLOCK`, on how to load `folder`.

    Args:
        runtimes: runtime -> whether it loads it, and with which flag.
        config: its config.json; empty where it holds tensors and is no model.
    """
    code = _tensors() if not config else _python(folder, container, runtimes.get("transformers", ""), config)
    if code is None:
        plain = f"llmc export {HERE} --format dense -o dense  # a plain model, which any runtime loads"
        parts = [_fence("sh", f"{install()}\n{plain}")]
    else:
        parts = [_fence("sh", NEEDS[container] if config else install()), _fence("python", code)]
    serving = _serving(runtimes)
    if serving:
        parts.append(_fence("sh", "\n".join(serving)))
    return f"<!-- load {HERE} -->\n" + "\n".join(parts) + "<!-- end -->"


def renamed(card: str, name: str) -> str:
    """A card whose snippets call the folder `name`; as it was where that part was taken out of it."""

    def rename(match: re.Match[str]) -> str:
        old, block = match.groups()
        block = block.replace(literal(old), literal(name))
        block = re.sub(rf"(?<= ){re.escape(old)}(?=[ \n])", name, block)
        return f"<!-- load {name} -->\n{block}<!-- end -->"

    return BLOCK.sub(rename, card, count=1)


def literal(name: str) -> str:
    """`name` as Python and JSON write it: in a snippet it can be nothing but a string."""
    return json.dumps(printable(name), ensure_ascii=False)


def _python(folder: Path, container: str, says: str, config: Mapping[str, Any]) -> str | None:
    """Python that loads a model and runs it once; None where transformers cannot."""
    if says.startswith("no"):
        return None
    reader = use_of(config)[0]
    named = literal(HERE)
    tokenizer = any((folder / name).is_file() for name in TOKENIZERS)
    names = [reader, *(["AutoTokenizer"] if tokenizer else [])]
    flag = ""
    if "dequantize=True" in says:
        names.append("CompressedTensorsConfig")
        flag = ", quantization_config=CompressedTensorsConfig(dequantize=True)"
    lines = ["import llmc.hf  # registers the format"] if container == "llmc" else []
    lines += [f"from transformers import {', '.join(sorted(names))}", ""]
    lines += [f"model = {reader}.from_pretrained({named}{flag})"]
    if container == "gptq":
        lines = ["from gptqmodel import GPTQModel", *(["from transformers import AutoTokenizer"] if tokenizer else [])]
        lines += ["", f"model = GPTQModel.load({named})"]
    if tokenizer:
        lines += [f"tokenizer = AutoTokenizer.from_pretrained({named})", *_first_use(folder, reader)]
    return "\n".join(lines)


def _first_use(folder: Path, reader: str) -> list[str]:
    """Lines that give a text to the model."""
    if reader in TEXT:
        inputs = 'inputs = tokenizer(["One sentence.", "And another one."], padding=True, return_tensors="pt")'
        return [inputs, "print(model(**inputs)[0].shape)"]
    if reader not in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        return []
    if reader == "AutoModelForCausalLM" and _talks(folder):
        lines = ['messages = [{"role": "user", "content": "Who are you?"}]']
        options = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
        lines += [f"ids = tokenizer.apply_chat_template(messages, {options}).input_ids"]
    else:
        lines = ['ids = tokenizer("Once upon a time", return_tensors="pt").input_ids']
    return [*lines, "print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0], skip_special_tokens=True))"]


def _talks(folder: Path) -> bool:
    """Whether the tokenizer has a chat template."""
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and b'"chat_template":' in settings.read_bytes()
    return inside or (folder / "chat_template.jinja").is_file()


def _tensors() -> str:
    return (
        f"import llmc\n\ntensors = llmc.read_tensors({literal(HERE)})  # name -> the original tensor, bit for bit\n"
        "print(len(tensors))"
    )


def _serving(runtimes: Mapping[str, str]) -> list[str]:
    """Commands of the servers that load the folder, with the flags that their row asks for."""
    lines = []
    for runtime, command in SERVE.items():
        says = runtimes.get(runtime, "no")
        flags = says.partition("with ")[2] if says.startswith("yes, with --") else ""
        if says.startswith("yes"):
            lines.append(f"{command.format(name=shlex.quote(HERE))} {flags}".rstrip())
    return lines


def _fence(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"
