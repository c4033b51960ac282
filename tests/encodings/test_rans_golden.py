"""Frozen streams: these bytes decode to these values in every version. A new layout is a new magic and new bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.encodings.coding import planes, rans
from llmc.encodings.kernels import rans_reference as reference
from llmc.files.bytes import Bytes

TEXT = np.frombuffer(b"she sells sea shells by the sea shore", np.uint8)
CONTEXTS = (np.arange(37) % 3).astype(np.uint8)
CODES = np.array([0, 1, -2, 3, 70_000, -1, 0, 0, 2, -70_000, 1, 0, -1, 1, 5, 0, -3, 1, 0, 0], np.int32)

AUTOMATON = rans.Automaton(
    np.array([[0, 2], [2, 0], [1, 3], [3, 1]], np.uint8),
    (np.arange(256) // 2 % 2).astype(np.uint8),
    np.array([0, 1, 0, 1], np.uint8),
)

STREAMS = {
    "one table": (
        "6c5241310e020000250000000000000014000000000101000000000025000000209c18003ff606bb0300019b180001eb"
        "0d0002eb0d0001bb030001bb03d61bbb030003bb0300000000000000008896277e0100000000000000757af319ce8f93"
        "f6d4f60126c8230232bb117126c5430b2c288a62572bd04142863e02000c8b471597d7"
    ),
    "contexts": (
        "6c5241310c02010125000000000000001400000000010100000000003f0000000000000001fd0020b306003fc802a401"
        "0001d7070001c8020002eb030004a4018f05a40120ab050043d5020001ab050002d5020001d5020002d60a0004d50200"
        "000000000000008896277e0000000000000000757af319a2406277efdcaf44cfa470185a384c1503339524ee220c26ad"
        "94671ebe8e601d0930a30e"
    ),
    "automaton": (
        "6c5241310d02020125000000000000001400000000010100000000004700000003010400000101080002020001030301"
        "02000120800e003f800280020001800a00018008000280060001800200018002800e80020003800261e70c0002cd1900"
        "05e60c0005e60c00000000000000008896277e0100000000000000757af319b18285579a3c120d006fad2c446c541c00"
        "25e32c30a3591d7a282614aa3f03000005f80b008c"
    ),
    "escape": (
        "6c5241310c020000204e0000000000000000100008000100000000000400000007ff1f010100000004000000441db972"
        "03aa3e040fd50f35d7f45003ea500300ff5f0b35bd6f0009c8c9"
    ),
    "wide": (
        "6c5241310c020201140000000000000014000000fc000400fcffffff3100000003010400000101080002020001030301"
        "02000102a502c9049209c904a502a5020000a40200f1c90401ab0500018010d50a0000000002000000447ff67b6e9754"
        "957486b9372009511c3b103310f1fbae027011010090eefeff"
    ),
    "constant": "6c5241310c020000e803000000000000000010000001010000000000030000002a802016e91789",
    "empty": "6c5241310c0200000000000000000000000010000001010000000000030000000080201a0cf029",
}


def made() -> dict[str, tuple[np.ndarray, np.ndarray | None, Bytes]]:
    """Values, contexts and stream of each."""
    table_of = np.zeros(256, np.uint8)
    table_of[1] = 1
    small: dict[str, Any] = {"lanes": 4, "chunk_symbols": 20}
    rare = np.full(20_000, 7, np.uint8)
    rare[[3, 500, 501, 777]] = 0, 9, 200, 201
    constant, empty = np.full(1000, 42, np.uint8), np.zeros(0, np.uint8)
    return {
        "one table": (TEXT, None, rans.encode(TEXT, probability_bits=14, **small)),
        "contexts": (TEXT, CONTEXTS, rans.encode(TEXT, select=rans.Contexts(CONTEXTS, table_of), **small)),
        "automaton": (TEXT, None, rans.encode(TEXT, select=AUTOMATON, probability_bits=13, **small)),
        "escape": (rare, None, rans.encode(rare, lanes=4)),
        "wide": (CODES, None, rans.encode_wide(CODES, select=AUTOMATON, escapes=4, base=-4, **small)),
        "constant": (constant, None, rans.encode(constant)),
        "empty": (empty, None, rans.encode(empty)),
    }


@pytest.mark.parametrize("name", STREAMS)
def test_frozen_streams(name: str) -> None:
    values, contexts, stream = made()[name]
    frozen = bytes.fromhex(STREAMS[name])
    assert np.array_equal(reference.decode(frozen, contexts), values)
    for path in rans.paths():
        assert np.array_equal(rans.decode(frozen, values.size, contexts=contexts, path=path), values)
    assert stream.tobytes().hex() == STREAMS[name], "the encoder's choices have changed: old streams still decode"


WEIGHTS = (np.arange(40) * 2654435761 % 2**32).astype(np.uint32) % 0x0600_0000 + 0x3A00_0000
WEIGHTS[::3] |= 0x8000_0000
WEIGHTS[[5, 6, 7]] = 0x7FC0_0001, 0xFF80_0000, 0x8000_0000  # a NaN, minus infinity, minus zero

NUMBERS = {
    "bf16 balanced": (
        (
            "6c5241310c02000028000000000000000000100000010100000000001f0000000067007280049a0366b3029a03b302b3"
            "02cd01b302b302b302b302007ecd010800000000000000c436bed7576688abd311090013e65e00aa711c004cd82800bf"
            "74c7ceea8af4c0706937d4584e8755"
        ),
        ("016edc4dba80010176e754c433a21081ee5ecd3caa1988f667d444b32290016ede4dbc2a9b0878e7"),
    ),
    "bf16 small": (
        (
            "6c5241310e02000028000000000000000000100030000200d00100005500000000cc090001b3069a0300009a03b30600"
            "029a0300009a039a039a0300009a03b3069a0300009a03b30600019a03b30600019a039a0300009a03b3060001b3069a"
            "0300019a039903000099039903990300009903cc090900000003000000800f30ac142ac865bcc1a98bd6d5d3863e0726"
            "67629b01005b7c1b7582254e147ea997c2f99765898f31fe03fc030000"
        ),
        ("81cb353a1004f64911b30805aed7f06a86d82745cc2214b85ec3ab1b829f"),
    ),
    "fp32 small": (
        (
            "6c5241310e02000028000000000000000000100030000200d00100005500000000cc090001b3069a0300009a03b30600"
            "029a0300009a039a039a0300009a03b3069a0300009a03b30600019a03b30600019a039a0300009a03b3060001b3069a"
            "0300019a039903000099039903990300009903cc090900000003000000800f30ac142ac865bcc1a98bd6d5d3863e0726"
            "67629b01005b7c1b7582254e147ea997c2f99765898f31fe03fc030000"
        ),
        (
            "010080d8bc4b6cde9d683388cdbb0000100000040000109bf79ca3491d58d9d4119968b3fe96c8f514fd0a012036af60"
            "8a57ced11841f0a803ebc27dc6a68e3877df31d1a62471457f4b5cadceb89ea28664d4570878e3bd406cdee8574330c5"
            "9b19adc9399a4a4bc20882bf4f9c"
        ),
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_frozen_numbers(name: str) -> None:
    """A stream of fields and the raw bits below them."""
    dtype, mode = name.split()
    numbers = WEIGHTS if dtype == "fp32" else (WEIGHTS >> 16).astype(np.uint16)
    splits = planes.BALANCED if mode == "balanced" else planes.SMALL
    how = splits["float32" if dtype == "fp32" else "bfloat16"]
    stream, raw = (np.frombuffer(bytes.fromhex(part), np.uint8) for part in NUMBERS[name])
    for path in rans.paths():
        back = np.empty_like(numbers)
        planes.decode(stream, raw, how, back, path=path)
        assert np.array_equal(back, numbers)
    made, rest = planes.encode(numbers, how)
    assert rest.tobytes() == raw.tobytes()
    assert made.tobytes() == stream.tobytes(), "the encoder's choices have changed: old streams still decode"
