"""What `verify --against` compares besides tensors: config.json, side files, decoders, index, metadata."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.artifacts.kernel_folder import kernel_files
from llmc.artifacts.layout import METADATA, WeightFiles
from llmc.artifacts.sidecar import INDEX
from llmc.encodings.coding.tensor_coder import MODES
from llmc.files.header import HEADER_LIMIT
from llmc.files.manifest import MANIFEST, SUMS, digest_file, digest_json, dump_json
from llmc.files.safetensors import read_file
from llmc.files.travel import ARCHIVE
from llmc.formats.coded_files import INDEX as CODED_INDEX
from llmc.formats.coded_files import SINGLE, CodedTensors, coded_name, is_coded
from llmc.formats.container import Container, Facts, Spec, encoded
from llmc.models.config import read_config
from llmc.models.tensors import Stored

WEIGHT_INDEXES = (INDEX, CODED_INDEX)
WRITTEN = ("config.json", "README.md", MANIFEST, SUMS, ARCHIVE, *WEIGHT_INDEXES)
"""Files that llmc writes itself; each is checked in its own way, or listed as not compared."""
CARD = "the card is for people"
READ = {"format_version", "files", "fields", "tensors", "targets", "format"}
READ_OF_CODED = READ | {"holds", "originals", "original_files", "original_digests"}
"""Fields of a manifest that are compared, or checked without an original; all others are listed as not compared."""
ROW = {"target", "tensor", "transposed", "shape", "stored", "decoded"}
"""Fields of a row that are compared always."""
ABSENT = object()


@dataclass
class Findings:
    """What was compared, and what came of it.

    Attributes:
        compared: what, and how many of it.
        unseen: what was not compared, and why.
        worst: the matrix with the largest error, and its signal-to-noise ratio in dB.
    """

    problems: list[str] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=lambda: {"README.md": CARD})
    worst: tuple[str, float] | None = None


def config_against(path: Path, want: dict[str, Any], where: str, found: Findings) -> None:
    """config.json key by key, quantization_config too."""
    mine = read_config(path)
    for name, one, other in (
        ("", mine, want),
        ("quantization_config.", mine.get("quantization_config"), want.get("quantization_config")),
    ):
        one, other = (x if isinstance(x, dict) else {} for x in (one, other))
        for key in sorted(one.keys() | other.keys()):
            nested = not name and key == "quantization_config"
            if not nested and not _alike(one.get(key, ABSENT), other.get(key, ABSENT)):
                found.problems.append(f"config.json: {name}{key} is not what llmc writes for {where}")
    if ("quantization_config" in mine) != ("quantization_config" in want):
        found.problems.append(f"config.json: quantization_config is not what llmc writes for {where}")
    if written_document(path / "config.json") is None:
        found.problems.append("config.json: not spelled as llmc does: other readers may find other values in it")
    found.compared["keys of config.json"] = len(want)


def _alike(one: Any, other: Any) -> bool:
    return one is other if ABSENT in (one, other) else digest_json(one) == digest_json(other)


def written_document(file: Path) -> Any:
    """The content of a JSON file; None when llmc spells it otherwise, as when a field is there twice."""
    try:
        data = file.read_bytes()
        document = json.loads(data)
        return document if dump_json(document) == data else None
    except (OSError, ValueError, RecursionError):
        return None


def prose(manifest: dict[str, Any], coded: bool, found: Findings) -> None:
    """List the fields of the manifest and of its rows that are not compared."""
    fields = manifest.keys() - (READ_OF_CODED if coded else READ)
    rows = {key for row in manifest.get("targets", []) for key in row.keys() - ROW - _evidence(row)}
    for where, names in ((MANIFEST, fields), (f"{MANIFEST}: targets", rows)):
        if names:
            found.unseen[f"{where}: {', '.join(sorted(names))}"] = "how it was made"


def _evidence(row: dict[str, Any]) -> set[str]:
    """The fields of a row that say how large its errors are: its own, or those of what it was exported from."""
    return {"snr_db", "bond"} if "snr_db" in row or "source" not in row else {"source"}


def kept_config(inner: dict[str, Any], manifest: dict[str, Any], found: Findings) -> None:
    """The config.json that decompress gives back of a coded artifact."""
    try:
        kept = json.loads(manifest.get("original_files", {}).get("config.json", ""))
    except ValueError:
        kept = None
    if digest_json(kept) != digest_json(inner):
        found.problems.append(f"{MANIFEST}: original_files: config.json is not what llmc wrote")
    found.unseen[f"{MANIFEST}: original_files: README.md"] = CARD
    found.unseen[f"{MANIFEST}: original_digests"] = "decompress refuses what does not fit them"


def kept_originals(files: WeightFiles, manifest: dict[str, Any], found: Findings) -> None:
    """Sizes, headers and index of the weight files that decompress gives back of a coded artifact."""
    index, texts = files.index(), manifest.get("original_files", {})
    text = None if index is None else dump_json(index).decode()
    wrong = [INDEX] * (texts.get(INDEX) != text) + sorted(texts.keys() - {"config.json", "README.md", INDEX})
    found.problems += [f"{MANIFEST}: original_files: {name} is not what llmc wrote" for name in wrong]
    said = manifest.get("originals", {})
    for name in sorted(files.sizes.keys() | said.keys()):
        about, header = said.get(name, {}), files.headers.get(name, b"")
        digests = (None, hashlib.sha256(header).hexdigest())
        if about.get("bytes") != files.sizes.get(name) or about.get("header") not in digests:
            found.problems.append(f"{MANIFEST}: originals: {name} is not what llmc wrote")


def coded_method(path: Path, inner: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """quantization_config of a coded artifact, whose own config.json was `inner`."""
    weights = CODED_INDEX if (path / CODED_INDEX).is_file() else SINGLE
    method = {"quant_method": "llmc", "mode": mode_of(path), "weights": weights, "dequantize": True}
    turned = sorted(row["tensor"] for row in manifest.get("targets", []) if row.get("transposed"))
    if "quantization_config" in inner:
        method |= {"original": inner["quantization_config"], **({"transposed": turned} if turned else {})}
    return method


def mode_of(path: Path) -> str:
    """How tensors were coded, which changes nothing that they decode to."""
    own = read_config(path).get("quantization_config") if (path / "config.json").is_file() else None
    said = own.get("mode") if isinstance(own, dict) else None
    return str(said) if said in MODES else "balanced"


def extra_files(
    path: Path, container: Container, specs: dict[str, Spec], facts: Facts, found: Findings
) -> dict[str, Any]:
    """The further files of a container, compared."""
    extra = container.extra_files(encoded(specs.values()), facts) if specs else {}
    for name, content in extra.items():
        if digest_json(written_document(path / name)) != digest_json(content):
            found.problems.append(f"{name}: not what llmc writes")
    return extra


def side_files(
    path: Path, original: Path, names: Iterable[str], extra: Mapping[str, Any], held: Stored, found: Findings
) -> None:
    """Tokenizer, templates, processors, licences: the original's bytes, none more and none less."""
    own = {*WRITTEN, *extra, *(entry.file.name for entry in held.entries.values())}
    own |= {e.file.name for p in held.packed.values() for e in p.parts.values()}
    here = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.is_relative_to(path)}
    here = {name for name in here if name not in own and not name.startswith("kernel/")}
    wanted = set(names)
    where = original.name
    found.problems += [f"{name}: not in {where}" for name in sorted(here - wanted)]
    found.problems += [f"{name}: in {where}, and missing here" for name in sorted(wanted - here)]
    for name in sorted(here & wanted):
        if digest_file(path / name) != digest_file(original / name):
            found.problems.append(f"{name}: differs from {where}")
    found.compared["files beside the weights"] = len(wanted)


def decoders(path: Path, kernel: str, manifest: dict[str, Any], found: Findings) -> None:
    """The decoders in `kernel/` are those that this llmc ships."""
    from llmc import __version__

    shipped = {name: hashlib.sha256(data).hexdigest() for name, data in kernel_files([kernel]).items()}
    here = {p.relative_to(path).as_posix() for p in path.glob("kernel/**/*") if p.is_file()}
    differing = sorted(n for n in here | shipped.keys() if n not in here or digest_file(path / n) != shipped.get(n))
    version = str(manifest.get("llmc"))
    other = "" if version == __version__ else f"; {MANIFEST} names llmc {version}: if it is right, verify with that"
    found.problems += [f"{name}: not the decoder that llmc {__version__} ships{other}" for name in differing]
    found.compared["files of the decoder"] = len(shipped)


def _unpacked(metadata: dict[str, str]) -> dict[str, Any]:
    """Metadata of a coded file, with the header that it keeps as it was before zlib, whose versions differ."""
    if "header" not in metadata:
        return metadata
    try:
        unpack = zlib.decompressobj()
        header = unpack.decompress(base64.b64decode(metadata["header"], validate=True), HEADER_LIMIT + 8)
    except (ValueError, zlib.error):
        header = b""
    return {**metadata, "header": header}


def layout(path: Path, held: Stored, metadata: dict[str, dict[str, str]] | None, found: Findings) -> None:
    """The index and the metadata of the weight files say what is there.

    Args:
        metadata: what coded files say of their sources, by the name of those; None for files of a container's own.
    """
    entries = CodedTensors(path).entries if is_coded(path) else None
    stands = dict(entries or held.entries)
    if entries is None:
        stands |= {e.name: e for p in held.packed.values() for e in p.parts.values()}
    placed, total = {n: e.file.name for n, e in stands.items()}, sum(e.nbytes for e in stands.values())
    wanted = {coded_name(name): said for name, said in (metadata or {}).items()}
    for file in sorted(set(placed.values())):
        said = read_file(path / file).metadata
        if metadata is None:
            same = said == METADATA
        else:
            other = wanted.get(file, {})
            if "header" not in said:
                other = {key: value for key, value in other.items() if key != "header"}
            same = _unpacked(said) == _unpacked(other)
        if not same:
            found.problems.append(f"{file}: its metadata is not what llmc writes")
    for index in (name for name in WEIGHT_INDEXES if (path / name).is_file()):
        wanted_index = {"metadata": {"total_size": total}, "weight_map": placed}
        if digest_json(written_document(path / index)) != digest_json(wanted_index):
            found.problems.append(f"{index}: lists other tensors, files or sizes than there are")
