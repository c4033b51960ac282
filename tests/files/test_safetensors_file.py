"""The tensors of one safetensors file: as the library reads them, and when the file changes in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from llmc.errors import CheckpointError, MemoryLimitError, StorageError
from llmc.files.header import DTYPES
from llmc.files.safetensors import TensorEntry, load, load_rows, read_file


def test_load_tells_of_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.arange(1000.0)}, path)
    found = read_file(path).entries["w"]
    size = path.stat().st_size
    later = found.stamp[1] + 1
    os.utime(path, ns=(later, later))
    restart = "; start again on files that nobody writes to"
    with pytest.raises(StorageError) as caught:
        load(found)
    line = f"{path}: tensor w: the file changed since its header was read: {size} bytes then, {size} now{restart}"
    assert str(caught.value) == line
    os.truncate(path, size - 100)
    with pytest.raises(StorageError, match=f"{size} bytes then, {size - 100} now"):
        load_rows(found, 0, 1)
    unchecked = TensorEntry("w", found.kind, found.shape, path, found.start, found.stop)
    with pytest.raises(StorageError) as caught:
        load(unchecked)
    line = f"{path}: ends at byte {size - 100}, 100 bytes too early: it was cut while in use{restart}"
    assert str(caught.value) == line
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: No such file or directory$"):
        load(found)


@pytest.mark.parametrize(("call", "at"), [("open", "cannot be opened"), ("preadv", "cannot be read at byte 0")])
def test_a_failing_disk(call: str, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.arange(10.0)}, path)

    def fails(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(StorageError) as caught:
        read_file(path)
    monkeypatch.undo()
    assert str(caught.value) == f"{path}: {at}: Input/output error"
    assert caught.value.exit_code == 3


def test_reads_may_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.arange(10.0)}, path)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: whole(fd, [views[0][:7]], offset))
    assert torch.equal(load(read_file(path).entries["w"]), torch.arange(10.0))


def test_a_tensor_that_does_not_fit_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shape = [1 << 57]
    path.write_bytes(b"")
    huge = TensorEntry("w", "U8", tuple(shape), path, 0, 1 << 57)
    with pytest.raises(MemoryLimitError) as caught:
        load(huge)
    assert str(caught.value) == f"{path}: tensor w: no memory for its 144115188075855872 bytes"


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_loads_as_the_library_does(name: str, tmp_path: Path) -> None:
    dtype = DTYPES[name]
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (6 * dtype.itemsize,), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(3, 2)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"t": tensor}, path)
    ours, theirs = load(read_file(path).entries["t"]), safetensors.torch.load_file(path)["t"]
    assert ours.dtype == theirs.dtype == dtype
    assert ours.shape == theirs.shape == (3, 2)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    rows = load_rows(read_file(path).entries["t"], 1, 3)
    assert torch.equal(rows.view(torch.uint8), tensor[1:].view(torch.uint8))


def test_rows_outside_of_the_tensor_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(3, 2), "s": torch.tensor(1.0), "z": torch.zeros(0, 4)}, path)
    entries = read_file(path).entries
    for name, start, stop in (("w", 2, 4), ("w", -1, 2), ("w", 2, 1), ("s", 0, 0)):
        with pytest.raises(ValueError, match="rows"):
            load_rows(entries[name], start, stop)
    assert load_rows(entries["w"], 3, 3).shape == (0, 2)
    assert load_rows(entries["z"], 0, 0).shape == (0, 4)


def test_real_models_load_as_the_library_does() -> None:
    folder = os.environ.get("LLMC_MODELS")
    if not folder:
        pytest.skip("LLMC_MODELS names no folder of models")
    files = sorted(Path(folder).rglob("*.safetensors"))
    assert files
    for path in files:
        entries = read_file(path).entries
        with safetensors.safe_open(path, "pt") as library:
            assert set(library.keys()) == set(entries)
            for name, found in entries.items():
                theirs = library.get_tensor(name)
                assert load(found).dtype == theirs.dtype
                assert torch.equal(load(found), theirs)
                if theirs.ndim:
                    assert torch.equal(load_rows(found, 1, len(theirs)), theirs[1:])
