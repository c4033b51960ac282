"""Streams decoded on a GPU: heads are read and checked here, the work is in `kernels/*_triton.py`.

Streams go to the device as they are stored. What is checked: all claims of a head, the sums of a bitmap stream (of its
stored bytes, before they are sent), and of an rANS stream, that of a trellis too, that every lane ends where it began
with all words used. The sums of its symbols are for processors: what harms an escape alone is not noticed here. Nothing
falls back in silence: without Triton or a GPU there is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from llmc.encodings.coding import bitmaps, rans, trellis_stream
from llmc.encodings.coding.planes import BALANCED, Split
from llmc.encodings.trellis import row_order
from llmc.errors import InputError, UnsupportedError
from llmc.files.bytes import Bytes, as_bytes
from llmc.late import np, torch

BF16 = BALANCED["bfloat16"]


@dataclass(frozen=True)
class Pieces:
    """A checked stream on a device.

    Attributes:
        n: symbols.
        dtype: of the plain symbols.
        tensors, facts: arguments of the `decode` of the layout's kernel.
    """

    layout: str
    n: int
    dtype: torch.dtype
    tensors: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def require(device: str | torch.device) -> torch.device:
    """The device, where Triton and a GPU are there.

    Raises:
        UnsupportedError: they are not.
    """
    place = torch.device(device)
    if place.type != "cuda":
        raise UnsupportedError(
            f"GPU decoders do not run on {place}", where="gpu", fix="decode on the CPU, or name cuda"
        )
    if not torch.cuda.is_available():
        raise UnsupportedError("torch sees no CUDA device", where="gpu", fix="decode on the CPU")
    if find_spec("triton") is None:
        raise UnsupportedError("the GPU decoders need triton", where="gpu", fix="pip install triton")
    return place


def decode_on(device: str | torch.device, stream: Any, n: int) -> torch.Tensor:
    """The n symbols of a stream of either layout: [n] uint8, or int16 where they are wide.

    Raises:
        InputError: the stream is damaged.
        UnsupportedError: there is no GPU decoder for it, or no GPU.
    """
    return run(prepare(stream, n, require(device)))


def decode_numbers_on(device: str | torch.device, stream: Any, raw: Any, n: int, how: Split = BF16) -> torch.Tensor:
    """The bits of n numbers of 16 bits, [n] int16, from the stream of their coded fields and their raw bits.

    Raises:
        InputError: the stream is damaged, or the raw bits are not as many.
        UnsupportedError: there is no GPU decoder for it, or no GPU.
    """
    return run(prepare(stream, n, require(device)), raw, how)


def prepare(stream: Any, n: int, device: str | torch.device) -> Pieces:
    """A stream of either layout, told apart by its first bytes, checked and sent to a device.

    Raises:
        InputError: it is damaged.
        UnsupportedError: its kind has no GPU decoder.
    """
    data = as_bytes(stream)
    if data[:4].tobytes() == b"lBM1":
        return _bitmaps(data, n, torch.device(device))
    return _rans(data, n, torch.device(device))


def run(pieces: Pieces, raw: Any = None, how: Split = BF16) -> torch.Tensor:
    """Decodes where the pieces are: symbols, or with the raw bits of a split the int16 bits of numbers.

    Raises:
        InputError: a block or chunk is damaged, or the raw bits are not as many.
        UnsupportedError: the split has no GPU decoder.
    """
    if raw is not None:
        raw = _raw(pieces, raw, how)
    device = next(iter(pieces.tensors.values())).device
    out = torch.empty(pieces.n, dtype=torch.int16 if raw is not None else pieces.dtype, device=device)
    if pieces.layout == "bitmaps":
        from llmc.encodings.kernels import bitmaps_triton

        damaged = bitmaps_triton.decode(**pieces.tensors, n=pieces.n, out=out, raw=raw, **pieces.facts)
    else:
        from llmc.encodings.kernels import rans_triton

        facts = pieces.facts if raw is None else {**pieces.facts, "raw_width": how.raw_bits}
        damaged = rans_triton.decode(**pieces.tensors, n=pieces.n, out=out, raw=raw, **facts)
    _refuse_damage(damaged, "block" if pieces.layout == "bitmaps" else "chunk", pieces.layout)
    return out


def decode_trellis_on(
    device: str | torch.device, stream: Any, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """The values `[rows, columns]` of the stream of a trellis, in float32, bfloat16 or float16; int16: its codes.

    Raises:
        InputError: the stream is damaged.
        UnsupportedError: there is no GPU.
    """
    return run_trellis(stream, shape, dtype, require(device))


def run_trellis(stream: Any, shape: tuple[int, int], dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """`decode_trellis_on` on any device that Triton knows. Raises InputError when the stream is damaged."""
    from llmc.encodings.kernels import trellis_triton

    about, grid, row_class = trellis_stream.describe(stream, shape)
    arrays = {
        "stream": as_bytes(stream),
        "entries": np.array(about["chunks"], np.int64).reshape(-1, 3),
        "order": row_order(row_class).int(),
        "row_class": row_class.int(),
        "column_class": grid.column_class.int(),
        "steps": grid.steps,
        "shifts": grid.shifts,
    }
    out = torch.empty(shape, dtype=dtype, device=device)
    damaged = trellis_triton.decode(
        **_sent(arrays, torch.device(device)),
        frequencies=about["tables"],
        out=out,
        machine=tuple(about["machine"]),
        lanes=about["lanes"],
        segment=grid.segment,
        height=about["segments"] * grid.segment,
        width=about["tile"],
        base=about["base"],
    )
    _refuse_damage(damaged, "chunk", "trellis")
    return out


def _refuse_damage(damaged: torch.Tensor, what: str, layout: str) -> None:
    if bool(damaged.any()):
        raise InputError(f"{what} {int(damaged.nonzero()[0])} is damaged", where=layout)


def _raw(pieces: Pieces, raw: Any, how: Split) -> torch.Tensor:
    wide = pieces.dtype == torch.int16
    if not (how.bytes == 2 and how.sign_after == 15 and how.raw_bits <= 8 and wide == (how.coded > 8)):
        raise UnsupportedError(f"there is no GPU decoder for {how}", where="gpu", fix="decode on the CPU")
    data = raw if isinstance(raw, torch.Tensor) else torch.from_numpy(as_bytes(raw))
    if data.numel() != how.raw_bytes(pieces.n) or data.dtype != torch.uint8:
        raise InputError("the raw bits are not of the size of the numbers", where="gpu")
    return data.to(next(iter(pieces.tensors.values())).device)


def _bitmaps(data: Bytes, n: int, device: torch.device) -> Pieces:
    info = bitmaps.describe(data, n)
    bitmaps.check(data, n, threads=torch.get_num_threads())
    blocks, per_chunk = -(-n // bitmaps.BLOCK), bitmaps.CHUNK // bitmaps.BLOCK
    until = data[info.blocks_at : info.blocks_at + 4 * blocks].view("<u4").astype(np.int64)
    before = np.concatenate([[0], np.cumsum(until[per_chunk - 1 :: per_chunk])])  # of chunks
    starts = np.zeros(blocks + 1, np.int64)
    starts[1:] = until + np.repeat(before, per_chunk)[:blocks]
    words = np.frombuffer(data[info.words_at : info.escapes_at].tobytes(), np.int32)
    escapes = np.append(data[info.escapes_at :], np.uint8(0))  # never empty
    table = np.frombuffer(b"\0" + info.table, np.int32)
    arrays = {"words": words, "escapes": escapes, "starts": starts, "table": table}
    return Pieces("bitmaps", n, torch.uint8, _sent(arrays, device))


def _rans(data: Bytes, n: int, device: torch.device) -> Pieces:
    info = rans.describe(data, n)
    if info.selector != 0 or info.value_bytes > 2:
        raise UnsupportedError(
            "GPU decoders know rANS streams of one table and of values of at most two bytes", where="gpu",
            fix="decode on the CPU",
        )  # fmt: skip
    dtype = torch.int16 if info.value_bytes == 2 else torch.uint8
    table_at = info.head_bytes - 4 - 12 * info.chunks
    words, escapes = data[table_at : info.head_bytes - 4].view("<u4").reshape(info.chunks, 3)[:, :2].T.astype(np.int64)
    sizes = 4 * info.lanes + 2 * words + info.value_bytes * escapes
    entries = np.stack([info.head_bytes + np.cumsum(sizes) - sizes, words, escapes], axis=1)
    if not info.chunks:  # one symbol, nothing coded: the same as chunks whose lanes need no words
        entries = np.tile(np.array([data.size, 0, 0]), (-(-n // info.chunk_symbols), 1))
        data = np.append(data, np.full(info.lanes, 1 << 16, "<u4").view(np.uint8))
    facts = {
        "frequencies": info.tables[0].tolist(),
        "bits": info.probability_bits,
        "lanes": info.lanes,
        "chunk_symbols": info.chunk_symbols,
        "first_escape": info.escape_first,
        "base": info.base,
        "value_bytes": info.value_bytes,
    }
    return Pieces("rans", n, dtype, _sent({"stream": data, "entries": entries}, device), facts)


def _sent(arrays: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    tensors = {name: a if isinstance(a, torch.Tensor) else torch.tensor(a) for name, a in arrays.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}
