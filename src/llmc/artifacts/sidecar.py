"""Everything in an artifact besides weights and manifest: config, tokenizer, processor, licence, kernel, model card."""

from __future__ import annotations

import fnmatch
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.artifacts.kernel_folder import kernel_files
from llmc.errors import first_line
from llmc.files.manifest import MANIFEST, SUMS, dump_json
from llmc.files.travel import ARCHIVE, distinct, folded, left_out_note, refuse_secrets, survey
from llmc.formats.coded_files import INDEX as CODED_INDEX
from llmc.formats.container import Container, Facts, Spec
from llmc.models.config import without_code

GENERATION = "generation_config.json"
CARRIED = (
    GENERATION,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
INDEX = "model.safetensors.index.json"
MODULE = "[0-9]*_*"
"""Folders that sentence-transformers writes for its modules: 1_Pooling, ..."""
MODULE_WEIGHTS = "model.safetensors"
"""Weights of one of them, such as 2_Dense: its reader wants them as they are."""
TEMPLATES = "additional_chat_templates"
"""Folder where transformers writes chat templates that have a name: one for tools, one for retrieval, ..."""
MOST_SETTINGS = 1 << 20
"""Bytes of a JSON file or a template in one of these folders."""
NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.safetensors", "*.gguf", "*.so", "*.dll", "*.dylib", "*.exe")
WEIGHTS = (*NEVER, "*.safetensors.index.json", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.npz")
WRITTEN = ("config.json", "README.md", INDEX, CODED_INDEX)
"""Files that llmc writes anew into a folder."""
OWN = (MANIFEST, SUMS, ARCHIVE, "kernel")
"""What it adds."""


def carried_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong in its compressed copy, those of sentence-transformers' modules too."""
    return [folder / name for name in _carried(folder)[0]]


def plain_files(folder: Path) -> list[Path]:
    """All files of a folder that travel and are neither weights, nor code, nor called as llmc's own."""
    names, _ = distinct((n for n in survey(folder, deep=False).files if plain(n)), WRITTEN)
    return [folder / name for name in names]


def plain(name: str) -> bool:
    """Whether a file at the top of a folder is neither weights, nor code, nor called as what llmc adds, by its name."""
    weights = _any(folded(name), WEIGHTS) and name != INDEX
    return not weights and folded(name) not in map(folded, OWN)


def inner(name: str) -> bool:
    """Whether a path is that of a file in a folder of sentence-transformers or of chat templates, by its name."""
    place, _, file = name.partition("/")
    if "/" in file:
        return False
    if place == TEMPLATES:
        return file.endswith(".jinja")
    return _any(place, (MODULE,)) and (file.endswith(".json") or file == MODULE_WEIGHTS)


def side_notes(folder: Path) -> tuple[str, ...]:
    """What of `carried_files`' kinds stays behind, and what travels and is broken.

    Raises CheckpointError when one of them holds a secret.
    """
    names, left = _carried(folder)
    refuse_secrets(folder, names)
    broken = _broken_generation(folder / GENERATION) if GENERATION in names else ()
    return (*left_out_note(left), *broken)


def sidecar_bytes(folder: Path, tensors: int) -> int:
    """About how many bytes the files besides the weights take."""
    return sum(p.stat().st_size for p in carried_files(folder)) + 20_000 + 700 * tensors


def write_sidecar(
    out: Path,
    source: Path,
    config: dict[str, Any],
    container: Container,
    specs: Sequence[Spec],
    facts: Facts,
    index: dict[str, object] | None,
) -> None:
    """Write all files but weights, card and manifest into `out`."""
    for path in carried_files(source):
        place = out / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    quantization = container.config(specs, replace(facts, sharded=index is not None))
    edited = {k: v for k, v in without_code(config).items() if k != "quantization_config"}
    if quantization is not None:
        edited["quantization_config"] = quantization
    (out / "config.json").write_bytes(dump_json(edited))
    for name, content in container.extra_files(specs, facts).items():
        (out / name).write_bytes(dump_json(content))
    if index is not None:
        (out / (CODED_INDEX if container.coded else INDEX)).write_bytes(dump_json(index))
    for name, data in kernel_files([container.kernel]).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)


def _carried(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of `carried_files`, and of what would be one of them, with the reason why it is not."""
    top = survey(folder, deep=False)
    names, left = distinct((n for n in top.files if _is_carried(n)), (*WRITTEN, *OWN))
    left += [(name, reason) for name, reason in top.left_out if _is_carried(name)]
    modules = folder.glob(MODULE) if "modules.json" in names else ()
    for place in (*sorted(modules), folder / TEMPLATES):
        if place.is_dir() and not place.is_symlink():
            found = (f"{place.name}/{name}" for name in survey(place, deep=False).files)
            names += [n for n in found if inner(n) and (_is_weights(n) or _size(folder / n) <= MOST_SETTINGS)]
    return names, left


def _is_weights(name: str) -> bool:
    return name.endswith(f"/{MODULE_WEIGHTS}")


def _size(path: Path) -> int:
    return path.stat().st_size


def _broken_generation(path: Path) -> tuple[str, ...]:
    """What transformers says of the file that tells how to generate, where it says anything."""
    from transformers import GenerationConfig

    log = logging.getLogger("transformers.generation.configuration_utils")
    before, log.disabled = log.disabled, True
    try:
        settings: Any = json.loads(path.read_bytes())
        GenerationConfig.from_dict(settings).validate(strict=True)
    except Exception as error:  # whatever is in it
        return (f"{GENERATION} is kept, and transformers refuses to write it: {first_line(error)[:300]}",)
    finally:
        log.disabled = before
    return ()


def _is_carried(name: str) -> bool:
    return _any(name, CARRIED) and not _any(folded(name), NEVER)


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)
