"""Frozen bytes of every container. A difference here is a change of a public format: never edit the hex to pass.

The matrix: `code[r, c] = (5 r + 3 c) mod alphabet`, `scale[r, g] = 1.5 * 2**(g - r mod 8)`, `zero[r, g] = r + 2 g + 1`;
all values are exact in float16 and bfloat16, and short enough to be checked by hand.
"""

from __future__ import annotations

import pytest
import torch
from encodings_of import packed

from llmc.encodings.encoded import Encoded, Grid, Plane
from llmc.encodings.int_grid import IntGrid
from llmc.encodings.nf4_grid import Nf4Grid
from llmc.formats.bitsandbytes import BitsAndBytes
from llmc.formats.compressed_tensors import CompressedTensors
from llmc.formats.container import Container
from llmc.formats.dense import Dense
from llmc.formats.gptq import Gptq

NF4_TABLE = (
    "000080bfb13932bf306b06bfa032cabe4da291be3f353dbe7178babd00000000"
    "fffaa23de3ca243edd047c3e3a03ad3eb8a4e13eab07103fb313393f0000803f"
)
EIGHT_SCALES = "003e003a00360032002e002a00260022"
NEXT_SCALES = "0042003e003a00360032002e002a0026"

GOLDEN: dict[str, tuple[Container, Grid, tuple[int, int], torch.dtype, dict[str, str]]] = {
    "compressed-tensors-4bit": (
        CompressedTensors(),
        IntGrid(bits=4, group_size=8),
        (2, 16),
        torch.bfloat16,
        {
            "weight_packed": "3096fc52b81e74da85eb41a70d63c92f",
            "weight_scale": "c03f4040403fc03f",
            "weight_shape": "02000000000000001000000000000000",
        },
    ),
    "compressed-tensors-3bit-asymmetric": (
        CompressedTensors(),
        IntGrid(bits=3, group_size=8, symmetric=False),
        (4, 16),
        torch.bfloat16,
        {
            "weight_packed": "98c3ab98c3ab0000c51c5ec51c5e00002ae6f02ae6f000005731875731870000",
            "weight_scale": "c03f4040403fc03fc03e403f403ec03e",
            "weight_shape": "04000000000000001000000000000000",
            "weight_zero_point": "d1080000630d0000",
        },
    ),
    "compressed-tensors-8bit-asymmetric-channel": (
        CompressedTensors(),
        IntGrid(bits=8, group_size=None, symmetric=False),
        (3, 6),
        torch.float16,
        {
            "weight_packed": "000306090c0f000005080b0e111400000a0d101316190000",
            "weight_scale": "003e003a0036",
            "weight_shape": "03000000000000000600000000000000",
            "weight_zero_point": "01020300",
        },
    ),
    "compressed-tensors-2bit-channel": (
        CompressedTensors(),
        IntGrid(bits=2, group_size=None),
        (2, 20),
        torch.float32,
        {
            "weight_packed": "6c6c6c6c6c000000b1b1b1b1b1000000",
            "weight_scale": "0000c03f0000403f",
            "weight_shape": "02000000000000001400000000000000",
        },
    ),
    "gptq-4bit": (
        Gptq(),
        IntGrid(bits=4, group_size=16),
        (8, 16),
        torch.bfloat16,
        {
            "qweight": "3096fc5285eb41a7da3096fc2f85eb4174da3096c92f85eb1e74da3063c92f85"
            "b81e74da0d63c92f52b81e74a70d63c9fc52b81e41a70d6396fc52b8eb41a70d",
            "qzeros": "77777777",
            "scales": EIGHT_SCALES,
            "g_idx": "00000000" * 16,
        },
    ),
    "gptq-3bit": (
        Gptq(),
        IntGrid(bits=3, group_size=16),
        (32, 32),
        torch.float16,
        {
            "qweight": "98c3ab98c51c5ec52ae6f02a57318757bc8a39bce155cce10eaf620e73781573" * 4
            + "c3ab98c31c5ec51ce6f02ae6318757318a39bc8a55cce155af620eaf78157378" * 4
            + "ab98c3ab5ec51c5ef02ae6f08757318739bc8a39cce155cc620eaf6215737815" * 4,
            "qzeros": "dbb66ddbb66ddbb66ddbb66d" * 2,
            "scales": EIGHT_SCALES * 4 + NEXT_SCALES * 4,
            "g_idx": "00000000" * 16 + "01000000" * 16,
        },
    ),
    "bitsandbytes": (
        BitsAndBytes(),
        Nf4Grid(group_size=32),
        (2, 32),
        torch.bfloat16,
        {
            "weight": "0369cf258be147ad0369cf258be147ad58be147ad0369cf258be147ad0369cf2",
            "weight.absmax": "0000c03f0000403f",
            "weight.quant_map": NF4_TABLE,
            "weight.quant_state.bitsandbytes__nf4": (
                b'{"quant_type": "nf4", "blocksize": 32, "dtype": "bfloat16", "shape": [2, 32]}'.hex()
            ),
        },
    ),
    "dense": (
        Dense(),
        IntGrid(bits=4, group_size=8),
        (2, 8),
        torch.bfloat16,
        {"weight": "40c1f0c040c0c03fc040284110c190c010c0000010409040a8c040c040bfc03f"},
    ),
}


def matrix(grid: Grid, shape: tuple[int, int], dtype: torch.dtype) -> Encoded:
    rows, columns = shape
    row, column = torch.arange(rows).view(-1, 1), torch.arange(columns)
    group = torch.arange(columns // (grid.group_size or columns))
    codes = ((5 * row + 3 * column) % grid.alphabet).to(torch.uint8)
    scale = 1.5 * 2.0 ** (group - row % 8)
    params = {"scale": scale.to(dtype) if isinstance(grid, IntGrid) else scale}
    if isinstance(grid, IntGrid) and not grid.symmetric:
        params["zero_point"] = (row + 2 * group + 1).to(torch.uint8)
    return Encoded(grid, {"codes": Plane(codes, grid.alphabet)}, params, shape, dtype)


def hexadecimal(tensor: torch.Tensor) -> str:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist()).hex()


@pytest.mark.parametrize("name", GOLDEN)
def test_stored_bytes(name: str) -> None:
    container, grid, shape, dtype, golden = GOLDEN[name]
    stored = packed(container, grid, matrix(grid, shape, dtype))
    assert {key: hexadecimal(tensor) for key, tensor in stored.items()} == golden


def test_every_container_has_golden_bytes() -> None:
    from llmc.formats import CONTAINERS

    frozen = {container.name for container, *_ in GOLDEN.values()}
    assert frozen | {"llmc"} == set(CONTAINERS)  # its streams are frozen in test_trellis_golden
