"""Strict, lazy reading of safetensors files and of model folders made of them.

A file's header and a folder's index are believed only after every field was checked (`safetensors_header`). Tensors are
read with `pread` into memory of their own and not mapped: a file cut short during the run is an error, not a SIGBUS.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from llmc.errors import CheckpointError, LlmcError, MemoryLimitError, StorageError
from llmc.files.header import HEADER_LIMIT, KIND_OF, TensorEntry, parse_header, write_header
from llmc.files.pages import empty
from llmc.files.strict_json import Document, RefusedError, short
from llmc.late import torch

__all__ = ["KIND_OF", "SafetensorsFile", "TensorEntry", "load", "load_rows", "read_file", "read_folder", "write_header"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_LIMIT = 64  # members of an index: usually metadata and weight_map
LISTED_LIMIT = 1 << 20  # members of its weight_map

_QUIET = "start again on files that nobody writes to"
_MISMATCH = "index and shards are not of one model: download both again"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_TRAINING_STATE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
_OTHER_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".npz")
# In double quotes of a shell. Clones, because the library refuses tensors that share memory.
_CONVERT = (
    "import sys,torch;from safetensors.torch import save_file;t={};"
    "[t.update(torch.load(f,'cpu',weights_only=True)) for f in sys.argv[2:]];"
    "save_file({k:v.clone().contiguous() for k,v in t.items()},sys.argv[1],{'format':'pt'})"
)


@dataclass(frozen=True)
class SafetensorsFile:
    """One file's header. `header_size` counts the 8 bytes of its length; sizes in bytes."""

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]
    header_size: int
    size: int
    mtime_ns: int


def read_file(path: Path) -> SafetensorsFile:
    """The checked header of one file; no tensor is read.

    Raises CheckpointError for whatever is wrong with the path or the header, StorageError when the disk fails.
    """
    with _opened(path) as fd:
        status = os.fstat(fd)
        try:
            data = _header_bytes(fd, status.st_size, path)
            entries, metadata = parse_header(data, path, (status.st_size, status.st_mtime_ns))
        except RefusedError as error:
            raise CheckpointError(error.message, where=str(path), fix=error.fix) from None
    return SafetensorsFile(path, entries, metadata, 8 + len(data), status.st_size, status.st_mtime_ns)


def read_folder(folder: Path, *, single: str = SINGLE, index: str = INDEX) -> dict[str, TensorEntry]:
    """All tensors of a model folder by name, shard after shard, or of the one .safetensors file that `folder` is.

    `single`, `index`: what the one weight file, or the index of several, is called. Index and shards must agree
    exactly. Raises as `read_file` does.
    """
    if not os.path.isdir(folder):
        if folder.name.endswith(_PICKLES) and os.path.isfile(folder):
            raise _pickled(folder.parent, [folder.name])
        if os.path.exists(folder) and not folder.name.endswith(".safetensors"):
            raise CheckpointError("neither a model folder nor a .safetensors file", where=str(folder))
        return read_file(folder).entries
    listing = folder / index
    if not os.path.lexists(listing):
        if not os.path.lexists(folder / single):
            raise _weightless(folder)
        return read_file(folder / single).entries
    listed = _read_index(listing)
    stray = next((shard for shard in listed.values() if shard != single), None)
    if stray and os.path.lexists(folder / single):
        message = f"stands beside {single} but names {short(stray)}"
        raise CheckpointError(message, where=str(listing), fix="remove the one that does not belong to the model")
    return _read_shards(listing, listed)


def load(entry: TensorEntry) -> torch.Tensor:
    """The tensor with exactly the bytes of the file, in memory of its own.

    Raises StorageError when the file changed since its header was read, MemoryLimitError when the tensor does not fit.
    """
    return _load(entry, entry.shape, entry.start, entry.stop)


def load_bytes(entry: TensorEntry, most: int) -> bytes:
    """The first bytes of a tensor as they lie in the file, `most` at most. Raises as `load` does."""
    with _opened(entry.file) as fd:
        _check_stamp(fd, entry)
        data = bytes(_content(fd, entry.start, min(most, entry.nbytes), entry.file))
        _check_stamp(fd, entry)
    return data


def load_rows(entry: TensorEntry, start: int, stop: int, file: int | None = None) -> torch.Tensor:
    """Rows `[start, stop)` of dimension 0, `[stop - start, *shape[1:]]`. Raises as `load` does.

    `file` is an open descriptor of the entry's file, which may be gone from its folder; None opens it.
    """
    if not entry.shape or not 0 <= start <= stop <= entry.shape[0]:
        raise ValueError(f"rows {start}:{stop} of {short(entry.name)}, which is {list(entry.shape)}")
    row = entry.nbytes // max(1, entry.shape[0])
    return _load(entry, (stop - start, *entry.shape[1:]), entry.start + start * row, entry.start + stop * row, file)


def _load(entry: TensorEntry, shape: tuple[int, ...], start: int, stop: int, file: int | None = None) -> torch.Tensor:
    with _opened(entry.file) if file is None else nullcontext(file) as fd:
        _check_stamp(fd, entry)
        try:
            tensor = empty(shape, entry.dtype)
        except MemoryError as error:
            message = f"tensor {short(entry.name)}: no memory for its {stop - start} bytes"
            raise MemoryLimitError(message, where=str(entry.file)) from error
        if start < stop:
            _fill(fd, tensor.view(-1).view(torch.uint8).numpy().data, start, entry.file)
        _check_stamp(fd, entry)
    return tensor


def _check_stamp(fd: int, entry: TensorEntry) -> None:
    status = os.fstat(fd)
    if entry.stamp and entry.stamp != (status.st_size, status.st_mtime_ns):
        message = f"changed since its header was read: {entry.stamp[0]} bytes then, {status.st_size} now"
        raise StorageError(f"tensor {short(entry.name)}: the file {message}", where=str(entry.file), fix=_QUIET)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the regular file at `path`; never waits for a FIFO or a device."""
    real = _resolved(path)
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot be opened: {error.strerror}", where=str(path)) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError("not a regular file", where=str(path))
        yield fd
    finally:
        os.close(fd)


def is_regular(path: Path) -> bool:
    """Whether `path` is a regular file, or a symbolic link to one in its folder or Hugging Face cache."""
    try:
        return bool(_resolved(path))
    except CheckpointError:
        return False


def _resolved(path: Path) -> str:
    """The regular file at `path`, behind a symbolic link too if that stays in its folder or Hugging Face cache."""
    try:
        linked = stat.S_ISLNK(os.lstat(path).st_mode)
        real = os.path.realpath(path, strict=True) if linked else str(path)
        mode = os.lstat(real).st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot be read: {reason}", where=str(path)) from error
    if linked and not _allowed(Path(real), path.parent):
        message = f"a symbolic link to {real}, outside of its folder"
        raise CheckpointError(message, where=str(path), fix="put the file itself in its place")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise CheckpointError(f"{kind} where a regular file is expected", where=str(path))
    return real


def _allowed(target: Path, folder: Path) -> bool:
    """Whether the resolved `target` is in `folder`, or in .../models--X/blobs for .../models--X/snapshots/R/..."""
    home = Path(os.path.realpath(folder))
    if target.is_relative_to(home):
        return True
    for parent in home.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return target.parent == parent.parent / "blobs"
    return False


def _fill(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Read `len(view)` bytes at `offset` into `view`."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            message = f"cannot be read at byte {offset + done}: {error.strerror}"
            raise StorageError(message, where=str(path)) from error
        if count == 0:
            message = f"ends at byte {offset + done}, {len(view) - done} bytes too early: it was cut while in use"
            raise StorageError(message, where=str(path), fix=_QUIET)
        done += count


def _content(fd: int, start: int, count: int, path: Path) -> bytearray:
    data = bytearray(count)
    _fill(fd, memoryview(data), start, path)
    return data


def _header_bytes(fd: int, size: int, path: Path) -> bytearray:
    if size < 8:
        raise RefusedError(f"only {size} bytes long, too short for a safetensors file" if size else "empty file")
    prefix = bytes(_content(fd, 0, 8, path))
    if prefix == b"version ":
        raise RefusedError("a Git LFS pointer, not the weights", "fetch them with: git lfs pull")
    length = int.from_bytes(prefix, "little")
    if length > size - 8:
        raise RefusedError(f"claims a header of {length} bytes and is {size} bytes long")
    if length > HEADER_LIMIT:
        raise RefusedError(f"claims a header of {length} bytes; the format's limit is {HEADER_LIMIT}")
    return _content(fd, 8, length, path)


# The index


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name of its shard."""
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        if size > HEADER_LIMIT:
            raise CheckpointError(f"{size} bytes long; the limit of an index is {HEADER_LIMIT}", where=str(path))
        document = Document(_content(fd, 0, size, path), "index")
    try:
        document.check_utf8()
        return _weight_map(document)
    except RefusedError as error:
        raise CheckpointError(error.message, where=str(path), fix=error.fix) from None


def _weight_map(document: Document) -> dict[str, str]:
    data = document.data
    opening = len(data) - len(data.lstrip(b" \t\r\n"))
    if not document.is_object(opening):
        raise RefusedError("index is not a JSON object")
    listed: dict[str, str] | None = None
    for key, start, stop in document.members(opening, len(data), INDEX_LIMIT):
        if key != "weight_map":
            document.value(start, stop)
        elif listed is not None:
            raise RefusedError("weight_map is listed twice")
        elif not document.is_object(start):
            raise RefusedError("weight_map is not an object of tensor and file names")
        else:
            listed = _listed(Document(data, "weight_map"), start, stop)
    if not listed:
        raise RefusedError("index has no weight_map, or an empty one")
    return listed


def _listed(document: Document, start: int, stop: int) -> dict[str, str]:
    listed: dict[str, str] = {}
    for name, first, last in document.members(start, stop, LISTED_LIMIT):
        if name in listed:
            raise RefusedError(f"tensor {short(name)}: listed twice in the weight_map")
        if document.data[first] != ord('"'):
            raise RefusedError(f"tensor {short(name)}: its shard's name is not a string")
        shard = sys.intern(document.string(first, last))
        if not shard.endswith(".safetensors") or any(c in shard for c in "/\\\0"):
            message = f"tensor {short(name)}: its shard {short(shard)} is not the name of a .safetensors file"
            raise RefusedError(
                message + " in the folder", "a weight_map must not lead elsewhere: do not trust this model"
            )
        listed[name] = shard
    return listed


def _read_shards(listing: Path, listed: dict[str, str]) -> dict[str, TensorEntry]:
    files: dict[str, SafetensorsFile] = {}
    wanted = {shard: name for name, shard in reversed(listed.items())}
    for shard in sorted(wanted):
        if not os.path.lexists(listing.parent / shard):
            message = f"tensor {short(wanted[shard])}: its shard {short(shard)} is missing"
            raise CheckpointError(message, where=str(listing), fix="finish the download")
        files[shard] = read_file(listing.parent / shard)
    for shard, file in files.items():
        for name in file.entries:
            _check_owner(name, shard, listed.get(name), files)
    for name, shard in listed.items():
        if name not in files[shard].entries:
            message = f"tensor {short(name)}: not in its shard {short(shard)}"
            raise CheckpointError(message, where=str(listing), fix=_MISMATCH)
    return {name: entry for file in files.values() for name, entry in file.entries.items()}


def _check_owner(name: str, shard: str, owner: str | None, files: dict[str, SafetensorsFile]) -> None:
    """A tensor must be in the shard that the index says, and nowhere else."""
    if owner == shard:
        return
    if owner is None:
        message = "not listed in the index"
    elif name in files[owner].entries:
        message = f"also in {short(owner)}, where the index takes it from; readers differ in which copy counts"
        fix = "write the shards again with one copy of it, for example by save_pretrained of transformers"
        raise CheckpointError(f"tensor {short(name)}: {message}", where=str(files[shard].path), fix=fix)
    else:
        message = f"in {short(owner)} by the index"
    raise CheckpointError(f"tensor {short(name)}: {message}", where=str(files[shard].path), fix=_MISMATCH)


# Folders without safetensors


def _weightless(folder: Path) -> LlmcError:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return StorageError(f"cannot be listed: {error.strerror}", where=str(folder))
    pickles = [n for n in names if n.endswith(_PICKLES) and not n.startswith(_TRAINING_STATE)]
    others = [n for n in names if n.endswith(_OTHER_WEIGHTS)]
    if pickles and not others:
        return _pickled(folder, pickles)
    found = f", only {', '.join(map(short, others[:3]))}" if others else ""
    message = f"no weights: neither {SINGLE} nor {INDEX}{found}"
    return CheckpointError(message, where=str(folder), fix="give a folder that holds one of them")


def _pickled(folder: Path, names: list[str]) -> CheckpointError:
    """Refusal of pickles, which run code when loaded, with the command that converts them."""
    shards = [n for n in names if n.startswith("pytorch_model-") and n.endswith(".bin")]
    inputs = ""
    if "pytorch_model.bin" in names or len(names) == 1:
        inputs = shlex.quote(str(folder / ("pytorch_model.bin" if "pytorch_model.bin" in names else names[0])))
    elif shards:
        inputs = f"{shlex.quote(str(folder))}/pytorch_model-*.bin"
    command = f'python -c "{_CONVERT}" {shlex.quote(str(folder / SINGLE))} {inputs}'
    return CheckpointError(
        f"weights are pickled ({short(names[0])}), which can run code when opened",
        where=str(folder),
        fix=f"convert them: {command}" if inputs else "convert them with the program that wrote them",
    )
