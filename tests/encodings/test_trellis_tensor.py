"""Coded tensors of kind `trellis`: the definition in NumPy, the extension and torch agree; damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmc.compressors.method import Context
from llmc.compressors.trellis import Trellis
from llmc.encodings.coding import coded_tensor, tensor_coder
from llmc.encodings.coding.coded_head import TRELLIS, parse_head
from llmc.encodings.encoded import Encoded
from llmc.encodings.kernels.coded_tensor import dequantize
from llmc.errors import InputError


def matrix(rows: int, columns: int, dtype: torch.dtype, states: int = 8) -> Encoded:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
    return Trellis(3.0, states=states)(weight, {}, Context(torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("states", [1, 8, 64])
def test_every_decoder_gives_the_values(states: int, transposed: bool, dtype: torch.dtype) -> None:
    made = matrix(40, 72, dtype, states)
    data = tensor_coder.quantized(made, transposed=transposed).joined()
    values = made.dequantize().t().contiguous() if transposed else made.dequantize()
    assert torch.equal(coded_tensor.decode(data), values)
    assert torch.equal(dequantize(data.tobytes()), values)
    assert torch.equal(coded_tensor.trellis_of(data).codes, made.codes)
    head = parse_head(data)
    assert (head.kind, head.shape, head.dtype) == (TRELLIS, tuple(values.shape), str(dtype).removeprefix("torch."))


def test_one_damaged_byte_is_refused() -> None:
    data = tensor_coder.quantized(matrix(40, 72, torch.bfloat16)).joined()
    for at in range(0, data.size, 7):
        broken = data.copy()
        broken[at] ^= 16
        with pytest.raises(InputError):
            coded_tensor.decode(broken)


def test_a_kind_without_a_matrix_is_no_trellis() -> None:
    data = tensor_coder.encode(torch.randn(3, 3)).joined()
    with pytest.raises(InputError, match="is no matrix of a trellis"):
        coded_tensor.trellis_of(np.ascontiguousarray(data))
