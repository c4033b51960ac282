"""The reference decoders: bit for bit the definition, and loadable out of an artifact without this package."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from encodings_of import encode, packed
from safetensors.torch import save_file

from llmc.artifacts.kernel_folder import FOLDER, kernel_files
from llmc.encodings.encoded import Encoded
from llmc.encodings.int_grid import IntGrid
from llmc.encodings.kernels import bits as bits_kernel
from llmc.encodings.kernels import bitsandbytes, compressed_tensors, dense, gptq
from llmc.encodings.nf4_grid import Nf4Grid
from llmc.formats import CONTAINERS
from llmc.formats.bitsandbytes import BitsAndBytes
from llmc.formats.compressed_tensors import CompressedTensors
from llmc.formats.dense import Dense
from llmc.formats.gptq import Gptq

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPE = (64, 96)


@pytest.fixture(params=[None, 300], ids=["whole", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compressed_tensors, gptq, bitsandbytes):
        monkeypatch.setattr(module, "TILE", request.param or module.TILE)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("bits", "group", "symmetric"), [*itertools.product(range(2, 9), (None, 16), (True, False))])
def test_compressed_tensors(bits: int, group: int | None, symmetric: bool, dtype: torch.dtype) -> None:
    grid = IntGrid(bits=bits, group_size=group, symmetric=symmetric)
    encoded = encode(grid, SHAPE, dtype)
    decoded = compressed_tensors.dequantize(packed(CompressedTensors(), grid, encoded), bits)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, encoded.dequantize())


def test_compressed_tensors_of_odd_shape() -> None:
    grid = IntGrid(bits=3, group_size=None, symmetric=False)
    encoded = encode(grid, (5, 37), torch.bfloat16)
    decoded = compressed_tensors.dequantize(packed(CompressedTensors(), grid, encoded), 3)
    assert torch.equal(decoded, encoded.dequantize())


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("bits", "group"), [*itertools.product((2, 3, 4, 8), (None, 16))])
def test_gptq(bits: int, group: int | None) -> None:
    grid = IntGrid(bits=bits, group_size=group)
    encoded = encode(grid, SHAPE, torch.bfloat16)
    decoded = gptq.dequantize(packed(Gptq(), grid, encoded), bits)
    assert decoded.dtype == torch.float16
    assert torch.equal(decoded, encoded.dequantize(torch.float16))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [32, 64])
def test_bitsandbytes(group: int, dtype: torch.dtype) -> None:
    grid = Nf4Grid(group)
    encoded = encode(grid, (48, 128), dtype)
    decoded = bitsandbytes.dequantize(packed(BitsAndBytes(), grid, encoded))
    assert decoded.dtype == dtype
    assert torch.equal(decoded, encoded.dequantize())


def test_dense() -> None:
    encoded = encode(IntGrid(group_size=32), SHAPE, torch.bfloat16)
    assert torch.equal(dense.dequantize(packed(Dense(), encoded.grid, encoded)), encoded.dequantize())


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpack_against_single_bits(bits: int) -> None:
    words = torch.randint(-(1 << 31), 1 << 31, (3, bits), generator=torch.Generator().manual_seed(bits)).to(torch.int32)
    stream = [[(int(word) >> i) & 1 for word in row for i in range(32)] for row in words]
    expected = [[sum(row[i * bits + j] << j for j in range(bits)) for i in range(32)] for row in stream]
    assert bits_kernel.unpack(words, bits, 32).tolist() == expected


# The kernel folder

LOADER = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from kernels import get_local_kernel
try:
    import llmc
except ImportError:
    pass
else:
    raise SystemExit("llmc is importable: the test proves nothing")
folder = Path(sys.argv[1])
kernel = get_local_kernel(folder / "kernel", backend="cpu")
for case in json.loads((folder / "cases.json").read_text()):
    tensors = load_file(folder / f"{case['name']}.safetensors")
    expected = tensors.pop("expected")
    decoded = getattr(kernel, case["name"]).dequantize(tensors, case["bits"])
    assert decoded.dtype == expected.dtype and torch.equal(decoded, expected), case
    print("equal", case["name"])
"""


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_kernels_library_loads_the_folder_alone(tmp_path: Path) -> None:
    pytest.importorskip("kernels")
    cases: list[tuple[str, Encoded, int]] = [
        ("compressed-tensors", encode(IntGrid(bits=3, group_size=32, symmetric=False), SHAPE, torch.bfloat16), 3),
        ("gptq", encode(IntGrid(bits=4, group_size=32), SHAPE, torch.float16), 4),
        ("bitsandbytes", encode(Nf4Grid(32), SHAPE, torch.bfloat16), 4),
        ("dense", encode(IntGrid(group_size=32), SHAPE, torch.float16), 16),
    ]
    listed = []
    for name, encoded, bits in cases:
        container = CONTAINERS.get(name)()
        tensors = packed(container, encoded.grid, encoded)
        save_file({**tensors, "expected": encoded.dequantize()}, tmp_path / f"{container.kernel}.safetensors")
        listed.append({"name": container.kernel, "bits": bits})
    (tmp_path / "cases.json").write_text(json.dumps(listed))
    write(tmp_path, kernel_files([case["name"] for case in listed]))
    environment = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    # -S would hide site-packages too: an editable install of this package is kept out by its name instead.
    hide = "import sys; sys.modules['llmc'] = None\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", hide + LOADER, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"equal {case['name']}" for case in listed]


def test_digest_is_what_the_kernels_library_computes(tmp_path: Path) -> None:
    rust = pytest.importorskip("kernels._rust")
    write(tmp_path, kernel_files(["compressed_tensors"]))
    variant = tmp_path / FOLDER
    metadata = rust.Metadata.read_from_file(variant / "metadata.json")
    assert metadata.license == "Apache-2.0"
    metadata.digest.validate(rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, variant))


def test_folder_holds_only_what_it_needs() -> None:
    names = {path.removeprefix(FOLDER) for path in kernel_files(["compressed_tensors"])}
    assert names == {"__init__.py", "bits.py", "compressed_tensors.py", "metadata.json"}
    assert FOLDER + "bits.py" not in kernel_files(["bitsandbytes"])


def test_folder_bytes_depend_on_the_names_alone() -> None:
    assert kernel_files(["gptq", "compressed_tensors", "gptq"]) == kernel_files(["compressed_tensors", "gptq"])
    first, second = (json.loads(kernel_files([n])[FOLDER + "metadata.json"]) for n in ("gptq", "compressed_tensors"))
    assert first["id"] != second["id"]


def test_decoders_share_no_code_with_the_writers() -> None:
    for path, source in kernel_files(["compressed_tensors", "gptq", "bitsandbytes", "dense"]).items():
        assert b"import llmc" not in source and b"from llmc" not in source, path


def test_every_container_has_a_decoder() -> None:
    for name in CONTAINERS:
        assert FOLDER + f"{CONTAINERS.get(name).kernel}.py" in kernel_files([CONTAINERS.get(name).kernel])
