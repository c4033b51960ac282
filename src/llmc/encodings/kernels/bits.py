"""Unpack dense LSB-first bit streams: shift each word, borrow from the next where a code straddles two, mask."""

import torch

TILE = 1 << 17  # weights decoded at once: the temporaries of up to 8 bytes stay in the cache


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """`words: int32 [rows, n]` -> the first `count` codes of each row as int32 `[rows, count]`."""
    if 32 % bits == 0:  # no code straddles two words
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
        return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(1)[:, :count]
    position = torch.arange(count, dtype=torch.int64, device=words.device) * bits
    index, shift = position // 32, position % 32
    unsigned = torch.nn.functional.pad(words.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    low = unsigned[:, index] >> shift
    high = unsigned[:, index + 1] << (32 - shift)
    return ((low | high) & ((1 << bits) - 1)).to(torch.int32)
