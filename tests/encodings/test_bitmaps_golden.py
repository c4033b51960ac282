"""Frozen bitmap streams: these bytes decode to these symbols in every version. A new layout has a new magic."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.encodings.coding import bitmaps
from llmc.encodings.kernels import bitmaps_reference as reference

TEXT = np.frombuffer(b"she sells sea shells by the sea shore", np.uint8)
NUMBERS = np.array([0x3F80, 0xBF81, 0x0000, 0x8000, 0x7FC1, 0xFF80, 0x3D12, 0x3E55, 0x3C01, 0x0001], np.uint16)
SYMBOLS = {
    "text": TEXT,
    "constant": np.full(65, 42, np.uint8),
    "empty": np.zeros(0, np.uint8),
    "exponents": (NUMBERS >> 7).astype(np.uint8),
}
STREAMS = {
    "text": (
        "6c424d31732065686c6162002500000000000000040000005acf93671b9ec31ef54d2f34110000002c3ab1ec10000000"
        "c29026420200000079746f72"
    ),
    "constant": (
        "6c424d312a00000000000000410000000000000000000000d2ff64d289ebfb62ffffffffffffffff0000000000000000"
        "0000000000000000010000000000000000000000000000000000000000000000"
    ),
    "empty": "6c424d310000000000000000000000000000000034e7e983",
    "exponents": (
        "6c424d31007fff787a7c00000a000000000000000000000027f95c0591afda4b7c02000000000000b300000000000000"
        "c001000000000000"
    ),
}
RAW = "00030001820124aa0202"


@pytest.mark.parametrize("name", STREAMS)
def test_frozen_streams(name: str) -> None:
    symbols, frozen = SYMBOLS[name], bytes.fromhex(STREAMS[name])
    assert np.array_equal(reference.decode(frozen), symbols)
    for path in bitmaps.paths():
        assert np.array_equal(bitmaps.decode(frozen, symbols.size, path=path), symbols)
        assert bitmaps.encode(symbols, path=path).tobytes().hex() == STREAMS[name]


def test_frozen_numbers() -> None:
    out = np.zeros_like(NUMBERS)
    bitmaps.decode_numbers(bytes.fromhex(STREAMS["exponents"]), bytes.fromhex(RAW), out)
    assert np.array_equal(out, NUMBERS)
    stream, raw = bitmaps.encode_numbers(NUMBERS)
    assert (stream.tobytes().hex(), raw.tobytes().hex()) == (STREAMS["exponents"], RAW)
