"""What a lossless folder keeps of an artifact of llmc beside its tensors, so that every file comes back as it was.

`original.llmc.zip` holds the files that the coded folder has no equal of: manifest, seal, decoders. The manifest lists
the SHA-256 of every file that is to come back (`original_digests`).
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from llmc.errors import CheckpointError
from llmc.manifest import SUMS, digest_file, read_manifest

ARCHIVE = "original.llmc.zip"
MEMBER_LIMIT = 1 << 28  # bytes of one file in it
AGAIN = "write or download the folder again"


def sealed(source: Path | None) -> dict[str, Any]:
    """The manifest of a folder that is an artifact of llmc with encoded matrices, else nothing."""
    if source is None or not (source / SUMS).is_file():
        return {}
    manifest = read_manifest(source) or {}
    return manifest if manifest.get("targets") else {}


def keep(source: Path, folder: Path, kept: dict[str, str], exact: bool) -> dict[str, str]:
    """Put what `folder` has no equal of into its archive.

    Args:
        kept: files whose text is in the manifest.
        exact: the weight files come back byte for byte too.

    Returns the SHA-256 of every file of the artifact `source` that will come back.
    """
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    names = [name for name in names if "__pycache__" not in name]
    weights = {name for name in names if name.endswith(".safetensors")}
    digests = {name: digest_file(source / name) for name in names if exact or name not in weights}
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            own = folder / name
            if name in weights or name in kept or (own.is_file() and digest_file(own) == digests[name]):
                continue
            about = zipfile.ZipInfo(name)  # its date is a fixed one
            about.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(about, (source / name).read_bytes(), compresslevel=9)
    return digests


def restore(source: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Bring back into `folder` what the archive of `source` holds, and check all files that were to come back.

    Raises CheckpointError when the archive is damaged, or a file is not what it was.
    """
    digests = manifest.get("original_digests")
    if not isinstance(digests, dict) or not digests:
        return
    try:
        with zipfile.ZipFile(source / ARCHIVE) as archive:
            for about in archive.infolist():
                _extract(archive, about, folder, digests)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{ARCHIVE} is damaged: {error}", where=source.name, fix=AGAIN) from None
    for name, digest in digests.items():
        if not _inside(name) or not (folder / name).is_file() or digest_file(folder / name) != digest:
            raise CheckpointError(f"{name} did not become what it was", where=source.name, fix=AGAIN)


def _extract(archive: zipfile.ZipFile, about: zipfile.ZipInfo, folder: Path, digests: dict[str, Any]) -> None:
    if about.filename not in digests or not _inside(about.filename) or about.file_size > MEMBER_LIMIT:
        raise CheckpointError(f"{ARCHIVE} holds {about.filename!r}, which does not belong there", fix=AGAIN)
    place = folder / about.filename
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(archive.read(about))


def _inside(name: str) -> bool:
    """Whether a path stays in the folder that it is relative to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and name not in ("", ".")
