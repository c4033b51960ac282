"""Kind CODES of a coded tensor: integers that hold packed codes, cut into those codes.

The tensor is a table of elements whose rows or whose columns are *lines*: little-endian bit streams, low bits first, of
`count` codes of `bits` bits and zeros after them. The codes, line after line, are one stream; lines, or places in a
line, may belong to groups that have tables of their own. Byte spec: docs/formats/lossless.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmc.encodings.coding import rans
from llmc.encodings.coding.packing import pack_bytes, unpack_bytes
from llmc.errors import InputError
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import np, torch

ALONG_ROWS, ALONG_COLUMNS = 1, 2
NO_AXIS, LINES, PLACES = range(3)
MOST_BITS = 8


@dataclass(frozen=True)
class Cut:
    """How codes lie in a table of integers.

    Attributes:
        bits: of a code.
        along: ALONG_ROWS or ALONG_COLUMNS: what a line is.
        width: elements in a row of the table.
        count: codes in a line.
    """

    bits: int
    along: int
    width: int
    count: int

    def lines(self, n: int) -> int:
        """How many lines `n` elements are."""
        return n // self.width if self.along == ALONG_ROWS else self.width

    def line_bytes(self, n: int, size: int) -> int:
        """Bytes of a line of `n` elements of `size` bytes."""
        return size * n // self.lines(n)

    def check(self, n: int, size: int) -> None:
        """Raise InputError when `n` elements of `size` bytes are no such table."""
        if not 1 <= self.bits <= MOST_BITS or self.along not in (ALONG_ROWS, ALONG_COLUMNS):
            raise InputError(f"a coded tensor of codes of {self.bits} bits along axis {self.along}")
        if self.width < 1 or n < 1 or n % self.width:
            raise InputError(f"a coded tensor of codes with {n} elements in rows of {self.width}")
        if not 1 <= self.count * self.bits <= 8 * self.line_bytes(n, size):
            raise InputError(f"a coded tensor with {self.count} codes of {self.bits} bits in a line that is shorter")


def unpack(data: Bytes, size: int, cut: Cut) -> Bytes | None:
    """The codes `[lines, count]` of elements of `size` bytes, or None where `cut` is not how they were packed."""
    lines = _lines(data, size, cut)
    codes = unpack_bytes(lines, cut.bits, cut.count)
    same = torch.equal(pack_bytes(codes, cut.bits, lines.shape[1]), lines)
    return codes.numpy() if same else None


def cut_of(data: Bytes, size: int, width: int, bits: int, along: int) -> Cut:
    """A cut whose `count` leaves out the zeros that end every line."""
    n = data.size // size
    whole = Cut(bits, along, width, 1)
    lines = _lines(data, size, whole)
    used = np.bitwise_or.reduce(lines.numpy(), axis=0)
    last = int(np.flatnonzero(used)[-1]) if used.any() else 0  # byte
    end = 8 * last + int(used[last]).bit_length()
    return Cut(bits, along, width, max(1, min(-(-end // bits), 8 * whole.line_bytes(n, size) // bits)))


def sample(data: Bytes, size: int, width: int, along: int, most: int) -> Bytes:
    """Evenly spaced lines as a table of whole rows or columns that has about `most` bytes, and one line at least."""
    table = data.reshape(-1, width, size)
    lines = table.shape[0] if along == ALONG_ROWS else width
    step = max(1, -(-data.size // most))
    picked = np.arange(step // 2, lines, step) if step // 2 < lines else np.zeros(1, np.int64)
    taken = table[picked] if along == ALONG_ROWS else table[:, picked]
    return np.ascontiguousarray(taken).reshape(-1)


def contexts(group_of: Bytes, axis: int, lines: int, count: int) -> Bytes:
    """The group of every code, line after line, from those of the lines or of the places."""
    return np.repeat(group_of, count) if axis == LINES else np.tile(group_of, lines)


def decode(parts: list[Bytes], cut: Cut, axis: int, groups: int, size: int, out: Bytes, threads: int) -> None:
    """Write the elements of `size` bytes to `out`. Raises InputError when the streams do not hold what they must."""
    lines, n = cut.lines(out.size // size), cut.lines(out.size // size) * cut.count
    group_of = None
    if axis != NO_AXIS:
        members = rans.decode(parts[0], lines if axis == LINES else cut.count)
        if members.dtype != np.uint8 or members.max(initial=0) >= groups:
            raise InputError("a coded tensor with a member of no group")
        rans.describe(parts[1], n)  # checked before memory is taken
        group_of = contexts(members, axis, lines, cut.count)
    codes = rans.decode(parts[-1], n, contexts=group_of, threads=threads)
    if codes.dtype != np.uint8 or int(codes.max(initial=0)) >> cut.bits:
        raise InputError(f"a coded tensor with codes of more than {cut.bits} bits")
    packed = pack_bytes(torch.from_numpy(codes).view(lines, -1), cut.bits, cut.line_bytes(out.size // size, size))
    table = packed.view(lines, -1, size)
    out[:] = as_bytes((table if cut.along == ALONG_ROWS else table.transpose(0, 1)).contiguous())


def _lines(data: Bytes, size: int, cut: Cut) -> torch.Tensor:
    """The lines as bytes, `uint8 [lines, bytes of a line]`."""
    table = torch.from_numpy(data).view(-1, cut.width, size)
    if cut.along == ALONG_COLUMNS:
        table = table.transpose(0, 1).contiguous()
    return table.reshape(table.shape[0], -1)
