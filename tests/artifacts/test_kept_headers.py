"""The header that a lossless file keeps of its original cannot give its tensors other names."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import llmc


def test_a_kept_header_that_swaps_two_names(tmp_path: Path) -> None:
    tensors = {"alpha": torch.randn(64, 64), "gamma": torch.randn(64, 64)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    llmc.lossless(tmp_path / "model.safetensors", tmp_path / "coded", exact_files=True)
    (file,) = (tmp_path / "coded").glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    header = zlib.decompress(base64.b64decode(metadata["header"]))
    swapped = header.replace(b"alpha", b"xxxxx").replace(b"gamma", b"alpha").replace(b"xxxxx", b"gamma")
    assert swapped != header
    metadata["header"] = base64.b64encode(zlib.compress(swapped)).decode()
    save_file(load_file(file), file, metadata)
    with pytest.raises(llmc.LlmcError, match=r"the kept header of model\.safetensors is not of its tensors"):
        llmc.decompress(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()
