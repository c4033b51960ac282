"""The GPU decoders against the CPU: in Triton's interpreter everywhere, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from llmc.artifacts.kernel_folder import cuda_kernel_files, kernel_files
from llmc.encodings.coding import bitmaps, gpu, planes, rans
from llmc.errors import InputError, UnsupportedError
from llmc.files.bytes import Bytes

CASES = Path(__file__).parents[1] / "gpu_cases.py"
NUMBERS = (np.random.default_rng(1).standard_normal(3000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
FIELDS = (NUMBERS >> 7 & 255).astype(np.uint8)


def cases(device: str, **environment: str) -> list[str]:
    """What tests/gpu_cases.py prints: a process of its own, because Triton looks at its variables when imported."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, str(CASES), device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def check(lines: list[str]) -> None:
    assert sum(line.startswith("equal ") for line in lines) == 33
    refusals = (
        "refused trellis trellis: chunk 0 is damaged",
        "refused rans rans: chunk 0 is damaged",
        "refused bitmaps bitmaps: chunk 0: the sum of its bytes differs",
    )
    assert tuple(lines[-3:]) == refusals


def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    check(cases("cpu", TRITON_INTERPRET="1"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu() -> None:
    pytest.importorskip("triton")
    check(cases("cuda"))


BLOCKS = {
    "words": "*i32",
    "escapes": "*u8",
    "starts": "*i64",
    "table": "*i32",
    "damaged": "*i32",
    "n": "i64",
    "first": "i32",
}
CHUNKS = {
    **{"stream": "*u8", "entries": "*i64", "slots": "*i32", "pairs": "*i32", "damaged": "*i32"},
    **{"n": "i64", "raw_bytes": "i64", "chunk_symbols": "i32", "first_escape": "i32", "base": "i32"},
}


TILES = {
    **{"stream": "*u8", "entries": "*i64", "slots": "*i32", "order": "*i32", "row_table": "*i32"},
    **{"column_table": "*i32", "steps": "*fp32", "shifts": "*fp32", "damaged": "*i32"},
    **dict.fromkeys(("rows", "columns", "height", "width", "segment", "base", "parity_mask", "flip_mask"), "i32"),
}
KERNELS = {"bitmaps": ("_block", BLOCKS), "rans": ("_chunk", CHUNKS), "trellis": ("_tile", TILES)}


def tile_facts(states: int, out: str) -> dict[str, int | bool]:
    which = {"CODES": out == "codes", "BRAIN": out == "bf16"}
    return {"LANES": 64, "STATES": states, "BITS": 12, "ESCAPE": 254, **which}


def chunk_facts(lanes: int, raw: int, width: int, escapes: bool = True, packed: bool = True) -> dict[str, int]:
    return {"LANES": lanes, "BITS": 12, "PACKED": packed, "WIDTH": width, "ESCAPES": escapes, "RAW": raw}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets, it does not compile")
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        *[("bitmaps", {"BLOCK": 4096, "RAW": raw, "FULL": full}) for raw in (0, 8) for full in (True, False)],
        ("rans", chunk_facts(32, 8, 1)),
        ("rans", chunk_facts(64, 8, 1, escapes=False)),
        ("rans", chunk_facts(64, 6, 2, packed=False)),
        ("rans", chunk_facts(256, 0, 1)),
        ("rans", chunk_facts(4, 0, 2)),
        *[("trellis", tile_facts(states, out)) for states, out in ((8, "bf16"), (1, "fp32"), (64, "codes"))],
    ],
    ids=str,
)
def test_kernels_compile_for_gpus(
    name: str, facts: dict[str, int], architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does; the compiler needs no GPU."""
    compiler, backends = pytest.importorskip("triton.compiler"), pytest.importorskip("triton.backends.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function, types = KERNELS[name]
    kernel = getattr(import_module(f"llmc.encodings.kernels.{name}_triton"), function)
    out = "*i16" if facts.get("RAW") or facts.get("WIDTH") == 2 else "*u8"
    if name == "trellis":
        out = "*i16" if facts["CODES"] or facts["BRAIN"] else "*fp32"
    types = {**types, "raw": "*u8", "out": out, **dict.fromkeys(facts, "constexpr")}
    names = kernel.arg_names
    source = compiler.ASTSource(
        kernel,
        signature={argument: types[argument] for argument in names},
        constexprs={(names.index(fact),): value for fact, value in facts.items()},
    )
    target = backends.GPUTarget("cuda", architecture, 32)
    compiled = compiler.compile(source, target=target, options={"num_warps": 8 if name == "bitmaps" else 1})
    assert compiled.asm["cubin"]


def found(monkeypatch: pytest.MonkeyPatch, *, device: bool, triton: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    monkeypatch.setattr(gpu, "find_spec", lambda name: object() if triton else None)


def test_nothing_falls_back_to_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, raw = bitmaps.encode_numbers(NUMBERS)
    for decode in (
        lambda device: gpu.decode_on(device, stream, NUMBERS.size),
        lambda device: gpu.decode_numbers_on(device, stream, raw, NUMBERS.size),
        lambda device: gpu.decode_trellis_on(device, stream, (1, 1), torch.int16),
    ):
        found(monkeypatch, device=True, triton=True)
        with pytest.raises(UnsupportedError, match=r"^gpu: GPU decoders do not run on cpu; decode on the CPU"):
            decode("cpu")
        found(monkeypatch, device=False, triton=True)
        with pytest.raises(UnsupportedError, match=r"^gpu: torch sees no CUDA device; decode on the CPU$"):
            decode("cuda:0")
        found(monkeypatch, device=True, triton=False)
        with pytest.raises(UnsupportedError, match=r"^gpu: the GPU decoders need triton; pip install triton$"):
            decode("cuda")


def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, device=True, triton=True)
    assert gpu.require("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("stream", "sum_differs"),
    [
        (bitmaps.encode(FIELDS), "the sum of the head differs"),
        (rans.encode(FIELDS), "the head of the stream is damaged"),
    ],
    ids=["bitmaps", "rans"],
)
def test_heads_are_checked_before_anything_is_sent(stream: Bytes, sum_differs: str) -> None:
    for at, what in ((5, sum_differs), (0, "not a stream of this coder")):
        damaged = stream.copy()
        damaged[at] ^= 1
        with pytest.raises(InputError, match=what):
            gpu.prepare(damaged, FIELDS.size, "cpu")
    with pytest.raises(InputError):
        gpu.prepare(stream[:-1], FIELDS.size, "cpu")
    with pytest.raises(InputError):
        gpu.prepare(stream, FIELDS.size + 1, "cpu")


def test_streams_that_only_processors_decode() -> None:
    select = rans.Contexts(np.arange(FIELDS.size, dtype=np.uint8) % 2, np.arange(256, dtype=np.uint8) % 2)
    stream = rans.encode(FIELDS, select=select)
    with pytest.raises(UnsupportedError, match="one table"):
        gpu.prepare(stream, FIELDS.size, "cpu")


def test_raw_bits_must_fit() -> None:
    stream, raw = bitmaps.encode_numbers(NUMBERS)
    pieces = gpu.prepare(stream, NUMBERS.size, "cpu")
    with pytest.raises(InputError, match="not of the size of the numbers"):
        gpu.run(pieces, raw[:-1])
    with pytest.raises(UnsupportedError, match="no GPU decoder for Split"):
        gpu.run(pieces, raw, planes.BALANCED["float32"])


# The variant of the kernel folder


@pytest.fixture
def kernel_folder(tmp_path: Path) -> Path:
    for path, content in (kernel_files(["coded_tensor"]) | cuda_kernel_files(["coded_tensor"])).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path / "kernel"


def test_kernels_library_knows_both_variants(kernel_folder: Path) -> None:
    rust, variants = pytest.importorskip("kernels._rust"), pytest.importorskip("kernels.variants")
    found = variants.get_variants_local(kernel_folder / "build")
    assert sorted(variant.variant_str for variant in found) == ["torch-cpu", "torch-cuda"]
    ids = set()
    for backend, name in ((rust.Backend.CPU, "torch-cpu"), (rust.Backend.CUDA, "torch-cuda")):
        metadata = rust.Metadata.read_from_file(kernel_folder / "build" / name / "metadata.json")
        assert metadata.backend.backend_type == backend
        metadata.digest.validate(rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, kernel_folder / "build" / name))
        ids.add(metadata.id)
    assert len(ids) == 2


def test_the_variant_for_processors_is_taken_where_there_is_no_gpu(kernel_folder: Path) -> None:
    variants = pytest.importorskip("kernels.variants")
    chosen, _ = variants.resolve_variant(variants.get_variants_local(kernel_folder / "build"), "cpu")
    assert chosen.variant_str == "torch-cpu"


ALONE = """
import importlib.util, sys
sys.modules["llmc"] = None
import torch
folder, case = sys.argv[1:]
spec = importlib.util.spec_from_file_location("alone", folder + "/__init__.py", submodule_search_locations=[folder])
kernel = sys.modules["alone"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
case = torch.load(case)
out = torch.empty(case["n"], dtype=torch.int16)
damaged = kernel.bitmaps_triton.decode(**case["tensors"], n=case["n"], out=out, raw=case["raw"])
assert not damaged.any() and torch.equal(out, case["expected"])
assert set(kernel.__all__) == {"bitmaps_triton", "coded_tensor", "rans_triton", "trellis_triton"} <= set(dir(kernel))
"""


def test_the_variant_for_gpus_needs_nothing_but_itself(kernel_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    stream, raw = bitmaps.encode_numbers(NUMBERS)
    tensors = gpu.prepare(stream, NUMBERS.size, "cpu").tensors
    expected = torch.from_numpy(NUMBERS.view(np.int16))
    case = {"n": NUMBERS.size, "tensors": tensors, "raw": torch.from_numpy(np.array(raw)), "expected": expected}
    torch.save(case, tmp_path / "case.pt")
    command = [
        sys.executable,
        "-I",
        "-c",
        ALONE,
        str(kernel_folder / "build" / "torch-cuda"),
        str(tmp_path / "case.pt"),
    ]
    environment = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
