"""Bit packing: each row of codes as one dense LSB-first bit stream, cut into little-endian 32-bit words.

Element i of a row starts at bit `i * bits` of the row's stream; the last word is padded with zeros. This is the layout
of compressed-tensors >= 0.18 (`pack_quantized`) and, transposed, of GPTQ.
"""

from __future__ import annotations

from llmc.late import torch

TILE = 1 << 19  # codes handled at once: bounds the 8-byte temporaries


def words_per_row(columns: int, bits: int) -> int:
    """32-bit words that `columns` codes of `bits` bits take."""
    return -(-columns * bits // 32)


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack `codes: uint8 [rows, columns]`, each below `2**bits`, into `int32 [rows, words]`."""
    words = words_per_row(codes.shape[1], bits)
    return pack_bytes(codes, bits, 4 * words).view(-1).view(torch.int32).view(codes.shape[0], words)


def unpack_rows(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Inverse of `pack_rows`: `int32 [rows, words]` to `uint8 [rows, columns]`."""
    rows, words = packed.shape
    if packed.stride() != (words, 1):  # `contiguous` leaves the strides of dimensions of size 1 alone
        packed = torch.empty(rows, words, dtype=packed.dtype).copy_(packed)
    return unpack_bytes(packed.view(torch.uint8), bits, columns)


def pack_bytes(codes: torch.Tensor, bits: int, size: int) -> torch.Tensor:
    """As `pack_rows`, into rows of `size` bytes, `uint8 [rows, size]`: enough for the codes, the rest zeros."""
    rows, columns = codes.shape
    out = torch.zeros(rows, size, dtype=torch.uint8)
    step = max(1, TILE // max(columns, 1))
    for a in range(0, rows, step):
        stream = _pack_bytes(codes[a : a + step], bits)[:, :size]
        out[a : a + step, : stream.shape[1]] = stream
    return out


def unpack_bytes(stream: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Inverse of `pack_bytes`: `uint8 [rows, size]` to `uint8 [rows, columns]`."""
    rows = stream.shape[0]
    out = torch.empty(rows, columns, dtype=torch.uint8)
    step = max(1, TILE // max(columns, 1))
    for a in range(0, rows, step):
        out[a : a + step] = _unpack_bytes(stream[a : a + step], bits, columns)
    return out


def _pack_bytes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    rows, columns = codes.shape
    eights = -(-columns // 8)
    if columns % 8:
        codes = torch.nn.functional.pad(codes, (0, eights * 8 - columns))
    if bits == 8:
        return codes.contiguous()
    if bits == 4:
        flat = codes.reshape(-1)
        flat = flat.clone() if flat.storage_offset() % 2 else flat
        pairs = flat.view(torch.int16)  # the second code in the upper byte
        return (pairs | pairs >> 4).to(torch.uint8).view(rows, -1)
    # Eight codes of b bits are b whole bytes: collect them in a 64-bit word and keep its low b bytes.
    grouped = codes.reshape(rows, eights, 8).to(torch.int64)
    word = grouped[..., 0].clone()
    for i in range(1, 8):
        word |= grouped[..., i] << (bits * i)
    return word.unsqueeze(-1).view(torch.uint8)[..., :bits].reshape(rows, eights * bits)


def _unpack_bytes(stream: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    rows = stream.shape[0]
    eights = -(-columns // 8)
    need = eights * bits
    if stream.shape[1] < need:
        stream = torch.nn.functional.pad(stream, (0, need - stream.shape[1]))
    groups = stream[:, :need].reshape(rows, eights, bits)
    word = torch.nn.functional.pad(groups, (0, 8 - bits)).contiguous().view(torch.int64)  # [rows, eights, 1]
    shifts = torch.arange(8, dtype=torch.int64) * bits
    codes = (word >> shifts) & ((1 << bits) - 1)  # [rows, eights, 8]
    return codes.to(torch.uint8).reshape(rows, eights * 8)[:, :columns]
