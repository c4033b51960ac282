"""Memory as bytes, without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from llmc.errors import InputError
from llmc.late import np, torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


Bytes: TypeAlias = "NDArray[np.uint8]"


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    if tensor.numel() == 0:
        return memoryview(b"")
    data: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(data)


def as_bytes(data: Any) -> Bytes:
    """The memory of a contiguous array, tensor or bytes as flat uint8, without a copy. A tensor must be on the CPU.

    Raises:
        InputError: it is not contiguous.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return np.frombuffer(data, np.uint8)
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous:
            raise InputError("a buffer of the coder is not contiguous", fix="copy it first")
        return data.reshape(-1).view(np.uint8)
    import torch  # there is a tensor, so it is there; NumPy has no bfloat16 and no float8, but bytes

    if data.device.type != "cpu" or not data.is_contiguous():
        raise InputError("a tensor of the coder is not contiguous, or not on the CPU", fix="copy it first")
    if data.numel() == 0:  # torch may give it a stride that it then refuses to view
        return np.empty(0, np.uint8)
    return data.detach().reshape(-1).view(torch.uint8).numpy()
