"""Memory in huge pages: a fresh page costs more than the work that fills it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmc.late import np, torch


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor on the CPU, in huge pages where it is large and the system has them.

    NumPy asks for them from 4 MB on (madvise, three times as fast to fill first), torch does not. Raises MemoryError.
    """
    try:
        memory = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    except ValueError as error:  # more than an address can say
        raise MemoryError(str(error)) from error
    return torch.from_numpy(memory).view(dtype).view(tuple(shape)) if memory.size else torch.empty(shape, dtype=dtype)
