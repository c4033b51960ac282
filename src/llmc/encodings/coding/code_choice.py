"""How packed codes are coded best: the width of a code, the way they lie, and groups with tables of their own.

Nothing says how a tensor of integers was packed, so all widths are tried on some of its lines, order 0 first, then with
groups; measured bytes decide. Groups are lines, or places in a line, of similar cost under the table of all codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmc.encodings.coding import packed_codes, rans
from llmc.encodings.coding.packed_codes import ALONG_COLUMNS, ALONG_ROWS, LINES, NO_AXIS, PLACES, Cut
from llmc.encodings.coding.rans import Contexts
from llmc.files.bytes import Bytes
from llmc.late import np

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
FIRST = 1 << 16
"""Bytes of the sample on which every width is tried."""
SECOND = 1 << 21
"""Bytes of that on which the widths that are left are tried with groups."""
NEAR = 1.05
"""Widths that take so much more than the best one, order 0, are left: groups may turn the order."""
NOISE = 0.995
"""Share of the bits below which codes say something."""
CLASSES = 16
STREAM_BYTES = 100
"""About what the head of a stream and its states take."""
FINE = 16
"""Steps of a bit in which the cost of a code is counted: whole numbers, so that sums are the same everywhere."""


@dataclass(frozen=True)
class Choice:
    """A cut, and the groups that go with it: `1 << log2_groups` of them along `axis`."""

    cost: float
    cut: Cut
    axis: int
    log2_groups: int


def choose(data: Bytes, size: int, width: int) -> Choice | None:
    """The best way to cut elements of `size` bytes, `width` in a row; None where none is worth it."""
    ways = [(bits, along) for bits in WIDTHS for along in (ALONG_ROWS, ALONG_COLUMNS)]
    if width == 1 or data.size == width * size:
        ways = [(bits, along) for bits, along in ways if along == (ALONG_COLUMNS if width == 1 else ALONG_ROWS)]
    shares = {way: share for way in ways if (share := _share(data, size, width, *way)) < NOISE}
    limit = NEAR * min(shares.values(), default=0)
    choices = [_grouped(data, size, width, *way) for way, share in shares.items() if share <= limit]
    return min(choices, key=lambda choice: choice.cost, default=None)


def parts(codes: Bytes, choice: Choice, threads: int) -> list[Bytes]:
    """The streams of codes `[lines, count]`."""
    bits = 12 if choice.cut.bits <= 4 else 14
    if choice.axis == NO_AXIS:
        return [rans.encode(codes, probability_bits=bits, threads=threads)]
    group_of = _classes(codes, choice.axis, 1 << choice.log2_groups)
    select = Contexts(packed_codes.contexts(group_of, choice.axis, *codes.shape))
    return [rans.encode(group_of), rans.encode(codes, select=select, probability_bits=bits, threads=threads)]


def _share(data: Bytes, size: int, width: int, bits: int, along: int) -> float:
    """Entropy of the codes over their width, order 0, in a few lines; tables counted."""
    codes, _, scale = _some(data, size, width, bits, along, FIRST)
    if codes is None:
        return 1.0
    counts = rans.histogram(codes.reshape(-1))
    return (scale * _bits(counts) / 8 + _table_bytes(counts)) / data.size


def _some(data: Bytes, size: int, width: int, bits: int, along: int, most: int) -> tuple[Bytes | None, Cut, float]:
    """Codes of some lines, the cut of all, and how many times more there are; no codes where they do not fit."""
    few = packed_codes.sample(data, size, width, along, most)
    rows = data.size // (width * size)
    lines = few.size // (width * size) if along == ALONG_ROWS else few.size // (rows * size)
    own = packed_codes.cut_of(few, size, width if along == ALONG_ROWS else lines, bits, along)
    codes = packed_codes.unpack(few, size, own)
    whole = Cut(bits, along, width, own.count)
    return codes, whole, whole.lines(data.size // size) / lines


def _grouped(data: Bytes, size: int, width: int, bits: int, along: int) -> Choice:
    """The best groups for one cut, by exact entropies of some lines."""
    codes, cut, scale = _some(data, size, width, bits, along, SECOND)
    if codes is None:
        return Choice(float("inf"), cut, NO_AXIS, 0)
    flat = codes.reshape(-1)
    counts = rans.histogram(flat)
    best = Choice(scale * _bits(counts) / 8 + _table_bytes(counts), cut, NO_AXIS, 0)
    for axis in (LINES, PLACES):
        finest = _classes(codes, axis, CLASSES)
        counts = rans.histogram(flat, packed_codes.contexts(finest, axis, *codes.shape))[:CLASSES]
        members = finest.size * (scale if axis == LINES else 1)
        for log2_groups in range(4, 0, -1):  # two groups become one, and so on
            apart = sum(scale * _bits(row) / 8 + _table_bytes(row) for row in counts)
            cost = apart + members * log2_groups / 8 + STREAM_BYTES
            best = min(best, Choice(cost, cut, axis, log2_groups), key=lambda choice: choice.cost)
            counts = counts[::2] + counts[1::2]
    return best


def _classes(codes: Bytes, axis: int, groups: int) -> Bytes:
    """Lines or places in groups of equal size by what their codes cost under the table of all."""
    counts = rans.histogram(codes.reshape(-1)).astype(np.float64)
    cost = np.round(FINE * np.log2(counts.sum() / np.maximum(counts, 1))).astype(np.uint16)
    step = max(1, (1 << 22) // codes.shape[1])  # lines handled at once
    found = [
        cost[codes[a : a + step]].sum(axis=1 if axis == LINES else 0, dtype=np.int64)
        for a in range(0, codes.shape[0], step)
    ]
    sums = np.concatenate(found) if axis == LINES else np.sum(found, axis=0)
    rank = np.empty(sums.size, np.int64)
    rank[np.argsort(sums, kind="stable")] = np.arange(sums.size)
    return (rank * groups // sums.size).astype(np.uint8)


def _bits(counts: np.ndarray) -> float:
    """Entropy of all symbols of a histogram together."""
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * np.log2(seen.sum() / seen)).sum()) if seen.size else 0.0


def _table_bytes(counts: np.ndarray) -> float:
    return 2 + 1.25 * int((counts > 0).sum())
