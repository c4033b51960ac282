"""`llmc.json`, the manifest of an artifact, and `SHA256SUMS`, which seals it.

The manifest holds a SHA-256 per file, per tensor (stored bytes) and per Target (decoded values), and one per top-level
field of every JSON file, itself included, so that a flipped bit can be named.
"""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llmc.errors import CheckpointError
from llmc.files.strict_json import misfit, short

FORMAT_VERSION = 2
"""2: rows of matrices have a bond."""
READABLE_VERSIONS = (1, FORMAT_VERSION)
MANIFEST = "llmc.json"
SUMS = "SHA256SUMS"
CARD = "README.md"

HALVES = re.compile(rb"\\u[dD][89a-fA-F]")
"""Halves of surrogate pairs, which may stand alone: such text cannot be written again."""
NUMBER = (int, float, type(None))
FORM: dict[str, Any] = {
    "tensors?": {"*": {"file": str, "decoded?": str, "shape?": [int], "elements?": int, "bytes?": int}},
    "targets?": [
        {
            "target": str,
            "tensor": str,
            "transposed": bool,
            "decoded": str,
            "shape?": [int],
            "stored?": [str],
            "snr_db?": NUMBER,
            "bits_per_weight?": NUMBER,
        }
    ],
    "files?": {"*": {"bytes": int, "sha256": str}},
    "fields?": {"*": {"*": str}},
    "originals?": {"*": {"bytes": int, "header?": (str, type(None))}},
    "original_files?": {"*": str},
    "original_digests?": {"*": str},
    "base_model?": str,
    "format?": str,
    "holds?": (str, type(None)),
    "llmc?": str,
    "recipe?": {"lossless?": dict},
    "sizes?": {"*": NUMBER},
    "notes?": [str],
}
"""What stands in a manifest, as `strict_json.misfit` reads it; what is not listed here is not read."""


def digest_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in a canonical spelling."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def field_digests(document: dict[str, Any]) -> dict[str, str]:
    """One digest per top-level field."""
    return {key: digest_json(value) for key, value in sorted(document.items())}


def dump_json(document: Any) -> bytes:
    """JSON as llmc writes it: two spaces, a newline at the end."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def write_manifest(folder: Path, body: dict[str, Any]) -> None:
    """Write `llmc.json` and `SHA256SUMS` over all files that are in `folder` now.

    Args:
        body: recipe, versions, tensors, targets, ...; `format_version`, `files` and `fields` are added here.
    """
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: path for name, path in files.items() if name not in (MANIFEST, SUMS)}  # of a run cut off here
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(files, pool.map(digest_file, files.values()), strict=True))
    listed: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size, "sha256": digests[name]} for name, path in files.items()
    }
    fields = {}
    for name, path in files.items():
        document = _json_object(path) if name.endswith(".json") and path.stat().st_size < 1 << 20 else None
        if document is not None:
            fields[name] = field_digests(document)
    document = {"format_version": FORMAT_VERSION, **body, "files": listed, "fields": fields}
    document["fields"][MANIFEST] = {k: d for k, d in field_digests(document).items() if k != "fields"}
    (folder / MANIFEST).write_bytes(dump_json(document))
    sums = {name: entry["sha256"] for name, entry in listed.items()} | {MANIFEST: digest_file(folder / MANIFEST)}
    (folder / SUMS).write_text(_sums_text(sums), encoding="utf-8")


def resealed(folder: Path, name: str, data: bytes) -> dict[str, bytes]:
    """What files an artifact would hold with another content of one of them: that file, the manifest and the seal.

    Nothing is written, and no other file is looked at: what is recorded of them stands.

    Args:
        name: of a file that is no JSON.

    Raises CheckpointError when manifest and seal do not belong together.
    """
    document, sums = read_manifest(folder), _sums(folder)
    fields = {k: d for k, d in field_digests(document or {}).items() if k != "fields"}
    listed = (document or {}).get("files", {})
    known: dict[str, str] = {other: entry["sha256"] for other, entry in listed.items() if other != name}
    of_others = {other: digest for other, digest in sums.items() if other not in (name, MANIFEST)}
    if document is None or known != of_others or document.get("fields", {}).get(MANIFEST) != fields:
        fix = "write or download the artifact again"
        raise CheckpointError(f"{MANIFEST} and {SUMS} do not belong together", where=folder.name, fix=fix)
    digest = _digest(data)
    document["files"] = dict(sorted({**listed, name: {"bytes": len(data), "sha256": digest}}.items()))
    document["fields"][MANIFEST] = {k: d for k, d in field_digests(document).items() if k != "fields"}
    manifest = dump_json(document)
    after: dict[str, str] = {**of_others, name: digest, MANIFEST: _digest(manifest)}
    return {name: data, MANIFEST: manifest, SUMS: _sums_text(after).encode()}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact, or None when the folder has none.

    Raises CheckpointError for one that cannot be read or makes no sense: to go on without it would prove nothing.
    """
    if not (folder / MANIFEST).is_file():
        return None
    document = _json_object(folder / MANIFEST)
    wrong = "it is not a JSON object" if document is None else malformed(document)
    if document is None or wrong is not None:
        problem = wrong if document is None else f"{short(str(wrong))} is not of its type"
        fix = "write or download the artifact again"
        raise CheckpointError(f"{MANIFEST}: {problem}", where=folder.name, fix=fix)
    return document


def malformed(document: dict[str, Any]) -> str | None:
    """The first field of a manifest that is not of its type, e.g. `targets[3].tensor`; None when all are."""
    if document.get("format_version") not in READABLE_VERSIONS:
        return "format_version"
    return misfit(document, FORM, "")


def salvaged(data: bytes) -> dict[str, Any]:
    """The top-level fields of a damaged JSON file that can still be read, if each begins a line, indented by two."""
    out = {}
    text = data.decode(errors="replace").rstrip(" \n").removesuffix("}")
    pieces = re.split(r'^  "([^"\n]*)": ', text, flags=re.M)[1:]
    for key, value in zip(pieces[::2], pieces[1::2], strict=True):
        try:
            out[key] = json.loads(value.rstrip(" \n").removesuffix(","))
        except (ValueError, RecursionError):
            continue
    return out


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sums(folder: Path) -> dict[str, str]:
    """Name -> digest, as the seal lists them; empty without one."""
    text = (folder / SUMS).read_text(encoding="utf-8", errors="replace") if (folder / SUMS).is_file() else ""
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}


def _sums_text(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
        document = json.loads(data)
        if HALVES.search(data):
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
