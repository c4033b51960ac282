"""The entropy coder: integers to bytes and back, at the size of their entropy.

Interleaved rANS (Duda, arXiv:1311.2540; interleaving: Giesen, arXiv:1402.3392) with 32-bit states and 16-bit words;
byte spec in docs/formats/rans.md, definition in `kernels/rans_reference.py`, the work in the extension `llmc._native`.

A symbol's probability table is chosen by nothing, by a context known to both sides (`Contexts`), or by a finite
automaton that the symbols drive (`Automaton`). Streams do not depend on threads, path or machine. All errors are
`InputError`s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc import _native
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CHUNK_SYMBOLS = 1 << 20
LANES = (4, 64)
"""Fewest and most lanes chosen by default; a stream may have 256."""

SYMBOLS_PER_LANE = 1 << 13
"""A lane costs four bytes in each chunk: one in 2**13 symbols is below 0.05 % of them as bytes."""


@dataclass(frozen=True)
class Contexts:
    """Tables selected by a plane that the decoder has already.

    Attributes:
        values: [n] uint8, one for each symbol.
        table_of: [256] the table of each context; None: context i has table i.
    """

    values: Bytes
    table_of: Bytes | None = None


@dataclass(frozen=True)
class Automaton:
    """Tables selected by a state that each lane keeps, 0 at the start of a chunk.

    Attributes:
        next_state: [states, classes] uint8.
        class_of: [256] class of each symbol.
        table_of: [states] table of each state.
    """

    next_state: Bytes
    class_of: Bytes
    table_of: Bytes


@dataclass(frozen=True)
class StreamInfo:
    """What the head of a stream says; `tables` is [tables, 256], `head_bytes` everything before the first chunk."""

    n: int
    probability_bits: int
    lanes: int
    chunk_symbols: int
    chunks: int
    selector: int
    escape_first: int
    value_bytes: int
    base: int
    head_bytes: int
    tables: NDArray[np.int64]


@contextmanager
def refusals(where: str) -> Iterator[None]:
    """The extension's errors, as ours."""
    try:
        yield
    except _native.CodecError as error:
        raise InputError(str(error), where=where) from None


def paths() -> list[str]:
    """The code that this processor can run, simplest first: values of `path`, besides "auto"."""
    return _native.paths()


def path_of(stream: Any, n: int) -> str:
    """The code that "auto" means for a stream of n symbols here. Which is fastest is measured once in a process.

    Raises:
        InputError: the head of the stream is damaged.
    """
    with refusals("rans"):
        return _native.path_of(as_bytes(stream), n)


def lanes_for(n: int, chunk_symbols: int = CHUNK_SYMBOLS) -> int:
    """How many lanes a stream of n symbols gets: few for little data, so that their states cost little."""
    lanes, most = LANES
    while lanes < most and min(n, chunk_symbols) >= 2 * lanes * SYMBOLS_PER_LANE:
        lanes *= 2
    return lanes


def encode(
    symbols: ArrayLike,
    *,
    select: Contexts | Automaton | None = None,
    probability_bits: int = 12,
    lanes: int | None = None,
    chunk_symbols: int = CHUNK_SYMBOLS,
    threads: int = 1,
    path: str = "auto",
) -> Bytes:
    """The stream of uint8 symbols, of any shape.

    Rare symbols share an escape where that is smaller.

    Raises:
        InputError: an option is out of range, or a selection does not fit the symbols.
    """
    plane = as_bytes(symbols)
    options = stream_options(plane.size, probability_bits, lanes, chunk_symbols)
    with refusals("rans"):
        return _native.encode(
            plane, **_selection(select), values=None, value_bytes=1, base=0, escape_first=256, **options,
            threads=threads, path=path,
        )  # fmt: skip


def encode_wide(
    values: NDArray[Any],
    *,
    select: Contexts | Automaton | None = None,
    escapes: int = 1,
    base: int | None = None,
    probability_bits: int = 12,
    lanes: int | None = None,
    chunk_symbols: int = CHUNK_SYMBOLS,
    threads: int = 1,
    path: str = "auto",
) -> Bytes:
    """The stream of int16 or int32 values: `256 - escapes` of them from `base` on are symbols, others stand raw in it.

    The last `escapes` symbols announce raw values; a value v has number (v - base) mod `escapes` among them. With 4
    escapes and base = 0 mod 4, an automaton whose classes are v mod 4 is driven by raw values too.

    Args:
        base: value of symbol 0; None: the smallest value where all fit, else the one that leaves fewest values raw.

    Raises:
        InputError: as `encode`; or values are not int16 or int32.
    """
    if values.dtype not in (np.dtype(np.int16), np.dtype(np.int32)):
        raise InputError(f"wide symbols are int16 or int32, not {values.dtype}", where="rans")
    if not 1 <= escapes <= 128:
        raise InputError("escapes are not from 1 to 128", where="rans")
    flat = np.ascontiguousarray(values).reshape(-1)
    if base is None:
        base = _best_base(flat, 256 - escapes)
    relative = flat.astype(np.int64) - base
    escape = 256 - escapes + relative % escapes
    symbols = np.where((relative >= 0) & (relative < 256 - escapes), relative, escape).astype(np.uint8)
    options = stream_options(flat.size, probability_bits, lanes, chunk_symbols)
    with refusals("rans"):
        return _native.encode(
            symbols, **_selection(select), values=as_bytes(flat), value_bytes=values.dtype.itemsize, base=base,
            escape_first=256 - escapes, **options, threads=threads, path=path,
        )  # fmt: skip


def decode(
    stream: Any,
    n: int,
    *,
    contexts: Bytes | None = None,
    out: NDArray[Any] | None = None,
    threads: int = 1,
    path: str = "auto",
) -> NDArray[Any]:
    """The n values of a stream: uint8, or what went into `encode_wide`.

    Args:
        n: how many the caller expects; nothing is allocated for a stream that claims otherwise.
        contexts: [n] uint8, for a stream made with `Contexts`.
        out: where to put them: [n], contiguous.

    Raises:
        InputError: the stream is damaged, or is none.
    """
    data = as_bytes(stream)
    with refusals("rans"):
        if out is None:
            dtype = {1: np.uint8, 2: np.int16, 4: np.int32}[describe(data, n).value_bytes]
            out = np.empty(n, dtype)
        _native.decode(data, n, as_bytes(out), contexts, threads, path)
    return out


def decode_range(
    stream: Any, n: int, begin: int, end: int, *, contexts: Bytes | None = None, path: str = "auto"
) -> Bytes:
    """Symbols [begin, end) of a stream of n bytes; only the chunks that hold them are read.

    Raises:
        InputError: as `decode`; or the range is not inside.
    """
    if not 0 <= begin <= end <= n:
        raise InputError(f"symbols {begin} to {end} are not inside a stream of {n}", where="rans")
    out = np.empty(end - begin, np.uint8)
    with refusals("rans"):
        _native.decode_range(as_bytes(stream), n, begin, out, contexts, path)
    return out


def describe(stream: Any, n: int) -> StreamInfo:
    """What the head of a stream of n symbols says, after checking it.

    Raises:
        InputError: the head is damaged.
    """
    with refusals("rans"):
        found = _native.describe(as_bytes(stream), n)
    return StreamInfo(**{**found, "tables": np.array(found["tables"], np.int64)})


def histogram(symbols: Bytes, contexts: Bytes | None = None) -> NDArray[np.uint64]:
    """Counts of symbols: [256], or [256, 256] by context."""
    counts = np.zeros(256 if contexts is None else 65536, np.uint64)
    with refusals("rans"):
        _native.count(symbols, contexts, counts)
    return counts if contexts is None else counts.reshape(256, 256)


def normalise(counts: ArrayLike, probability_bits: int = 12) -> NDArray[np.int64]:
    """Frequencies [256] that sum to 2**bits and make symbols of these counts smallest, at least 1 where they are."""
    with refusals("rans"):
        return np.array(_native.normalise(np.asarray(counts, np.uint64).tolist(), probability_bits), np.int64)


def crc32c(data: Any, before: int = 0) -> int:
    """CRC-32C of bytes, continued from that of what came before."""
    return _native.crc32c(as_bytes(data), before)


def _best_base(values: NDArray[Any], span: int) -> int:
    """The start of a window of `span` values, aligned to 4, that holds most of them; the smallest of the best."""
    if values.size == 0:
        return 0
    found, counts = np.unique(values, return_counts=True)
    starts = np.minimum(found.astype(np.int64) // 4 * 4, np.iinfo(values.dtype).max - 255)
    total = np.concatenate([[0], np.cumsum(counts)])
    inside = total[np.searchsorted(found, starts + span)] - total[np.searchsorted(found, starts)]
    return int(starts[inside.argmax()])


def stream_options(n: int, probability_bits: int, lanes: int | None, chunk_symbols: int) -> dict[str, Any]:
    """The fields of a new stream's head, as the extension takes them."""
    lanes = lanes_for(n, chunk_symbols) if lanes is None else lanes
    if lanes <= 0 or lanes & (lanes - 1):
        raise InputError(f"{lanes} lanes are no power of two", where="rans", fix="4 to 256 are possible")
    return {"bits": probability_bits, "lanes_log2": lanes.bit_length() - 1, "chunk": chunk_symbols}


def _selection(select: Contexts | Automaton | None) -> dict[str, Any]:
    none = {"contexts": None, "table_of": None, "next_state": None, "class_of": None, "tables": 1}
    if select is None:
        return none
    if isinstance(select, Contexts):
        last = int(select.values.max(initial=0))
        table_of = np.minimum(np.arange(256), last) if select.table_of is None else select.table_of
        used = {"contexts": as_bytes(select.values), "table_of": np.ascontiguousarray(table_of, np.uint8)}
    else:
        maps = (select.next_state, select.class_of, select.table_of)
        used = {
            name: np.ascontiguousarray(map, np.uint8).reshape(-1)
            for name, map in zip(("next_state", "class_of", "table_of"), maps, strict=True)
        }
    return {**none, **used, "tables": int(used["table_of"].max(initial=0)) + 1}
