"""The header of a safetensors file: bytes to checked entries, and entries to bytes.

Format (https://huggingface.co/docs/safetensors, "Format"): 8 bytes, little endian, the length N of the header; N bytes
of JSON, `{name: {"dtype", "shape", "data_offsets": [start, stop]}, "__metadata__": {str: str}}`; then the tensors'
bytes without overlap or hole. Public readers accept duplicate keys; here every field is checked before it is believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import UnsupportedError
from llmc.files.strict_json import Document, RefusedError, short
from llmc.late import LateTable, torch

HEADER_LIMIT = 100_000_000  # bytes: the format's own
TENSOR_LIMIT = 1 << 18  # members of one header
METADATA_LIMIT = 1 << 24  # bytes, in at most TENSOR_LIMIT strings
SIZE_LIMIT = 1 << 63  # torch counts in int64
METADATA = "__metadata__"

# The format's name -> torch's, and bytes of an element.
KINDS: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F4": ("float4_e2m1fn_x2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
KIND_OF: Mapping[str, str] = {dtype: kind for kind, (dtype, _) in KINDS.items()}
DTYPES: Mapping[str, torch.dtype] = LateTable(
    lambda: {kind: getattr(torch, dtype) for kind, (dtype, _) in KINDS.items()}
)
DTYPE_NAMES: Mapping[torch.dtype, str] = LateTable(lambda: {dtype: kind for kind, dtype in DTYPES.items()})


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor's bytes are.

    Attributes:
        name: as in the header.
        kind: the format's name of its dtype.
        shape: torch's: of `F4`, with two values an element, the last dimension is half of the header's.
        file: the file; `start`, `stop`: absolute byte offsets in it.
        stamp: size in bytes and mtime in ns that the file must still have when it is loaded; empty: any.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    stamp: tuple[int, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]

    @property
    def dtype_name(self) -> str:
        """What torch calls it, without torch."""
        return KINDS[self.kind][0]

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def parse_header(data: bytearray, path: Path, stamp: tuple[int, int]) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Entries in the header's order, and the metadata, of the header `data` (without its length).

    Args:
        path, stamp: of the file, for the entries; `stamp[0]` is the file's size in bytes.

    Raises RefusedError for the first fault.
    """
    if not data.startswith(b"{"):
        raise RefusedError("header does not start with '{'")
    document = Document(data, "header")
    document.check_utf8()
    base = 8 + len(data)
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] | None = None
    for name, start, stop in document.members(0, len(data), TENSOR_LIMIT):
        if name in entries or (name == METADATA and metadata is not None):
            raise RefusedError(f"tensor {short(name)}: listed twice in the header")
        if name == METADATA:
            metadata = _metadata(Document(data, METADATA), start, stop)
            continue
        try:
            kind, shape, first, last = _described(document.value(start, stop))
        except RefusedError as error:
            raise RefusedError(f"tensor {short(name)}: {error.message}", error.fix) from None
        entries[name] = TensorEntry(name, kind, shape, path, base + first, base + last, stamp)
    _check_layout(list(entries.values()), base, stamp[0])
    return entries, metadata or {}


def _metadata(document: Document, start: int, stop: int) -> dict[str, str]:
    if not document.is_object(start) or stop - start > METADATA_LIMIT:
        raise RefusedError(f"{METADATA} is not an object of at most {METADATA_LIMIT} bytes")
    pairs: dict[str, str] = {}
    for key, first, last in document.members(start, stop, TENSOR_LIMIT):
        if key in pairs:
            raise RefusedError(f"{METADATA}: {short(key)} is listed twice")
        if document.data[first] != ord('"'):
            raise RefusedError(f"{METADATA}: {short(key)} is not a string")
        pairs[key] = document.string(first, last, METADATA_LIMIT)
    return pairs


def _described(fields: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Kind, shape and offsets of one tensor's description, each checked alone and against the others."""
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise RefusedError("its description is not just dtype, shape and data_offsets")
    name, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(name, str) or name not in KINDS:
        raise RefusedError(f"unknown dtype {_quoted(name)}", f"known are {', '.join(KINDS)}")
    if not _naturals(shape):
        raise RefusedError(f"shape {_quoted(shape)} is not a list of integers from 0 to 2^63 - 1")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RefusedError(f"data_offsets {_quoted(offsets)} are not two rising integers from 0 to 2^63 - 1")
    if math.prod(max(1, size) for size in shape) >= SIZE_LIMIT:
        raise RefusedError(f"shape {_quoted(shape)} overflows: 2^63 elements or more")
    stored = list(shape)
    if name == "F4":
        if not shape or shape[-1] % 2:
            raise RefusedError(f"shape {_quoted(shape)} of F4, two values a byte, does not end in an even number")
        stored[-1] //= 2
    span, needed = offsets[1] - offsets[0], math.prod(stored) * KINDS[name][1]
    if span != needed:
        raise RefusedError(f"{name} of shape {_quoted(shape)} takes {needed} bytes, its data_offsets span {span}")
    return name, tuple(stored), offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < SIZE_LIMIT for item in value)


def _quoted(value: Any) -> str:
    return short(json.dumps(value))


def _check_layout(entries: list[TensorEntry], base: int, size: int) -> None:
    """The tensors must fill the bytes from `base` to `size` exactly once."""
    at, before = base, ""
    for entry in sorted(entries, key=lambda e: (e.start, e.stop)):
        where = f"tensor {short(entry.name)}"
        if entry.stop > size:
            raise RefusedError(f"{where}: ends at byte {entry.stop} of a file of {size}: the file is truncated")
        if entry.start < at:
            raise RefusedError(f"{where}: overlaps tensor {short(before)}")
        if entry.start > at:
            raise RefusedError(f"{where}: the {entry.start - at} bytes before it belong to no tensor")
        at, before = entry.stop, entry.name
    if at != size:
        last = f"after the last tensor {short(before)}" if before else "after the header"
        raise RefusedError(f"the {size - at} bytes {last} belong to no tensor")


def write_header(
    entries: Sequence[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of a new file, its length included, padded with spaces to a multiple of 8.

    Args:
        entries: name, torch dtype and torch shape; their bytes follow the header in this order, without holes.
        metadata: strings by name, written in the given order.

    Returns the header, and by name the absolute `(start, stop)` of each tensor's bytes.

    Raises ValueError for names that no file can hold, UnsupportedError for dtypes or sizes that it cannot hold.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape in entries:
        if name in header or name == METADATA:
            raise ValueError(f"tensor {short(name)!r} is listed twice or has a reserved name")
        if dtype not in DTYPE_NAMES or (DTYPE_NAMES[dtype] == "F4" and not shape):
            raise UnsupportedError(f"safetensors cannot hold {dtype} of shape {list(shape)}", where=name)
        listed = [*shape[:-1], shape[-1] * 2] if DTYPE_NAMES[dtype] == "F4" else list(shape)
        stop = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": listed, "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT or len(entries) > TENSOR_LIMIT:
        raise UnsupportedError(f"too many tensors for one file: {len(entries)}", fix="use smaller shards")
    base = 8 + len(text)
    spans = {name: tuple(header[name]["data_offsets"]) for name, _, _ in entries}
    return len(text).to_bytes(8, "little") + text, {n: (base + a, base + b) for n, (a, b) in spans.items()}


def nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    count = dtype.itemsize
    for n in shape:
        count *= n
    return count
