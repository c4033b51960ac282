"""The changes of `mutations.py`: each in one place of an artifact, with the words that name it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import llmc
from llmc.encodings.coding import tensor_coder
from llmc.encodings.coding.coded_head import TRELLIS
from llmc.files.bytes import raw_bytes
from llmc.files.manifest import MANIFEST, SUMS, dump_json
from llmc.formats import CONTAINERS
from llmc.formats.coded_files import CodedTensors, is_coded
from llmc.models.config import read_config
from llmc.models.tensors import stored


@dataclass(frozen=True)
class Mutation:
    """One change, the words one of which a problem has to say, and whether it changes what is computed or run."""

    kind: str
    named: tuple[str, ...]
    matters: bool = True


Change = Callable[[Path, random.Random], Mutation | None]


# Tensors


def tensors_of(folder: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, str]]:
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
    return file, load_file(file), metadata


def change_bit(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    data = bytearray(bytes(raw_bytes(tensor)))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return torch.frombuffer(data, dtype=torch.uint8).view(tensor.dtype).view(tensor.shape)


def recode(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Change a tensor of a plain or coded file; False for a trellis, whose bits another step would have to find."""
    file, tensors, metadata = tensors_of(folder)
    if is_coded(folder):
        coded = CodedTensors(folder)
        if coded.head(name).kind == TRELLIS:
            return False
        packed = tensor_coder.encode(change(coded.decode(name, tensors[name], threads=1)), "balanced", threads=1)
        tensors[name] = torch.from_numpy(packed.joined())
    else:
        tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata)
    return True


def flip(folder: Path, rng: random.Random) -> Mutation | None:
    """A bit of codes, scales, zero points or plain weights."""
    _, tensors, _ = tensors_of(folder)
    name = rng.choice(sorted(n for n in tensors if tensors[n].numel()))
    before = decoded_values(folder)
    if not recode(folder, name, lambda tensor: change_bit(tensor, rng)):
        return None
    last = name.rpartition(".")[2]
    if last == "absmax" and decoded_values(folder) == before:
        return Mutation("a bit of a scale that changes no decoded value", owners(name), matters=False)
    return Mutation(f"a bit of {'a plain tensor' if last in ('weight', 'bias') else last}", owners(name))


def decoded_values(folder: Path) -> dict[str, bytes]:
    """What the matrices decode to."""
    try:
        packed = stored(folder, read_config(folder)).packed
        return {name: bytes(raw_bytes(matrix.decode())) for name, matrix in packed.items()}
    except llmc.LlmcError:
        return {}


def owners(name: str) -> tuple[str, ...]:
    """What a problem may call a tensor by: itself, or its matrix."""
    stem = name
    for ending in (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".qweight", ".qzeros"):
        stem = stem.removesuffix(ending)
    for ending in (".scales", ".g_idx", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4", ".weight"):
        stem = stem.removesuffix(ending)
    return (name, stem)


def add_tensor(folder: Path, rng: random.Random) -> Mutation:
    file, tensors, metadata = tensors_of(folder)
    name = f"model.layers.{rng.randrange(2)}.self_attn.{rng.choice('qkvo')}_proj.bias"
    values = torch.full((64,), 7.0, dtype=torch.bfloat16)
    if is_coded(folder):
        values = torch.from_numpy(tensor_coder.encode(values, "balanced", threads=1).joined())
    save_file({**tensors, name: values}, file, metadata)
    return Mutation("an added tensor", (name,))


def drop_tensor(folder: Path, rng: random.Random) -> Mutation:
    file, tensors, metadata = tensors_of(folder)
    name = rng.choice(sorted(tensors))
    del tensors[name]
    save_file(tensors, file, metadata)
    return Mutation("a dropped tensor", owners(name))


def rename_tensor(folder: Path, rng: random.Random) -> Mutation:
    file, tensors, metadata = tensors_of(folder)
    name = rng.choice(sorted(tensors))
    tensors[f"{name}2"] = tensors.pop(name)
    save_file(tensors, file, metadata)
    return Mutation("a renamed tensor", (*owners(name), f"{name}2"))


def swap_tensors(folder: Path, rng: random.Random) -> Mutation | None:
    """Two tensors of one shape change places."""
    file, tensors, metadata = tensors_of(folder)
    one = rng.choice(sorted(tensors))
    alike = [n for n in tensors if n != one and tensors[n].shape == tensors[one].shape]
    other = rng.choice(sorted(alike)) if alike else one
    if other == one or torch.equal(tensors[one].view(torch.uint8), tensors[other].view(torch.uint8)):
        return None
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, file, metadata)
    return Mutation("two tensors swapped", (*owners(one), *owners(other)))


def change_metadata(folder: Path, rng: random.Random) -> Mutation:
    file, tensors, metadata = tensors_of(folder)
    key = rng.choice([*sorted(metadata), "more"])
    save_file(tensors, file, {**metadata, key: "tf"})
    return Mutation("metadata of a weight file", (file.name, "metadata"))


# Files


def json_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def change_config(folder: Path, rng: random.Random) -> Mutation | None:
    config = json_of(folder / "config.json")
    inside = rng.random() < 0.4 and isinstance(config.get("quantization_config"), dict)
    part = config["quantization_config"] if inside else config
    key = rng.choice([*sorted(k for k in part if k != "quantization_config"), "added"])
    how = rng.choice(["change", "remove"]) if key != "added" else "change"
    before = dump_json(config)
    part.pop(key) if how == "remove" else part.update({key: rng.choice(["", None, {"other": [part.get(key)]}])})
    if dump_json(config) == before:
        return None
    (folder / "config.json").write_bytes(dump_json(config))
    if inside:
        return Mutation("quantization_config", (f"config.json: quantization_config.{key}", "as config.json says"))
    return Mutation("a key of config.json", (f"config.json: {key}",))


def respell_config(folder: Path, rng: random.Random) -> Mutation:
    """A field stands twice: readers that take the first one see another value than Python does."""
    text = (folder / "config.json").read_text()
    key = rng.choice(sorted(json.loads(text)))
    (folder / "config.json").write_text(text.replace("{", f'{{\n  "{key}": 0.5,', 1))
    return Mutation("a field of config.json twice", ("config.json: not spelled",))


def change_side_file(folder: Path, rng: random.Random) -> Mutation | None:
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name not in ("config.json", "README.md"))
    names = [n for n in names if n not in (MANIFEST, SUMS) and "safetensors" not in n and not n.endswith(".zip")]
    if not names:
        return None
    name = rng.choice(names)
    data = bytearray((folder / name).read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (folder / name).write_bytes(data)
    return Mutation("a side file", (name,))


def remove_side_file(folder: Path, rng: random.Random) -> Mutation | None:
    found = change_side_file(folder, rng)
    if found is not None:
        (folder / found.named[0]).unlink()
    return found and Mutation("a side file removed", found.named)


ADDED = [
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
    "modeling_llama.py",
    "custom_generate/generate.py",
    "kernel/evil.py",
    "kernel/build/torch-cpu/__pycache__/bits.cpython-311.pyc",
    "pytorch_model.bin",
    "adapter_config.json",
    "model.safetensors.index.json",
    "x/y.json",
    ".env",
]


def add_file(folder: Path, rng: random.Random) -> Mutation:
    name = rng.choice(ADDED)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text('{"weight_map": {}}')
    return Mutation("an added file", (name, Path(name).name))


def change_decoder(folder: Path, rng: random.Random) -> Mutation:
    path = rng.choice(sorted(p for p in folder.glob("kernel/**/*") if p.is_file()))
    path.write_text(path.read_text() + "\n# more\n")
    return Mutation("a decoder", (path.name,))


def change_card(folder: Path, rng: random.Random) -> Mutation:
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nThe best model of all.\n")
    return Mutation("the card", ("README.md",), matters=False)


# The manifest


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json_of(folder / MANIFEST)
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change_row(folder: Path, rng: random.Random) -> Mutation | None:
    manifest = json_of(folder / MANIFEST)
    rows = manifest.get("targets") or []
    if not rows:
        return None
    row = rng.choice(rows)
    name, how = (
        row["tensor"],
        rng.choice(["snr_db", "bond", "drop snr_db", "drop bond", "drop", "twice", "shape", "stored"]),
    )
    if how == "drop":
        rows.remove(row)
    elif how == "twice":
        rows.append(row)
    elif how.startswith("drop "):
        row.pop(how[5:])
    else:
        row[how] = {"snr_db": 60.0, "bond": "0" * 64, "shape": [1, 1], "stored": ["x"]}[how]
    edit_manifest(folder, lambda m: m.update(targets=rows))
    return Mutation(f"row: {how}", owners(name))


def change_original_files(folder: Path, rng: random.Random) -> Mutation | None:
    manifest = json_of(folder / MANIFEST)
    kept = manifest.get("original_files") or {}
    names = sorted(n for n in kept if n != "README.md" or not manifest.get("targets"))
    if not names:
        return None
    name = rng.choice(names)
    kept[name] = kept[name].replace("e", "a", 1)
    edit_manifest(folder, lambda m: m.update(original_files=kept))
    return Mutation("a text that decompress gives back", (name,))


def change_what_it_is(folder: Path, rng: random.Random) -> Mutation | None:
    """The fields that say what lies in the folder."""
    manifest = json_of(folder / MANIFEST)
    key = rng.choice(["format", "holds", "originals"])
    if key == "originals":
        about = next(iter(manifest.get("originals", {}).values()), None)
        if about is None:
            return None
        about["bytes"] += 1
        edit_manifest(folder, lambda m: m.update(originals=manifest["originals"]))
    else:
        other = rng.choice([name for name in CONTAINERS if name != manifest.get(key)])
        edit_manifest(folder, lambda m: m.update({key: other}))
    return Mutation(f"llmc.json: {key}", (f"{MANIFEST}: {key}",))


def change_version_and_decoder(folder: Path, rng: random.Random) -> Mutation:
    change_decoder(folder, rng)
    edit_manifest(folder, lambda m: m.update(llmc="9.9"))
    return Mutation("a decoder, said to be of another llmc", ("kernel/",))


def change_prose(folder: Path, rng: random.Random) -> Mutation:
    key = rng.choice(["recipe", "notes", "sizes", "versions"])
    values: dict[str, Any] = {
        "recipe": {"lossless": {"exact_files": False}},
        "notes": ["fine"],
        "sizes": {},
        "versions": {},
    }
    if key == "recipe":
        values["recipe"] = {**json_of(folder / MANIFEST).get("recipe", {}), "seed": 7}
    edit_manifest(folder, lambda m: m.update({key: values[key]}))
    return Mutation(f"llmc.json: {key}", (key,), matters=False)


CHANGES: list[tuple[int, Change]] = [
    (8, flip),
    (2, add_tensor),
    (2, drop_tensor),
    (1, rename_tensor),
    (2, swap_tensors),
    (1, change_metadata),
    (6, change_config),
    (1, respell_config),
    (2, change_side_file),
    (1, remove_side_file),
    (3, add_file),
    (1, change_decoder),
    (3, change_row),
    (2, change_what_it_is),
    (1, change_version_and_decoder),
    (1, change_original_files),
    (1, change_card),
    (1, change_prose),
]
