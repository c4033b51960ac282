"""The disk: its errors as one line, writes that last, and two folders that change places in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmc.errors import InputError, StorageError

AT_CWD = -100
EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2), and RENAME_SWAP of macOS."""
UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV)


@contextmanager
def disk_errors(out: Path, what: str = "write") -> Iterator[None]:
    """Turn errors of the operating system into one line about the disk."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "free some space and run the same command again" if full else ""
        raise StorageError(f"cannot {what}: {error.strerror or error}", where=out.name, fix=fix) from error


def require_utf8(path: Path) -> None:
    """Raise InputError for a path that no manifest can name and no tokenizer open."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise InputError("its path is not UTF-8", where=str(path), fix="rename it") from None


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` every file and folder below `folder`, and itself last."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False, and nothing done, where the file system cannot.

    Raises OSError for any other reason.
    """
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        failed = system.renamex_np(*names, EXCHANGE)
    elif hasattr(system, "renameat2"):
        failed = system.renameat2(AT_CWD, names[0], AT_CWD, names[1], EXCHANGE)
    else:
        return False
    if failed and ctypes.get_errno() not in UNABLE:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return not failed
