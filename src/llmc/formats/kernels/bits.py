"""Unpack dense LSB-first bit streams, element by element: shift the word, borrow from the next one, mask."""

import torch

TILE = 1 << 20  # weights decoded at once: bounds the 8-byte temporaries


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """`words: int32 [rows, n]` -> the first `count` codes of each row as int32 `[rows, count]`."""
    position = torch.arange(count, dtype=torch.int64, device=words.device) * bits
    index, shift = position // 32, position % 32
    unsigned = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    low = unsigned[:, index] >> shift
    high = unsigned[:, index + 1] << (32 - shift)
    return ((low | high) & ((1 << bits) - 1)).to(torch.int32)
