"""`verify --against`: an artifact held against the model that it was made from, both sides completely.

Every tensor, every key of config.json and every file of both is equal, explained by what llmc writes, or named. What
cannot be compared is listed with the reason; a record that is missing is a difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from llmc.artifacts.against_files import (
    Findings,
    coded_method,
    config_against,
    decoders,
    extra_files,
    kept_config,
    kept_originals,
    layout,
    mode_of,
    prose,
    side_files,
)
from llmc.artifacts.export import grid_of
from llmc.artifacts.layout import METADATA
from llmc.artifacts.lossless.growing import metadata_for, metadata_of
from llmc.artifacts.lossless.seal import KERNEL, beside, originals, quantization_of
from llmc.artifacts.lossless.write import sources
from llmc.artifacts.shapes import model_facts, weight_files
from llmc.artifacts.sidecar import INDEX, carried_files
from llmc.encodings.coding.coded_head import TRELLIS
from llmc.encodings.encoded import Grid
from llmc.encodings.measuring import bond, decibels
from llmc.encodings.trellis import TrellisGrid
from llmc.encodings.values import Values
from llmc.files.bytes import raw_bytes
from llmc.files.manifest import MANIFEST, digest_file, digest_json
from llmc.files.safetensors import load
from llmc.formats import CONTAINERS
from llmc.formats.coded_files import INDEX as CODED_INDEX
from llmc.formats.coded_files import CodedTensors
from llmc.formats.container import Container, Spec, encoded
from llmc.formats.dense import Dense, holder
from llmc.late import torch
from llmc.models.checkpoint import Checkpoint
from llmc.models.config import read_config, without_code
from llmc.models.tensors import Stored, stored
from llmc.threads import cores

TOLERANCE_DB = 1e-3
FIRST = 1
"""The format version whose rows hold no bond: of those a change below the tolerance is not seen."""


def quantized_against(path: Path, original: Path, manifest: dict[str, Any]) -> Findings:
    """Hold an artifact with encoded matrices against the model that they were made from."""
    found = Findings()
    checkpoint = Checkpoint(original)
    held = stored(path, read_config(path))
    container = _container(held, manifest, found)
    if container is None:
        return found
    specs = _specs(checkpoint, held, container, manifest)
    _rows(checkpoint, held, container, specs, manifest, found)
    _tensors(checkpoint, held, container, specs, manifest, found)
    sharded = (path / CODED_INDEX if container.coded else path / INDEX).is_file()
    if "holds" in manifest:
        sharded = INDEX in manifest.get("original_files", {})
    facts = replace(model_facts(checkpoint, specs), sharded=sharded)
    want = {k: v for k, v in without_code(checkpoint.config_dict).items() if k != "quantization_config"}
    coded = encoded(specs.values())
    quantization = container.config(coded, facts) if coded else None
    inner = want if quantization is None else {**want, "quantization_config": quantization}
    if "holds" in manifest:
        kept_config(inner, manifest, found)
        config_against(
            path, {**inner, "quantization_config": coded_method(path, inner, manifest)}, original.name, found
        )
    else:
        config_against(path, inner, original.name, found)
    extra = extra_files(path, container, specs, facts, found)
    names = [p.relative_to(original).as_posix() for p in carried_files(original)]
    side_files(path, original, names, extra, held, found)
    decoders(path, KERNEL if "holds" in manifest else container.kernel, manifest, found)
    sources_said = None
    if "holds" in manifest:
        files = weight_files(checkpoint, container, specs)
        sources_said = {name: metadata_for(METADATA, header) for name, header in files.headers.items()}
        kept_originals(files, manifest, found)
    layout(path, held, sources_said, found)
    prose(manifest, "holds" in manifest, found)
    return found


def _container(held: Stored, manifest: dict[str, Any], found: Findings) -> Container | None:
    """The container that an artifact says it is of; None, and a problem, when its matrices are of another."""
    field = "holds" if "holds" in manifest else "format"
    said = str(manifest.get(field))
    coded = held.coded is not None
    if coded != (manifest.get("format") == "llmc"):
        state = "coded" if coded else "not coded"
        found.problems.append(f"{MANIFEST}: format is {manifest.get('format')!r}, its tensors are {state}")
    if field == "holds" and (held.coded is None or _is_trellis(held.coded)):
        state = "a trellis" if coded else "not coded"
        found.problems.append(f"{MANIFEST}: holds is {said!r}, its tensors are {state}")
    stand = {packed.container for packed in held.packed.values()}
    if manifest.get("targets") and not stand and said not in ("dense", "llmc"):
        stand = {"dense"}
    if said not in CONTAINERS or not stand <= {said}:
        others = f", its matrices are stored as {', '.join(sorted(stand))}" if stand else ""
        found.problems.append(f"{MANIFEST}: {field} is {said!r}{others}")
        return None
    container: Container = CONTAINERS.get(said)()
    return container


def _is_trellis(coded: CodedTensors) -> bool:
    return any(coded.head(name).kind == TRELLIS for name in coded.entries)


def lossless_against(path: Path, original: Path, manifest: dict[str, Any]) -> Findings:
    """Hold a folder or file that was coded without loss against what it was made from: bit for bit."""
    found = Findings()
    files = sources(original)
    _same_bits(CodedTensors(path), {name: e for f in files for name, e in f.entries.items()}, original.name, found)
    if not path.is_dir():
        return found
    here, before = beside(original, files), manifest.get("original_files", {})
    exact = bool((manifest.get("recipe", {}).get("lossless") or {}).get("exact_files"))
    exact = exact or bool(manifest.get("original_digests"))
    headers = any(about.get("header") for about in manifest.get("originals", {}).values()) if here.before else exact
    _recorded(here.before, originals(files, headers), manifest, original.name, found)
    for name in sorted(here.kept.keys() | before.keys()):
        if here.kept.get(name) != before.get(name):
            found.problems.append(f"{MANIFEST}: original_files: {name} differs from {original.name}")
    found.compared["texts that decompress gives back"] = len(here.kept)
    if "config.json" in here.kept:
        config = read_config(original)
        method = quantization_of(original, config, here.before, mode_of(path))
        config_against(path, {**config, "quantization_config": method}, original.name, found)
    for name, digest in manifest.get("original_digests", {}).items():
        if name not in before and not name.endswith(".safetensors") and _digest(original / name) != digest:
            found.problems.append(f"{MANIFEST}: original_digests: {name} differs from {original.name}")
    held = stored(path, {})
    side_files(path, original, here.copied if original.is_dir() else (), {}, held, found)
    decoders(path, KERNEL, manifest, found)
    layout(path, held, {f.path.name: metadata_of(f, exact) for f in files}, found)
    prose(manifest, True, found)
    return found


def _recorded(
    before: dict[str, Any], files: dict[str, Any], manifest: dict[str, Any], where: str, found: Findings
) -> None:
    """What a lossless folder says of the files that were coded, and of the matrices of an artifact.

    Args:
        before: the manifest of the original where it is an artifact.
    """
    told = {
        "format": ("llmc", manifest.get("format")),
        "holds": (before.get("format"), manifest.get("holds")),
        "originals": (files, manifest.get("originals")),
        "targets": tuple(_without_sizes(rows) for rows in (before.get("targets", []), manifest.get("targets", []))),
    }
    for key, (one, other) in told.items():
        if digest_json(one) != digest_json(other):
            found.problems.append(f"{MANIFEST}: {key} is not what llmc writes for {where}")


def _without_sizes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "bits_per_weight"} for row in rows]


def _specs(checkpoint: Checkpoint, held: Stored, container: Container, manifest: dict[str, Any]) -> dict[str, Spec]:
    """Name on disk -> how the artifact stores it, of every matrix of the original that it stores encoded."""
    said = {row["tensor"]: _grid_said(row) for row in manifest.get("targets", [])}
    out = {}
    for target in checkpoint.targets:
        packed = held.packed.get(target.tensor.removesuffix(".weight"))
        if packed is not None:
            dtype = container.scale_dtype(target) or str(packed.dtype).removeprefix("torch.")
            out[target.tensor] = Spec(target, grid_of(packed, dtype))
        elif container.coded and target.tensor in said:
            out[target.tensor] = Spec(target, cast("Grid", TrellisGrid()))
        elif said.get(target.tensor) == Values.__name__ and container != Dense():
            out[target.tensor] = Spec(target, Values())
    return out


def _grid_said(row: Mapping[str, Any]) -> Any:
    """The name of the grid that a row records, as far as it records one."""
    grid = row.get("grid")
    return grid.get("name") if isinstance(grid, dict) else None


def _rows(
    checkpoint: Checkpoint,
    held: Stored,
    container: Container,
    specs: dict[str, Spec],
    manifest: dict[str, Any],
    found: Findings,
) -> None:
    """Every encoded matrix has one row, and every row its error, reproduced from the original."""
    targets = {t.tensor: t for t in checkpoint.targets}
    rows: dict[str, dict[str, Any]] = {}
    for row in manifest.get("targets", []):
        name, target = row["tensor"], targets.get(row["tensor"])
        if name in rows:
            found.problems.append(f"{MANIFEST}: {name} has two rows")
        rows[name] = row
        decoded = held.decode(row)
        if target is None or target.shape != tuple(decoded.shape):
            where = checkpoint.folder.name
            found.problems.append(f"target {row['target']}: not in {where}, or of another shape there")
            continue
        layout = sorted(holder(container, specs[name]).layout(specs[name])) if name in specs else [name]
        about = (target.name, target.transposed, list(target.shape), layout)
        if (row["target"], row["transposed"], row.get("shape"), row.get("stored", layout)) != about:
            found.problems.append(f"{MANIFEST}: the row of {name} says another name, shape or tensors than it has")
        if "source" in row and "snr_db" not in row and name in specs:
            row, decoded = _at_source(row, held, container, specs[name])
        _error(checkpoint.matrix(target), decoded, row, manifest, found)
        if name in specs and not _is_canonical(held, container, specs[name]):
            found.problems.append(f"target {row['target']}: stored in another way than llmc stores what it decodes to")
    found.problems += [f"{MANIFEST}: {name} is encoded and has no row" for name in specs if name not in rows]
    found.compared["matrices whose recorded error was reproduced"] = len(rows)
    if manifest.get("format_version") == FIRST and rows:
        found.unseen["changes of less than 0.001 dB in a matrix"] = "format version 1 records no more"


def _error(
    weight: torch.Tensor, decoded: torch.Tensor, row: dict[str, Any], manifest: dict[str, Any], found: Findings
) -> None:
    """Measure the error of a matrix again, and hold it against what its row says."""
    name = row["target"]
    snr = signal_to_noise(weight, decoded)
    if snr is not None and (found.worst is None or snr < found.worst[1]):
        found.worst = (name, snr)
    if "snr_db" not in row:
        found.problems.append(f"target {name}: SNR {snr} dB, and no error is recorded that this could reproduce")
    elif not _close(snr, row["snr_db"]):
        found.problems.append(f"target {name}: SNR {snr} dB, reported {row['snr_db']}")
    elif manifest.get("format_version") != FIRST and "bond" not in row:
        found.problems.append(f"target {name}: no bond with {row['tensor']} is recorded")
    elif manifest.get("format_version") != FIRST and row["bond"] != bond(weight, row["decoded"]):
        found.problems.append(f"target {name}: its values are not those that were made from {row['tensor']}")
    made_up = isinstance(row.get("notes"), dict) and "aim" in row["notes"]  # for what layers before it lost: on purpose
    if snr is not None and snr < -TOLERANCE_DB and not made_up:
        found.problems.append(f"target {name}: SNR {snr} dB: its errors are larger than its values")


def _at_source(
    row: dict[str, Any], held: Stored, container: Container, spec: Spec
) -> tuple[dict[str, Any], torch.Tensor]:
    """The row and the values of the container that a matrix was exported from, which decodes to another dtype."""
    source = row["source"] if isinstance(row["source"], dict) else {}
    packed = held.packed[spec.target.tensor.removesuffix(".weight")]
    dtype = getattr(torch, str(source.get("dtype")), None)
    prefix = spec.target.tensor.removesuffix("weight")
    unpacked = container.unpack(spec, {prefix + local: tensor for local, tensor in packed.tensors().items()})
    values = unpacked.dequantize(dtype if isinstance(dtype, torch.dtype) else packed.dtype)
    digest = hashlib.sha256(raw_bytes(values)).hexdigest()
    said = {key: source[key] for key in ("snr_db", "bond") if key in source}
    return {"target": row["target"], "tensor": row["tensor"], "decoded": digest, **said}, values


def _is_canonical(held: Stored, container: Container, spec: Spec) -> bool:
    """Whether the tensors of an encoded matrix are those that llmc would write for its codes and params."""
    packed = held.packed.get(spec.target.tensor.removesuffix(".weight"))
    if packed is None:  # a trellis, which has one stream
        return True
    prefix = spec.target.tensor.removesuffix("weight")
    tensors = {prefix + local: tensor for local, tensor in packed.tensors().items()}
    again = container.pack(spec, container.unpack(spec, tensors))
    return tensors.keys() == again.keys() and all(
        (t.dtype, t.shape) == (again[n].dtype, again[n].shape)
        and raw_bytes(t.contiguous()) == raw_bytes(again[n].contiguous())
        for n, t in tensors.items()
    )


def _tensors(
    checkpoint: Checkpoint,
    held: Stored,
    container: Container,
    specs: dict[str, Spec],
    manifest: dict[str, Any],
    found: Findings,
) -> None:
    """Every tensor is part of an encoded matrix, or the same as in the original; of both sides none is left."""
    parts = {name for spec in specs.values() for name in holder(container, spec).layout(spec)}
    written = {row["tensor"] for row in manifest.get("targets", [])} if container.name == "dense" else set(specs)
    kept = [name for name in checkpoint.stored if name not in written]
    where = checkpoint.folder.name
    for name in kept:
        if name not in held.entries or not _same(held, name, checkpoint):
            found.problems.append(f"tensor {name}: differs from {where}")
    known = {*kept, *parts, *written} if container.coded or container.name == "dense" else {*kept, *parts}
    for name in sorted(held.entries.keys() - known):
        found.problems.append(f"tensor {name}: not in {where}")
    found.compared["tensors with the original's bits"] = len(kept)
    if spare := len(checkpoint.entries) - len(checkpoint.stored):
        found.compared["tensors left out: tied, or computed by the model"] = spare


def _same(held: Stored, name: str, checkpoint: Checkpoint) -> bool:
    mine, other = held.read(held.entries[name]), checkpoint.tensor(name)
    return (mine.dtype, mine.shape) == (other.dtype, other.shape) and raw_bytes(mine) == raw_bytes(other)


def _same_bits(coded: CodedTensors, source: Mapping[str, Any], where: str, found: Findings) -> None:
    """Every tensor of both sides, bit for bit."""
    found.problems += [f"tensor {name} is not in {where}" for name in sorted(coded.entries.keys() - source.keys())]
    found.problems += [f"tensor {name} is missing" for name in sorted(source.keys() - coded.entries.keys())]
    names = [name for name in coded.entries if name in source]
    for name, tensor in coded.tensors(names, threads=cores()):
        other = load(source[name])
        alike = (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        if not alike or raw_bytes(tensor) != raw_bytes(other):
            found.problems.append(f"tensor {name}: differs from {where}")
    found.compared["tensors with the original's bits"] = len(names)


def signal_to_noise(original: torch.Tensor, decoded: torch.Tensor) -> float | None:
    """10 log10(sum w^2 / sum (w - w')^2) in dB, in float64; None when there is no error."""
    reference = original.double()
    noise = float((decoded.double() - reference).square().sum())
    signal = float(reference.square().sum())
    return decibels(signal, noise)


def _close(one: float | None, other: Any) -> bool:
    if one is None or not isinstance(other, int | float):
        return one is other
    return abs(one - other) <= TOLERANCE_DB


def _digest(path: Path) -> str | None:
    return digest_file(path) if path.is_file() else None
