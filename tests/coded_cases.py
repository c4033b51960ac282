"""Coded tensors, by both decoders."""

from __future__ import annotations

import numpy as np
import torch

from llmc.encodings.coding import rans, tensor_coder
from llmc.encodings.coding.coded_head import parse_head
from llmc.encodings.coding.coded_tensor import decode
from llmc.encodings.coding.tensor_coder import encode
from llmc.encodings.kernels import coded_tensor as reference
from llmc.files.bytes import as_bytes


def joined(coded: tensor_coder.Coded) -> np.ndarray:
    return np.concatenate([np.asarray(piece) for piece in coded.pieces])


def bits(tensor: torch.Tensor) -> bytes:
    return as_bytes(tensor.contiguous()).tobytes()


def check(tensor: torch.Tensor, mode: str = "balanced") -> tensor_coder.Coded:
    """The coded tensor, after it was decoded by both decoders."""
    coded = encode(tensor, mode)
    data = joined(coded)
    assert parse_head(data) == coded.head
    for back in (decode(data), reference.dequantize(data.tobytes())):
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert bits(back) == bits(tensor)
    assert coded.nbytes <= tensor.nbytes + 24 + 8 * tensor.ndim
    return coded


def noise(n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Any bits, all special values among them."""
    data = np.random.default_rng(seed).integers(0, 256, n * dtype.itemsize, np.uint8)
    if dtype == torch.bool:
        data &= 1
    return torch.from_numpy(data).view(dtype) if n else torch.empty(0, dtype=dtype)


def resealed(data: np.ndarray, at: int, new: bytes) -> np.ndarray:
    """`data` with bytes of its head changed and the head's sum made right again."""
    size = parse_head(data).size
    bad = data.copy()
    bad[at : at + len(new)] = np.frombuffer(new, np.uint8)
    bad[size - 4 : size] = np.frombuffer(rans.crc32c(bad[: size - 4]).to_bytes(4, "little"), np.uint8)
    return bad
