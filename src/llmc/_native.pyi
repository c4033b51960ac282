# What module.cpp and module_grids.cpp in src/llmc/native define.
# Arrays are contiguous and one-dimensional; uint8 where nothing else is said.
from collections.abc import Sequence
from typing import Any

from numpy import float32, float64, int8, int16, int64, uint8, uint64
from numpy.typing import NDArray

class CodecError(ValueError): ...

def encode(
    symbols: NDArray[uint8],
    contexts: NDArray[uint8] | None,
    table_of: NDArray[uint8] | None,
    next_state: NDArray[uint8] | None,
    class_of: NDArray[uint8] | None,
    values: NDArray[uint8] | None,
    value_bytes: int,
    base: int,
    escape_first: int,
    bits: int,
    lanes_log2: int,
    chunk: int,
    tables: int,
    threads: int,
    path: str,
) -> NDArray[uint8]: ...
def decode(
    stream: NDArray[uint8], n: int, out: NDArray[uint8], contexts: NDArray[uint8] | None, threads: int, path: str
) -> None: ...
def decode_range(
    stream: NDArray[uint8], n: int, begin: int, out: NDArray[uint8], contexts: NDArray[uint8] | None, path: str
) -> None: ...
def describe(stream: NDArray[uint8], n: int) -> dict[str, Any]: ...
def split(
    bytes: int,
    sign_after: int,
    coded: int,
    numbers: NDArray[uint8],
    fields: NDArray[uint8],
    raw: NDArray[uint8],
    threads: int,
) -> None: ...
def merge(
    bytes: int,
    sign_after: int,
    coded: int,
    fields: NDArray[uint8],
    raw: NDArray[uint8],
    numbers: NDArray[uint8],
    threads: int,
) -> None: ...
def encode_numbers(
    bytes: int,
    sign_after: int,
    coded: int,
    numbers: NDArray[uint8],
    raw: NDArray[uint8],
    bits: int,
    lanes_log2: int,
    chunk: int,
    threads: int,
    path: str,
) -> tuple[NDArray[uint8], NDArray[uint64]]: ...
def decode_numbers(
    bytes: int,
    sign_after: int,
    coded: int,
    stream: NDArray[uint8],
    raw: NDArray[uint8],
    numbers: NDArray[uint8],
    contexts: NDArray[uint8] | None,
    threads: int,
    path: str,
) -> None: ...
def count(symbols: NDArray[uint8], contexts: NDArray[uint8] | None, counts: NDArray[uint64]) -> None: ...
def normalise(counts: Sequence[int], bits: int) -> list[int]: ...
def crc32c(data: NDArray[uint8], before: int) -> int: ...
def paths() -> list[str]: ...
def bitmaps_encode(symbols: NDArray[uint8], threads: int, path: str) -> NDArray[uint8]: ...
def bitmaps_decode(
    stream: NDArray[uint8], n: int, begin: int, out: NDArray[uint8], threads: int, path: str
) -> None: ...
def bitmaps_decode_numbers(
    bytes: int,
    sign_after: int,
    coded: int,
    stream: NDArray[uint8],
    raw: NDArray[uint8],
    numbers: NDArray[uint8],
    threads: int,
    path: str,
) -> None: ...
def bitmaps_check(stream: NDArray[uint8], n: int, threads: int) -> None: ...
def bitmaps_describe(stream: NDArray[uint8], n: int) -> dict[str, Any]: ...
def bitmaps_paths() -> list[str]: ...
def grid_fit(
    values: NDArray[uint8],
    number: int,
    size: int,
    importance: NDArray[float32] | None,
    bits: int,
    symmetric: bool,
    half: bool,
    brain: bool,
    ratios: Sequence[float],
    offsets: Sequence[float],
    scale: NDArray[float32],
    zero: NDArray[uint8] | None,
    codes: NDArray[uint8] | None,
    path: str,
) -> None: ...
def grid_round(
    values: NDArray[uint8],
    number: int,
    size: int,
    bits: int,
    scale: NDArray[float32],
    zero: NDArray[uint8] | None,
    codes: NDArray[uint8],
    path: str,
) -> None: ...
def grid_paths() -> list[str]: ...
def grid_slab(
    running: NDArray[float32],
    unit: NDArray[float32],
    scale: NDArray[float32],
    least: NDArray[float32] | None,
    group: Sequence[int],
    bits: int,
    stored: int,
    levels: NDArray[float32],
    values: NDArray[float32],
    errors: NDArray[float32],
    path: str,
) -> None: ...
def grid_decode(
    codes: NDArray[uint8],
    scale: NDArray[float32],
    zero: NDArray[uint8] | None,
    bits: int,
    weights: NDArray[uint8],
    number: int,
    size: int,
    stored: int,
    values: NDArray[uint8],
    path: str,
) -> tuple[float, float]: ...
def trellis_slab(
    bits: int,
    parity: int,
    flip: int,
    segment: int,
    running: NDArray[float32],
    unit: NDArray[float32],
    step: NDArray[float32],
    column_class: NDArray[uint8],
    row_class: NDArray[uint8],
    shift: NDArray[float32],
    rate: NDArray[float32],
    stored: int,
    codes: NDArray[int16],
    values: NDArray[float32],
    path: str,
) -> None: ...
def trellis_count(
    codes: NDArray[int16], row_class: NDArray[uint8], column_class: NDArray[uint8], counts: NDArray[int64]
) -> None: ...
def trellis_tally(
    codes: NDArray[int16],
    errors: NDArray[float32],
    step: NDArray[float32],
    seen: NDArray[float64],
    lack: NDArray[float64],
) -> None: ...
def trellis_encode(
    codes: NDArray[int16],
    bits: int,
    parity: int,
    flip: int,
    lanes_log2: int,
    segment: int,
    segments_log2: int,
    tile: int,
    step: float,
    base: int,
    step_code: NDArray[uint8],
    row_class: NDArray[uint8],
    column_class: NDArray[uint8],
    shifts: NDArray[int8],
    threads: int,
) -> NDArray[uint8]: ...
def trellis_decode(
    stream: NDArray[uint8],
    rows: int,
    columns: int,
    stored: int,
    out: NDArray[uint8],
    threads: int,
    path: str,
) -> None: ...
def trellis_codes(stream: NDArray[uint8], codes: NDArray[int16], threads: int, path: str) -> None: ...
def trellis_describe(stream: NDArray[uint8], rows: int, columns: int) -> dict[str, Any]: ...
def path_of(stream: NDArray[uint8], n: int) -> str: ...
