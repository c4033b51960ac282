"""config.json: read, and refused where opening the model would run or fetch code."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError, UnsupportedError
from llmc.files.strict_json import misfit, short

MAX_CONFIG = 10_000_000
BUILT_IN = {"eager", "sdpa", "flex_attention", "paged|eager", "paged|sdpa", "batched_mm", "grouped_mm"}
"""Implementations of attention and experts that transformers has itself: any other name, those of flash attention among
them, may be fetched from the Hub as a kernel."""
IMPLEMENTATION = re.compile(r"_?(attn|experts)_implementation(_internal)?")
CODE = ("auto_map", "trust_remote_code", "custom_generate")
KERNELS = ("use_kernels", "kernel_config", "hub_kernels", "allow_all_kernels")
FETCHED = ("eetq", "fbgemm_fp8", "nvfp4")
"""`quant_method`s that compute with kernels of the Hub only."""
MAX_DEPTH = 64
TEXT = (str, type(None))
FORM: dict[str, Any] = {
    "architectures?": [str],
    "model_type?": str,
    "quantization_config?": {
        "quant_method?": TEXT,
        "original?": (dict, type(None)),
        "config_groups?": {"*": dict},
    },
}
"""The fields that llmc reads itself, as `misfit` has it; all others are for transformers to judge."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict. Raises CheckpointError when it is missing, too large or not an object."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError("config.json is missing", where=folder.name, fix="give a Hugging Face model folder")
    if path.stat().st_size > MAX_CONFIG:
        raise CheckpointError(f"config.json has {path.stat().st_size} bytes, more than {MAX_CONFIG}", where=folder.name)
    try:
        config = json.loads(path.read_bytes())
        json.dumps(config, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"config.json is not JSON: {error}", where=folder.name) from error
    if not isinstance(config, dict):
        raise CheckpointError("config.json is not a JSON object", where=folder.name)
    if depth(config) > MAX_DEPTH:
        raise CheckpointError(f"config.json is not a config: nested more than {MAX_DEPTH} deep", where=folder.name)
    present = {key: value for key, value in config.items() if value is not None}
    wrong = misfit(present, FORM, "")
    if wrong is not None:
        raise CheckpointError(f"config.json: {wrong} is not of its type", where=folder.name)
    return config


def safe_config(folder: Path) -> dict[str, Any]:
    """`read_config` of a whole model that opens without code of others: what every verb that opens a model calls.

    `auto_map` is no obstacle where transformers has the architecture itself: that class is used then.

    Raises:
        CheckpointError: as `read_config` does, and for the folder of an adapter.
        UnsupportedError: code that comes with the model would be run, or a kernel fetched.
    """
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            "an adapter lies in it (adapter_config.json), which is not merged into a model",
            where=folder.name,
            fix="merge it into its base model first, or move its files away to take the base model alone",
        )
    config = read_config(folder)
    found = code_in(config)
    if found is not None:
        raise UnsupportedError(found[0], where=folder.name, fix=found[1])
    return config


def open_config(folder: Path) -> Any:
    """The config of transformers that config.json describes.

    Raises CheckpointError and UnsupportedError as `safe_config` does, and for what transformers refuses.
    """
    from transformers import AutoConfig

    safe_config(folder)
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pydantic, strict dataclasses and plain ValueErrors, by architecture
        line = " ".join(str(error).split())
        raise CheckpointError(f"config.json is not usable: {line[:300]}", where=folder.name) from error


def code_in(config: dict[str, Any]) -> tuple[str, str] | None:
    """How a config makes its readers run or fetch code, and what would help; None when it does not."""
    native = "auto_map" in config and is_native(config)
    for key, value in fields(config):
        if key in CODE and value and not (key == "auto_map" and native):
            return (
                f"config.json asks to run code that comes with the model ({key}), which llmc never does",
                "use a model whose architecture transformers has",
            )
        if "_implementation" in key and not built_in(value, loose=not IMPLEMENTATION.fullmatch(key)):
            return (
                f"config.json asks for {short(repr(value))} ({key}), which may be fetched as code",
                f"take {key} out of config.json, or set it to eager or sdpa",
            )
        if key in KERNELS and value:
            return f"config.json asks for kernels from the Hub ({key})", f"take {key} out of config.json"
        if key == "quant_method" and value in FETCHED:
            return f"weights in {value} are computed with kernels from the Hub only", "start from the original weights"
    return None


def is_native(config: dict[str, Any]) -> bool:
    """Whether transformers itself has the configuration and the model that a config names."""
    import transformers

    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    return (
        str(config.get("model_type")) in transformers.CONFIG_MAPPING
        and name.isidentifier()
        and hasattr(transformers, name)
    )


def depth(value: Any) -> int:
    """How deep dicts and lists stand in each other."""
    level, values = 0, [value]
    while values := [v for v in values if isinstance(v, dict | list)]:
        level += 1
        values = [inner for v in values for inner in (v.values() if isinstance(v, dict) else v)]
    return level


def without_code(value: Any) -> Any:
    """Nested JSON without what names code in the folder that it comes from."""
    if isinstance(value, dict):
        return {key: without_code(inner) for key, inner in value.items() if key != "auto_map"}
    return [without_code(inner) for inner in value] if isinstance(value, list) else value


def fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner)


def built_in(value: Any, *, loose: bool = False) -> bool:
    """Whether an implementation, or the one of each part of a model, is transformers' own.

    `loose` is for keys of other libraries and of caches: any word will do that cannot be the name of a kernel.
    """
    if isinstance(value, dict):
        return all(built_in(inner, loose=loose) for inner in value.values())
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, str) and (value in BUILT_IN or (loose and "/" not in value))


def without_quantization(config: Any) -> Any:
    """A copy of a transformers config that describes the dense model."""
    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return plain
