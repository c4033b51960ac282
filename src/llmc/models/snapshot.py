"""A model's copy in the Hub's cache: what a download must not have left there, and what nobody may have put there.

Its files are links to blobs, and those of weights are called by the digest of their bytes. The Hub's client
compares sizes only.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmc.errors import CheckpointError, NetworkError
from llmc.files.travel import survey

DIGEST = re.compile(r"[0-9a-f]{64}")
"""Names of the blobs of large files: their SHA-256. Those of small ones are what a mirror likes."""


def hub_id(folder: Path) -> str | None:
    """The Hub id of a model's copy in the Hub's cache; None of any other folder."""
    place = folder.absolute().parent
    if place.name != "snapshots" or not place.parent.name.startswith("models--"):
        return None
    return place.parent.name.removeprefix("models--").replace("--", "/")


@contextmanager
def downloading(model: str, folder: Path) -> Iterator[None]:
    """Remove what arrives inside and is not what it is called, whether the download ends well or fails.

    Args:
        folder: where the Hub's client keeps the model.

    Raises NetworkError when a download that ended well brought other bytes than the Hub has.
    """
    before = _blobs(folder)
    try:
        yield
    except Exception:
        _remove_damaged(folder, before)
        raise
    if _remove_damaged(folder, before):
        raise NetworkError("other bytes arrived than the Hub has", where=model, fix="try again")


def check_links(model: str, snapshot: Path) -> None:
    """Refuse a snapshot with links that lead out of the cache. Raises CheckpointError."""
    astray = [name.rstrip("/") for name, reason in survey(snapshot).left_out if reason == "a link"]
    if astray:
        message = f"its copy in the cache has a link that leads elsewhere: {astray[0]}"
        raise CheckpointError(message, where=model, fix=f"remove {snapshot} and try again")


def _blobs(folder: Path) -> set[Path]:
    """The complete blobs of large files in a model's cache."""
    place = folder / "blobs"
    return {p for p in place.iterdir() if DIGEST.fullmatch(p.name)} if place.is_dir() else set()


def _remove_damaged(folder: Path, before: set[Path]) -> bool:
    """Remove the blobs that were not there before and are not what they are called; whether there were any."""
    wrong = [blob for blob in sorted(_blobs(folder) - before) if not is_digest(blob, blob.name)]
    for blob in wrong:
        blob.unlink(missing_ok=True)
    return bool(wrong)


def is_digest(content: Path | bytes, digest: str) -> bool:
    """Whether a digest as the Hub gives it (SHA-256 of large files, git's SHA-1 of the others) is this content's."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    whole = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while chunk := file.read(1 << 20):
            whole.update(chunk)
    return whole.hexdigest() == digest
