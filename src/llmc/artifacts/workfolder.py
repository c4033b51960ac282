"""The work folder of a run, `OUT.llmc-partial/`, and how a finished model gets from there to OUT.

It is created exclusively, carries a mark, and is never a link and never part of an input: what lies there without the
mark is somebody else's. A finished model and the one that it replaces change places in one step, or in two renames
where the file system cannot; `replacing.json` says which is which, so that a replacement that was cut off is completed
or taken back before anything else is decided. Nothing of the old one is removed before the new one is on disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from llmc.artifacts.inventory import Files, inventory, remove
from llmc.errors import OutputError
from llmc.files.disk import disk_errors, exchange, sync, sync_tree

PARTIAL, REPLACED = ".llmc-partial", ".llmc-replaced"
LOCK, JOURNAL, REPLACING = "lock", "journal.jsonl", "replacing.json"
MARK = b"llmc work folder\n"
OWN = (JOURNAL, "model", "model.tensors", "activations", "coded", f"coded{PARTIAL}", REPLACING, f"{REPLACING}.new")
"""All that a run makes there, besides the lock."""
LONGEST = 255
"""Bytes of a file name on common file systems."""


@dataclass(frozen=True)
class Replacement:
    """What is about to change places, by inode.

    Attributes:
        made: the folder beside the journal that holds the new model, and the old one afterwards.
        new, old: inodes; `old` is None when OUT holds nothing.
        files: what the old one holds.
    """

    made: str
    new: int
    old: int | None
    files: Files


class WorkFolder:
    """The folder that a run works in, locked while it is open."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = partial_of(out)
        self._lock: int | None = None

    @property
    def is_open(self) -> bool:
        return self._lock is not None

    @property
    def is_over(self) -> bool:
        """Whether all that a run left there is a replacement, done or not, or its last traces."""
        if not self.path.is_dir() or self.path.is_symlink():
            return False
        names = set(os.listdir(self.path))
        return REPLACING in names or names <= {LOCK}

    def open(self) -> None:
        """Create it, or take over the one of an earlier run, and lock it.

        Raises OutputError when another run holds it, or what lies there is not llmc's.
        """
        with disk_errors(self.out):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._take():  # a run that ends between two steps takes its folder along
                pass

    def clear(self) -> None:
        """Remove all that runs made in it, but the lock."""
        for name in OWN:
            _delete(self.path / name)

    def remove(self) -> None:
        """Remove it; what no run made stays, and the folder with it."""
        self.clear()
        _delete(self.path / LOCK)
        _ignoring(os.rmdir, self.path)

    def release(self) -> None:
        """Unlock it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def publish(self, made: str, *, force: bool) -> None:
        """Put the complete folder `made` in the place of OUT and remove the work folder.

        Raises OutputError, before anything is touched, when OUT holds what may not be replaced.
        """
        new = self.path / made
        sync_tree(new)
        files = _replaceable(self.out, force)
        old = None if files is None else _inode(self.out)
        replacement = Replacement(made, new.stat().st_ino, old, files or {})
        self._note(replacement)
        if old is None:
            _put(new, self.out)
        elif not exchange(new, self.out):
            self._rename_twice(new)
        sync(self.out.parent)
        sync(self.path)
        self._clean_up(replacement)

    def recover(self) -> None:
        """Complete or take back a replacement that was cut off. Raises OutputError when that cannot be told."""
        found = self._replacement()
        if found is None:
            if not (self.path / JOURNAL).exists():
                self.remove()
            return
        here, aside = _inode(self.out), replaced_of(self.out)
        if here == found.new:
            self._clean_up(found)
            return
        if here is None and found.old is not None and _inode(aside) == found.old:
            os.rename(aside, self.out)
            sync(self.out.parent)
        elif here != found.old:
            raise OutputError(
                f"{self.path.name} is of a replacement that was cut off, and the folders were changed since",
                where=self.out.name,
                fix=f"look what is in it, and move it away: it may hold the model that {self.out.name} held before",
            )
        _delete(self.path / REPLACING)

    def _take(self) -> bool:
        """One try to create and lock the folder; False when it vanished meanwhile."""
        try:
            os.mkdir(self.path)
        except FileExistsError:
            self._check_mark()
        try:
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise OutputError("another run is writing this output", where=self.out.name, fix="wait for it") from error
        if _inode(self.path / LOCK) != os.fstat(handle).st_ino:
            os.close(handle)
            return False
        self._lock = handle
        if os.pread(handle, len(MARK), 0) != MARK:
            os.pwrite(handle, MARK, 0)
            os.fsync(handle)
        return True

    def _check_mark(self) -> None:
        """Refuse a folder that no run of llmc made, or into which somebody put links."""
        if not stat.S_ISDIR(self.path.lstat().st_mode) or not self._is_marked():
            raise OutputError(
                f"{self.path.name}, where the work would be done, is not llmc's",
                where=self.out.name,
                fix="move it away, or choose another -o",
            )
        link = next((p for p in sorted(self.path.rglob("*")) if p.is_symlink()), None)
        if link is not None:
            raise OutputError(
                f"{link.relative_to(self.path.parent)} is a link, which llmc never makes there",
                where=self.out.name,
                fix="remove it, or choose another -o",
            )

    def _is_marked(self) -> bool:
        lock = self.path / LOCK
        with os.scandir(self.path) as entries:
            names = {entry.name for entry in entries}
        if not names:  # of a run that was killed right here
            return True
        if LOCK not in names or not stat.S_ISREG(lock.lstat().st_mode):
            return False
        return lock.read_bytes() == MARK or (names == {LOCK} and not lock.stat().st_size)

    def _note(self, replacement: Replacement) -> None:
        """Write down what is about to be replaced, in one step."""
        new = self.path / f"{REPLACING}.new"
        new.write_text(json.dumps(asdict(replacement)))
        sync(new)
        os.rename(new, self.path / REPLACING)
        sync(self.path)

    def _replacement(self) -> Replacement | None:
        try:
            return Replacement(**json.loads((self.path / REPLACING).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def _rename_twice(self, new: Path) -> None:
        aside = replaced_of(self.out)
        os.rename(self.out, aside)
        sync(self.out.parent)
        try:
            os.rename(new, self.out)
        except OSError:
            os.rename(aside, self.out)
            raise

    def _clean_up(self, done: Replacement) -> None:
        """Remove the old model and the work folder. Raises OutputError when not all of the old one goes."""
        aside = replaced_of(self.out)
        places = (self.path / done.made, aside)
        old = next((p for p in places if done.old is not None and _inode(p) == done.old), None)
        kept = old is not None and not _removed(old, done.files)
        if kept and old != aside:
            _put(self.path / done.made, aside)
        self.remove()
        if kept:
            raise OutputError(
                f"the new model is complete; what llmc may not delete of the old one lies in {aside.name}",
                where=self.out.name,
                fix="look at it there",
            )


def partial_of(out: Path) -> Path:
    """Where the work for OUT is done."""
    return out.with_name(out.name + PARTIAL)


def replaced_of(out: Path) -> Path:
    """Where an old OUT waits while two renames replace it."""
    return out.with_name(out.name + REPLACED)


def discard(out: Path) -> None:
    """Remove what unfinished runs left beside OUT, if anything is there and it is llmc's."""
    work = WorkFolder(out)
    if not work.path.is_dir():
        return
    work.open()
    work.remove()
    work.release()


def check_place(out: Path, force: bool, *inputs: Path) -> None:
    """Refuse an OUT that cannot be written to, after a replacement that was cut off there has been settled.

    Args:
        force: whether a model that lies there may be replaced.
        inputs: folders and files that are read: nothing of them may be touched.

    Raises OutputError.
    """
    _check_path(out)
    for path in inputs:
        _check_apart(out, path.resolve())
    work = WorkFolder(out)
    if work.is_over:
        with disk_errors(out):
            work.open()
            try:
                work.recover()
            finally:
                work.release()
    with disk_errors(out, "read"):
        _replaceable(out, force)


def _check_path(out: Path) -> None:
    """Refuse what is no place for a folder."""
    choose = "choose another -o"
    try:
        name = out.name.encode()
    except UnicodeEncodeError:
        raise OutputError("its name is not UTF-8", where=out.name, fix=choose) from None
    if "\0" in str(out) or len(name) + len(PARTIAL) > LONGEST:
        raise OutputError("its name is too long, or no name", where=out.name[:60], fix=choose)
    whole, here = out.resolve(), Path.cwd()
    if whole == here or whole in here.parents:
        raise OutputError("the output is the current folder, or holds it", where=str(out), fix="name a folder in it")
    if out.name == "..":
        raise OutputError("the output has no name of its own", where=str(out), fix=choose)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError("the output path exists and is not a folder", where=out.name, fix=choose)
    stop = next((p for p in out.absolute().parents if p.exists()), out)
    if not stop.is_dir():
        raise OutputError(f"{stop.name} is not a folder", where=out.name, fix=choose)


def _check_apart(out: Path, source: Path) -> None:
    """Refuse an OUT that is an input or lies inside it, or the other way round; its work folders likewise."""
    fix = "choose another -o"
    for place in (out, partial_of(out), replaced_of(out)):
        whole = place.parent.resolve() / place.name
        what = "output" if place == out else f"work folder {place.name}"
        if whole == source or source in whole.parents:
            raise OutputError(f"the {what} is the input or lies inside it", where=out.name, fix=fix)
        if whole in source.parents:
            raise OutputError(f"the input lies inside the {what}", where=out.name, fix=fix)


def _replaceable(out: Path, force: bool) -> Files | None:
    """What OUT holds and may be replaced, None when it holds nothing. Raises OutputError."""
    if not out.is_dir() or not any(out.iterdir()):
        return None
    if out.is_symlink():
        raise OutputError("the output path is a link", where=out.name, fix="choose another -o")
    files = inventory(out)
    if not force:
        raise OutputError("the output folder exists", where=out.name, fix="add --force to replace it")
    return files


def _put(folder: Path, place: Path) -> None:
    """Rename a folder to where nothing lies, or an empty folder. Raises OutputError when something does."""
    try:
        os.rename(folder, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise OutputError(
            "something was put there during the run",
            where=place.name,
            fix="move it away and run the same command again",
        ) from error


def _removed(folder: Path, files: Files) -> bool:
    try:
        return remove(folder, files)
    except OSError:
        return False


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _delete(path: Path) -> None:
    """Remove what a run made; a link is removed, never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        _ignoring(os.unlink, path)


def _ignoring(call: Callable[[Path], None], path: Path) -> None:
    try:
        call(path)
    except OSError:
        return
