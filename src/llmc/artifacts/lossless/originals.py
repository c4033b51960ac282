"""What a lossless folder keeps of an artifact of llmc beside its tensors, so that every file comes back as it was.

`original.llmc.zip` holds the two files that the coded folder has no equal of: manifest and seal. Nothing else is ever
taken from it: no weights, no code, no other names. The decoders are written by the installed llmc where they are the
same. The manifest lists the SHA-256 of every file that is to come back (`original_digests`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmc.artifacts.kernel_folder import kernel_files
from llmc.errors import CheckpointError
from llmc.files.disk import disk_errors
from llmc.files.manifest import MANIFEST, SUMS, digest_file, read_manifest
from llmc.files.safetensors import is_regular
from llmc.files.travel import ARCHIVE, distinct, inside, left_out_note, survey
from llmc.formats import CONTAINERS

HELD = (MANIFEST, SUMS)
"""The members that are taken from an archive."""
KERNEL = "kernel/"
MEMBER_LIMIT = 1 << 30
"""Bytes of one of them."""
RATIO_LIMIT, FREE_BYTES = 200, 1 << 20
"""What deflate may have saved, of members that are larger than that."""
DIRECTORY_LIMIT = 1 << 20
"""Bytes of an archive's directory: some ten thousand members."""
CHUNK = 1 << 20
AGAIN = "write or download the folder again"
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)
LISTED = re.compile(r"[0-9a-f]{64}  (\S.*)")
"""A line of SHA256SUMS."""


def sealed(source: Path | None) -> dict[str, Any]:
    """The manifest of a folder that is an artifact of llmc with encoded matrices, else nothing."""
    if source is None or not {*HELD} <= {*survey(source, deep=False).files}:
        return {}
    manifest = read_manifest(source) or {}
    return manifest if manifest.get("targets") else {}


def keep(source: Path, folder: Path, names: Iterable[str], before: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Put what `folder` has no equal of into its archive.

    Args:
        names: files of `source` that come back from elsewhere: copies, texts in the manifest, weights.
        before: the manifest of the artifact `source`.

    Returns the SHA-256 of every file that will come back, and notes on decoders that will not.
    """
    digests = {name: digest_file(source / name) for name in [*names, *HELD]}
    decoders, notes = _decoders(source, before.get("format"))
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in HELD:
            about = zipfile.ZipInfo(name)  # its date is a fixed one
            about.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(about, (source / name).read_bytes(), compresslevel=9)
    return dict(sorted((digests | decoders).items())), notes


def restore(source: Path, folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Bring back into `folder` what the archive of `source` holds, and check all files that were to come back.

    Returns notes on what of the artifact did not come back, and why.

    Raises CheckpointError when the archive is damaged or holds what none does, or a file is not what it was.
    """
    digests = _recorded(source, manifest)
    if not digests:
        return []
    listed = _extract(source, folder, digests)
    recorded = {name for name in digests if name.startswith(KERNEL)}
    decoders = _shipped(manifest.get("holds"))
    if all(_digest(decoders.get(name, b"")) == digests[name] for name in recorded):
        for name in recorded:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(decoders[name])
    spared = (listed | recorded) - {*HELD}  # what older versions kept in the archive is not taken from there
    for name, digest in digests.items():
        path = folder / name
        here = path.is_file() and not path.is_symlink()
        if digest_file(path) != digest if here else name not in spared:
            raise CheckpointError(f"{name} did not become what it was", where=source.name, fix=AGAIN)
    return _missing(folder, digests)


def members(source: Path, digests: Iterable[str]) -> list[zipfile.ZipInfo]:
    """What the archive of `source` lists. Raises CheckpointError when it is damaged or lists what none of llmc does.

    Args:
        digests: the files that its manifest says come back.
    """
    path, known = source / ARCHIVE, set(digests)
    with _reading(source):
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
        clashes = distinct(about.filename for about in listed)[1]
        for about in listed:
            problem = "which does not belong there" if about.filename not in known else _problem(about)
            if problem or clashes:
                name = about.filename if problem else clashes[0][0]
                message = f"{ARCHIVE} holds {name!r}, {problem or clashes[0][1]}"
                raise CheckpointError(message, where=source.name, fix=AGAIN)
    return listed


def archive_problems(source: Path, manifest: dict[str, Any]) -> list[str]:
    """Why `restore` would refuse what `source` keeps of its original; nothing of a folder that keeps nothing."""
    if not manifest or not ((source / ARCHIVE).is_file() or manifest.get("original_digests")):
        return []
    try:
        digests = _recorded(source, manifest)
        listed = {about.filename: about for about in members(source, digests)}
        same = {n for n in HELD if n in listed and _member_digest(source, listed[n]) == digests.get(n)}
    except CheckpointError as error:
        return [error.message]
    return [f"{ARCHIVE}: {name} is not what is recorded" for name in HELD if name in digests and name not in same]


def _member_digest(source: Path, about: zipfile.ZipInfo) -> str:
    whole = hashlib.sha256()
    for piece in _pieces(source, about):
        whole.update(piece)
    return whole.hexdigest()


def _pieces(source: Path, about: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a member, never more than it says. Raises CheckpointError when it is damaged."""
    left = about.file_size
    with _reading(source), zipfile.ZipFile(source / ARCHIVE) as archive, archive.open(about) as member:
        while piece := member.read(min(CHUNK, left + 1)):
            left -= len(piece)
            if left < 0:
                raise zipfile.BadZipFile(f"{about.filename} is longer than it says")
            yield piece


def _recorded(source: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """The digests in a manifest. Raises CheckpointError when they are none, or of files outside the folder."""
    digests = manifest.get("original_digests", {})
    if not isinstance(digests, dict):
        raise CheckpointError("its original_digests are no list of files", where=source.name, fix=AGAIN)
    names = [str(name) for name in digests]
    bad = [n for n in names if not inside(n) or not re.fullmatch(r"[0-9a-f]{64}", str(digests[n]))]
    bad += [name for name, _ in distinct(names)[1]]
    if bad:
        raise CheckpointError(f"its original_digests name {bad[0]!r}", where=source.name, fix=AGAIN)
    return digests


def _extract(source: Path, folder: Path, digests: dict[str, str]) -> set[str]:
    """Write the members that are taken from the archive, piece by piece; the names of all."""
    listed = {about.filename: about for about in members(source, digests)}
    for name in (name for name in HELD if name in listed):
        with disk_errors(folder), open(folder / name, "wb") as out:
            for piece in _pieces(source, listed[name]):
                out.write(piece)
    return set(listed)


def _problem(about: zipfile.ZipInfo) -> str:
    """What is wrong with a member; "" when nothing is, whether it will be taken or not."""
    name, mode = about.filename, about.external_attr >> 16
    if about.is_dir() or not inside(name) or (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        return "which is no file of a folder"
    if name.lower().endswith(".safetensors"):
        return "and weights never come from there"
    packed = max(1, about.compress_size)
    if about.file_size > MEMBER_LIMIT or (about.file_size > FREE_BYTES and about.file_size > RATIO_LIMIT * packed):
        return f"which claims {about.file_size} bytes"
    return "" if about.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else "packed in another way"


def _check_directory(path: Path) -> None:
    """Raise BadZipFile unless an archive ends with a plain directory of moderate size, which `zipfile` reads whole."""
    if not is_regular(path):
        raise zipfile.BadZipFile("it is missing, or no regular file")
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 42))
        tail = file.read()
    end = tail[-22:]
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0" or tail[-42:-38] == b"PK\6\7":
        raise zipfile.BadZipFile("it does not end as an archive of llmc does")
    if struct.unpack("<I", end[12:16])[0] > DIRECTORY_LIMIT:
        raise zipfile.BadZipFile("it lists too many files")


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Errors of reading an archive as one line."""
    try:
        yield
    except (*DAMAGE, OSError) as error:
        raise CheckpointError(f"{ARCHIVE} is damaged: {error}", where=source.name, fix=AGAIN) from None


def _shipped(container: object) -> dict[str, bytes]:
    """Path -> bytes of the decoders that this llmc writes for a container."""
    if not isinstance(container, str) or container not in CONTAINERS:
        return {}
    return kernel_files([CONTAINERS.get(container)().kernel])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _decoders(source: Path, container: object) -> tuple[dict[str, str], list[str]]:
    """Digests of an artifact's decoders that this llmc can write again, and notes on what it cannot."""
    if not (source / KERNEL).is_dir():
        return {}, []
    shipped = {name: _digest(data) for name, data in _shipped(container).items()}
    found = survey(source / KERNEL)
    here = {KERNEL + name: digest_file(source / KERNEL / name) for name in found.files}
    same = shipped if shipped.items() <= here.items() else {}
    others = [(name, "not of this llmc" if name in shipped else "") for name in sorted(here.keys() - same)]
    others += [(KERNEL + name, reason) for name, reason in found.left_out]
    return same, list(left_out_note(others))


def _missing(folder: Path, digests: dict[str, str]) -> list[str]:
    """Notes on files that the artifact had, by its seal or by the record, and that are not here."""
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines() if SUMS in digests else []
    names = {match[1] for line in lines if (match := LISTED.fullmatch(line))} | digests.keys()
    gone = sorted(name for name in names if inside(name) and not (folder / name).is_file())
    decoders = [name for name in gone if name.startswith(KERNEL)]
    others = left_out_note([(name, "") for name in gone if name not in decoders])
    if not decoders:
        return list(others)
    return [
        *others,
        f"left out: {KERNEL}, {len(decoders)} files that are not those of this llmc; {SUMS} lists them still",
    ]
