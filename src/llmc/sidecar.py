"""Everything in an artifact besides weights and manifest: config, tokenizer, processor, licence, kernel, model card."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmc.coded_files import INDEX as CODED_INDEX
from llmc.config import without_code
from llmc.formats.container import Container, Facts, Spec
from llmc.formats.kernel_folder import kernel_files
from llmc.manifest import MANIFEST, SUMS, dump_json
from llmc.travel import ARCHIVE, distinct, folded, left_out_note, refuse_secrets, survey

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


def module_settings(name: str) -> bool:
    """Whether a path is that of settings in a folder of sentence-transformers, by its name."""
    place, _, file = name.partition("/")
    return _any(place, (MODULE,)) and file.endswith(".json") and "/" not in file


def side_notes(folder: Path) -> tuple[str, ...]:
    """What of `carried_files`' kinds stays behind. Raises CheckpointError when one of them holds a secret."""
    names, left = _carried(folder)
    refuse_secrets(folder, names)
    return left_out_note(left)


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
    if "modules.json" not in names:
        return names, left
    for module in sorted(p.name for p in folder.glob(MODULE) if p.is_dir() and not p.is_symlink()):
        found = (f"{module}/{name}" for name in survey(folder / module, deep=False).files)
        names += [n for n in found if module_settings(n) and (folder / n).stat().st_size <= MOST_SETTINGS]
    return names, left


def _is_carried(name: str) -> bool:
    return _any(name, CARRIED) and not _any(folded(name), NEVER)


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)
