"""Open a model folder of any origin through transformers, with the weights it stores and no others.

transformers fills what a folder lacks with random numbers and a warning: here that is an error which names the tensors.
A quantized folder is decoded by its official reader in the dtype it was made for, and computed in the dtype asked for,
like the original it is compared with. Nothing in the folder is executed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError, InputError, UnsupportedError, first_line
from llmc.files.safetensors import read_folder
from llmc.formats.coded_files import CodedTensors, is_coded
from llmc.late import torch
from llmc.models.classes import decoding
from llmc.models.config import safe_config, without_quantization
from llmc.models.dense import dense_model
from llmc.models.tokenizer import open_tokenizer

NEEDED = "perplexity and KL need a decoder with its head (a ...ForCausalLM); inspect and verify take any model"
NAMED = 4  # tensors that a message lists


@dataclass(frozen=True)
class Kind:
    """What a folder is opened as.

    Attributes:
        reader: name of the class in transformers.
        optional: name of a module that the weights may lack, because nothing that is measured runs through it.
    """

    reader: str
    optional: str = ""


CAUSAL = Kind("AutoModelForCausalLM")


def open_model(folder: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """The causal language model in `folder` with dense weights, in evaluation mode, and its tokenizer.

    Reads dense folders, compressed-tensors, bitsandbytes, and whatever else transformers reads by itself.

    Raises:
        CheckpointError: it cannot be read, or its weights are not exactly those that its config describes.
        UnsupportedError: an encoding that no installed reader knows, or one that cannot be evaluated.
    """
    if model_kind(folder) != "decoder":
        raise UnsupportedError("it predicts no next token", where=folder.name, fix=NEEDED)
    return open_as(folder, CAUSAL, dtype=dtype, device=device)


def open_as(folder: Path, kind: Kind, *, dtype: torch.dtype | None, device: str) -> tuple[Any, Any]:
    """As `open_model`, for a folder that holds another kind of model; whether it does is for the caller to check."""
    config, dtype = safe_config(folder), dtype or torch.float32
    # damaged files and an index that leaves the folder, which transformers would follow
    CodedTensors(folder) if is_coded(folder) else read_folder(folder)
    with quiet():
        tokenizer = open_tokenizer(folder)
        if config.get("quantization_config"):
            model = _open_quantized(folder, kind, config["quantization_config"], dtype)
        else:
            model = _from_pretrained(folder, kind, dtype=dtype)
    return model.to(device).eval(), tokenizer


def model_kind(folder: Path) -> str:
    """`decoder`, `encoder` or `encoder_decoder`: what can be measured of the model in `folder`.

    Raises CheckpointError and UnsupportedError where opening the folder would run or fetch something, and
    UnsupportedError for a model of none of the three.
    """
    from transformers.models.auto import modeling_auto as auto

    config = safe_config(folder)
    kind = config.get("model_type")
    causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    heads = {name for value in causal.values() for name in ([value] if isinstance(value, str) else value)}
    head = (config.get("architectures") or [None])[0]
    if config.get("is_encoder_decoder"):
        if kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            return "encoder_decoder"
        problem = f"{kind!r} is an encoder-decoder model, but not one of text"
    elif kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return "encoder"
    elif head is not None and head not in heads:
        problem = f"{head!r} has no language-model head"
    elif kind not in causal:
        problem = f"model type {kind!r} is not one that transformers has a language model for"
    else:
        return "decoder"
    raise UnsupportedError(problem, where=folder.name, fix=NEEDED)


def position_limit(model: Any) -> int | None:
    """Most tokens the model takes at once, None when it has no such limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings and progress bars of transformers; errors still raise."""
    from transformers.utils import logging as transformers_logging

    notes: Any = transformers_logging  # untyped
    level, bars = notes.get_verbosity(), notes.is_progress_bar_enabled()
    notes.set_verbosity(logging.CRITICAL)
    notes.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        notes.set_verbosity(level)
        if bars:
            notes.enable_progress_bar()


def _open_quantized(folder: Path, kind: Kind, settings: Mapping[str, Any], dtype: torch.dtype) -> Any:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = settings.get("quant_method") or ("bitsandbytes" if settings.get("load_in_4bit") else None)
    if method == "compressed-tensors":
        return _plain(_open_compressed_tensors(folder, kind, settings), folder, kind, dtype)
    if method == "llmc":
        import llmc.models.hf  # noqa: F401  # registers it

        return _from_pretrained(folder, kind, dtype=dtype)
    if method == "bitsandbytes":
        model = _from_pretrained(folder, kind, dtype="auto")
        return _plain(model.dequantize(model.dtype), folder, kind, dtype)
    # transformers needs optimum and gptqmodel for this one; the reference kernel decodes to the same bits
    if method == "gptq":
        return dense_model(folder, dtype)
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise UnsupportedError(
            f"no installed reader for quant_method {method!r}",
            where=folder.name,
            fix="decode it first: llmc export --format dense",
        )
    return _from_pretrained(folder, kind, dtype=dtype, **decoding({"quantization_config": settings}))


def _open_compressed_tensors(folder: Path, kind: Kind, settings: Mapping[str, Any]) -> Any:
    """The decoded model. With `dequantize=True` transformers applies the first config group to every layer: several
    groups need the other way, decoding after the load, which in turn cannot read packed zero points."""
    from transformers.utils.quantization_config import CompressedTensorsConfig

    groups = list((settings.get("config_groups") or {}).values())
    if any(group.get("input_activations") for group in groups):
        raise UnsupportedError(
            "its activations are quantized too, and only quantized weights can be evaluated",
            where=folder.name,
        )
    if len(groups) == 1:
        return _from_pretrained(
            folder, kind, dtype="auto", quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars have no switch
        model = _from_pretrained(folder, kind, dtype="auto")
        model.hf_quantizer.compressor.decompress_model(model)
    return model


def _plain(model: Any, folder: Path, kind: Kind, dtype: torch.dtype) -> Any:
    """Decoded weights in a model built in `dtype`; `model.to(dtype)` would keep buffers as the old dtype had them."""
    options = {"config": without_quantization(model.config), "state_dict": model.state_dict(), "dtype": dtype}
    plain, info = type(model).from_pretrained(
        None, **options, ignore_mismatched_sizes=True, output_loading_info=True, trust_remote_code=False
    )
    _require_complete(info, folder, kind)
    return plain


def _from_pretrained(folder: Path, kind: Kind, **options: Any) -> Any:
    import transformers

    reader: Any = getattr(transformers, kind.reader)
    try:
        model, info = reader.from_pretrained(
            str(folder),
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # or they could not be named
            output_loading_info=True,
            **options,
        )
    except MemoryError:
        raise
    except ImportError as error:
        raise UnsupportedError(first_line(error), where=folder.name, fix="install it, or export as dense") from error
    except Exception as error:
        message = f"transformers cannot load it: {first_line(error)}"
        raise CheckpointError(message, where=folder.name, fix="look at it with `llmc inspect`") from error
    _require_complete(info, folder, kind)
    return model


def _require_complete(info: Mapping[str, Any], folder: Path, kind: Kind) -> None:
    missing = sorted(key for key in info["missing_keys"] if kind.optional not in key.split("."))
    mismatched = [f"{k} {list(a)} instead of {list(b)}" for k, a, b in sorted(info["mismatched_keys"], key=str)]
    if missing or mismatched:
        found = {"missing": missing, "wrong shape": mismatched}
        parts = ", ".join(f"{what}: {_some(names)}" for what, names in found.items() if names)
        raise CheckpointError(
            f"its weights are not those its config.json describes ({parts})",
            where=folder.name,
            fix="random numbers would stand in for them",
        )


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def require_ids_fit(model: Any, highest: int, name: str) -> None:
    """Raise InputError when the tokenizer makes ids that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise InputError(
            f"its tokenizer makes token id {highest}, and the model has {rows} tokens",
            where=name,
            fix="use the tokenizer that the model was trained with",
        )
