"""Everything in an artifact besides weights and manifest: config, tokenizer, processor, licence, kernel, model card."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.coded_files import INDEX as CODED_INDEX
from llmc.formats.container import Container, Facts, Spec
from llmc.formats.kernel_folder import kernel_files
from llmc.manifest import MANIFEST, SUMS, dump_json
from llmc.originals import ARCHIVE
from llmc.safetensors_file import is_regular

CARRIED = (
    "generation_config.json",
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
MOST_SETTINGS = 1 << 20
"""Bytes of a JSON file in one of them."""
NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.safetensors", "*.gguf")


def carried_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong in its compressed copy, those of sentence-transformers' modules too."""
    found = [p for p in _regular(folder) if _any(p.name, CARRIED) and not _any(p.name, NEVER)]
    if not any(p.name == "modules.json" for p in found):
        return found
    modules = [p for p in sorted(folder.glob(MODULE)) if p.name.isprintable() and p.is_dir() and not p.is_symlink()]
    settings = [p for module in modules for p in _regular(module) if p.suffix == ".json"]
    return found + [p for p in settings if p.stat().st_size <= MOST_SETTINGS]


def plain_files(folder: Path) -> list[Path]:
    """All files of a folder that are neither weights, nor code, nor hidden, nor llmc's own record of it."""
    own = (MANIFEST, SUMS, ARCHIVE)
    weights = (*NEVER, "*.safetensors.index.json", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.npz")
    return [
        p
        for p in _regular(folder)
        if (not _any(p.name, weights) or p.name == INDEX) and p.name not in own and not p.name.startswith(".")
    ]


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
    edited = {k: v for k, v in config.items() if k != "quantization_config"}
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


def _regular(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.name.isprintable() and is_regular(p)]


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)
