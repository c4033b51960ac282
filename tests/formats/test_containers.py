"""Containers over random codes: round trips, layouts, refusals, configs, and the public decoder of each format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from encodings_of import encode, packed, target

from llmc.encodings.encoded import Encoded, Grid, Plane
from llmc.encodings.int_grid import IntGrid
from llmc.encodings.nf4_grid import TABLE, Nf4Grid
from llmc.formats import CONTAINERS
from llmc.formats.bitsandbytes import BitsAndBytes
from llmc.formats.compressed_tensors import EXPERTS, CompressedTensors
from llmc.formats.container import Container, Facts, Spec
from llmc.formats.dense import Dense
from llmc.formats.gptq import Gptq

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPE = (64, 96)
FACTS = Facts(dtype=torch.bfloat16)

GROUPS = (None, 32, 48)
CT_GRIDS = [
    IntGrid(bits=b, group_size=g, symmetric=s) for b, g, s in itertools.product(range(2, 9), GROUPS, (True, False))
]
GPTQ_GRIDS = [IntGrid(bits=b, group_size=g) for b, g in itertools.product((2, 3, 4, 8), (None, 16, 32))]
NF4_GRIDS = [Nf4Grid(32), Nf4Grid(64)]
CASES: list[tuple[Container, Grid]] = [
    *((CompressedTensors(), grid) for grid in CT_GRIDS),
    *((Gptq(), grid) for grid in GPTQ_GRIDS),
    *((BitsAndBytes(), grid) for grid in NF4_GRIDS),
]


def case_name(value: Any) -> str:
    if isinstance(value, IntGrid):
        return f"{value.bits}bit-g{value.group_size}{'' if value.symmetric else '-asymmetric'}"
    return f"nf4-g{value.group_size}" if isinstance(value, Nf4Grid) else value.name


def shape_for(grid: Grid) -> tuple[int, int]:
    return (SHAPE[0], 128) if isinstance(grid, Nf4Grid) else SHAPE


def spec_of(grid: Grid, name: str = "m", kind: str = "linear", dtype: torch.dtype = torch.bfloat16) -> Spec:
    return Spec(target(name, shape_for(grid), dtype, kind), grid)


@pytest.mark.parametrize(("container", "grid"), CASES, ids=case_name)
def test_unpack_inverts_pack(container: Container, grid: Grid) -> None:
    spec = spec_of(grid)
    encoded = encode(grid, spec.target.shape, torch.bfloat16)
    again = container.unpack(spec, container.pack(spec, encoded))
    assert torch.equal(again.codes, encoded.codes)
    assert again.params.keys() == encoded.params.keys()
    assert all(torch.equal(again.params[k].float(), v.float()) for k, v in encoded.params.items())
    dtype = container.decoded_dtype(spec.target)
    assert again.dtype == dtype
    assert torch.equal(again.dequantize(), encoded.dequantize(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("container", "grid"), [*CASES, (Dense(), IntGrid()), (Dense(), Nf4Grid())], ids=case_name)
def test_layout_is_what_pack_writes(container: Container, grid: Grid, dtype: torch.dtype) -> None:
    spec = Spec(target("a.b", (64, 128), dtype), grid)
    if isinstance(grid, IntGrid) and grid.group_size == 48:
        spec = Spec(target("a.b", (64, 96), dtype), grid)
    stored = container.pack(spec, encode(grid, spec.target.shape, dtype))
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == container.layout(spec)
    assert all(t.is_contiguous() for t in stored.values())


@pytest.mark.parametrize("bits", range(2, 9))
def test_odd_shapes_of_compressed_tensors(bits: int) -> None:
    grid = IntGrid(bits=bits, group_size=None, symmetric=False)
    spec = Spec(target("m", (5, 37), torch.bfloat16), grid)
    encoded = encode(grid, (5, 37), torch.bfloat16)
    stored = CompressedTensors().pack(spec, encoded)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == CompressedTensors().layout(spec)
    assert torch.equal(CompressedTensors().unpack(spec, stored).dequantize(), encoded.dequantize())


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_dense_keeps_name_dtype_and_orientation(kind: str) -> None:
    grid = IntGrid(group_size=32)
    encoded = encode(grid, (64, 96), torch.float16)
    spec = Spec(target("h.0.c_fc", (64, 96), torch.float16, kind), grid)
    stored = Dense().pack(spec, encoded)
    assert list(stored) == ["h.0.c_fc.weight"]
    assert {n: (t.dtype, tuple(t.shape)) for n, t in stored.items()} == Dense().layout(spec)
    matrix = stored["h.0.c_fc.weight"]
    assert torch.equal(matrix.t() if kind == "conv1d" else matrix, encoded.dequantize())


# Public decoders


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", CT_GRIDS, ids=case_name)
def test_compressed_tensors_library_decodes_the_same_bits(grid: IntGrid, dtype: torch.dtype) -> None:
    pack_quantized = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    encoded = encode(grid, SHAPE, dtype)
    config = CompressedTensors().config([spec_of(grid)], FACTS)
    scheme = quantization.QuantizationScheme(**config["config_groups"]["group_0"])
    stored = packed(CompressedTensors(), grid, encoded)
    decoded = pack_quantized.PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    assert decoded.dtype == dtype
    assert torch.equal(decoded, encoded.dequantize())


def test_compressed_tensors_library_accepts_the_config() -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    specs = [spec_of(IntGrid(bits=8), "a"), spec_of(IntGrid(bits=3, group_size=None, symmetric=False), "b")]
    config = CompressedTensors().config(specs, Facts(torch.bfloat16, raw_linears=("lm_head",)))
    parsed = quantization.QuantizationConfig.model_validate(config)
    assert parsed.quantization_status == quantization.QuantizationStatus.COMPRESSED
    assert [g.weights.num_bits for g in parsed.config_groups.values()] == [3, 8]
    assert parsed.ignore == ["lm_head"]


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """bitsandbytes' CPU decoder compiles anew for every shape; run it as it is written."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", NF4_GRIDS, ids=case_name)
def test_bitsandbytes_decodes_the_same_bits(grid: Nf4Grid, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    encoded = encode(grid, (64, 128), dtype)
    stored = packed(BitsAndBytes(), grid, encoded)
    data = stored.pop("weight")
    state = functional.QuantState.from_dict(
        {name.removeprefix("weight."): t for name, t in stored.items()}, device=torch.device("cpu")
    )
    decoded = functional.dequantize_4bit(data, state)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, encoded.dequantize())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_bitsandbytes_quantizes_to_the_same_bytes(group_size: int, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    draw = torch.Generator().manual_seed(group_size)
    table = torch.tensor(TABLE)
    ties = torch.cat([table, (table[1:] + table[:-1]) / 2, torch.zeros(1)]).repeat(24, 8)  # [24, 256]
    weight = torch.cat([torch.randn(24, 256, generator=draw), ties * torch.rand(24, 1, generator=draw)]).to(dtype)
    weight[3] = 0
    theirs, state = functional.quantize_4bit(weight, blocksize=group_size, quant_type="nf4", compress_statistics=False)
    grid = Nf4Grid(group_size)
    values = weight.float().view(48, -1, group_size)
    params = grid.fit(values)
    codes = grid.round(values, params).view(48, 256)
    encoded = Encoded(grid, {"codes": Plane(codes, 16)}, {"scale": params["scale"].squeeze(-1)}, (48, 256), dtype)
    stored = packed(BitsAndBytes(), grid, encoded)
    assert torch.equal(stored["weight"], theirs)
    assert torch.equal(stored["weight.absmax"], state.absmax)
    serialized = state.as_dict(packed=True)
    assert torch.equal(stored["weight.quant_map"], serialized["quant_map"])
    name = "quant_state.bitsandbytes__nf4"
    ours = stored["weight." + name]
    assert json.loads(bytes(ours.tolist())) == json.loads(bytes(serialized[name].tolist()))


def numpy_gptq(stored: dict[str, torch.Tensor], bits: int) -> np.ndarray[Any, Any]:
    """GPTQ v1 by the letter: bits of each column of `qweight` and each row of `qzeros` as one stream, low bit first."""

    def fields(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:  # [rows, words] -> [rows, fields]
        stream = np.unpackbits(words.astype("<i4").view(np.uint8), axis=1, bitorder="little")
        return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))

    codes = fields(np.ascontiguousarray(stored["qweight"].numpy().T)).T  # [in, out]
    zeros = fields(stored["qzeros"].numpy()) + 1  # [groups, out]
    group = stored["g_idx"].numpy()
    return (codes - zeros[group]) * stored["scales"].float().numpy()[group]


@pytest.mark.parametrize("grid", GPTQ_GRIDS, ids=case_name)
def test_gptq_by_an_independent_unpacker(grid: IntGrid) -> None:
    encoded = encode(grid, SHAPE, torch.float16)
    decoded = torch.from_numpy(numpy_gptq(packed(Gptq(), grid, encoded), grid.bits)).T
    assert torch.equal(decoded.to(torch.float16), encoded.dequantize())


@pytest.mark.parametrize("grid", GPTQ_GRIDS, ids=case_name)
def test_gptq_and_compressed_tensors_share_their_words(grid: IntGrid) -> None:
    encoded = encode(grid, SHAPE, torch.float16)
    gptq, ct = packed(Gptq(), grid, encoded), packed(CompressedTensors(), grid, encoded)
    assert torch.equal(ct["weight_packed"], gptq["qweight"].t())
    assert torch.equal(ct["weight_scale"], gptq["scales"].t())


@pytest.mark.parametrize("grid", [g for g in GPTQ_GRIDS if g.bits in (4, 8)], ids=case_name)
def test_gptq_zero_points_are_those_of_compressed_tensors_less_one(grid: IntGrid) -> None:
    asymmetric = IntGrid(bits=grid.bits, group_size=grid.group_size, symmetric=False)
    encoded = encode(asymmetric, SHAPE, torch.float16)
    encoded.params["zero_point"].fill_(grid.middle - 1)
    theirs = packed(CompressedTensors(), asymmetric, encoded)["weight_zero_point"]
    ours = packed(Gptq(), grid, encode(grid, SHAPE, torch.float16))["qzeros"]
    assert torch.equal(ours.t(), theirs)


@pytest.mark.parametrize("grid", GPTQ_GRIDS, ids=case_name)
def test_gptqmodel_decodes_the_same_bits(grid: IntGrid) -> None:
    pytest.importorskip("gptqmodel", reason="GPTQModel is not installed")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # type: ignore[import-not-found]
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module  # type: ignore[import-not-found]

    encoded = encode(grid, SHAPE, torch.float16)
    layer = TorchLinear(grid.bits, grid.group_size or -1, True, False, SHAPE[1], SHAPE[0], pack_dtype=torch.int32)
    for name, tensor in packed(Gptq(), grid, encoded).items():
        buffer = getattr(layer, name)
        assert (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype)
        buffer.copy_(tensor)
    convert_gptq_v1_to_v2_format_module(layer, grid.bits, torch.int32)
    layer.optimize = lambda *_, **__: None  # no torch.compile
    layer.post_init()
    assert torch.equal(layer.dequantize_weight().t(), encoded.dequantize())


# Refusals, configs, runtimes


def refusals(name: str, *specs: Spec, facts: Facts = FACTS) -> list[str]:
    return CONTAINERS.get(name)().refusals(specs, facts)


def expert(grid: Grid, name: str = "layers.0.mlp.experts.0.up_proj") -> Spec:
    return spec_of(grid, name, "expert")


def test_what_fits_is_not_refused() -> None:
    assert not refusals("compressed-tensors", spec_of(IntGrid(bits=3)), spec_of(IntGrid(symmetric=False), "b"))
    assert not refusals("compressed-tensors", expert(IntGrid()), spec_of(IntGrid(), "embed", "embedding"))
    assert not refusals("gptq", spec_of(IntGrid(group_size=32)), spec_of(IntGrid(group_size=32), "b", "conv1d"))
    assert not refusals("bitsandbytes", spec_of(Nf4Grid()), spec_of(Nf4Grid(32), "b", "conv1d"))
    assert not refusals("dense", spec_of(Nf4Grid()), spec_of(IntGrid(), "e", "embedding"), expert(IntGrid(bits=3)))


REFUSED: list[tuple[str, list[Spec], str]] = [
    (
        "compressed-tensors",
        [spec_of(Nf4Grid())],
        "compressed-tensors cannot hold m on grid Nf4Grid; it holds IntGrid only",
    ),
    (
        "compressed-tensors",
        [spec_of(IntGrid(), "h.0.c_fc", "conv1d")],
        "compressed-tensors readers load Linear modules only and h.0.c_fc is a Conv1D; use --format dense or gptq",
    ),
    (
        "compressed-tensors",
        [spec_of(IntGrid()), spec_of(IntGrid(bits=8), "embed", "embedding")],
        "the packed embedding embed loads with dequantize=True only, which takes one bits and group_size for the "
        "whole model; leave it out of --targets",
    ),
    (
        "compressed-tensors",
        [expert(IntGrid(symmetric=False))],
        "no compressed-tensors reader loads asymmetric routed experts (layers.0.mlp.experts.0.up_proj); "
        "drop --asymmetric",
    ),
    ("gptq", [spec_of(Nf4Grid())], "gptq cannot hold m on grid Nf4Grid; it holds IntGrid only"),
    (
        "gptq",
        [spec_of(IntGrid(), "embed", "embedding")],
        "gptq holds linear layers only, not the embedding embed; leave it out of --targets",
    ),
    (
        "gptq",
        [spec_of(IntGrid(symmetric=False))],
        "gptq v1 cannot store asymmetric zero points; drop --asymmetric or use --format compressed-tensors",
    ),
    ("gptq", [spec_of(IntGrid(bits=5))], "gptq takes bits 2, 3, 4 or 8, not 5; use --format compressed-tensors"),
    (
        "gptq",
        [spec_of(IntGrid(group_size=48))],
        "gptq takes a group_size of 16, 32, 64, 128, 256, 512, 1024 or per channel, not 48",
    ),
    (
        "gptq",
        [Spec(target("m", (64, 172), torch.float32), IntGrid(group_size=None))],
        "gptq needs dimensions divisible by 32 and m is 64 x 172; use --format compressed-tensors",
    ),
    (
        "gptq",
        [spec_of(IntGrid(group_size=32)), spec_of(IntGrid(bits=8, group_size=32), "b")],
        "gptq holds one bits and group_size for the whole model; use --format compressed-tensors",
    ),
    (
        "bitsandbytes",
        [spec_of(IntGrid())],
        "bitsandbytes cannot hold m on grid IntGrid; it holds Nf4Grid only; add -O grid=nf4 --group-size 64",
    ),
    (
        "bitsandbytes",
        [spec_of(Nf4Grid(), "embed", "embedding")],
        "bitsandbytes' reader loads linear layers only and embed is an embedding",
    ),
    (
        "bitsandbytes",
        [expert(Nf4Grid())],
        "bitsandbytes' reader loads linear layers only and layers.0.mlp.experts.0.up_proj is a slice of fused experts",
    ),
    (
        "bitsandbytes",
        [spec_of(Nf4Grid(48))],
        "bitsandbytes takes a group_size of 32, 64, 128, 256, 512, 1024, 2048, 4096, not 48",
    ),
]


@pytest.mark.parametrize(("name", "specs", "line"), REFUSED, ids=[f"{r[0]}-{i}" for i, r in enumerate(REFUSED)])
def test_refusals_in_one_line(name: str, specs: list[Spec], line: str) -> None:
    assert refusals(name, *specs) == [line]


def test_bitsandbytes_refuses_what_transformers_keeps_in_float32() -> None:
    facts = Facts(torch.bfloat16, keep_float32=("wo",))
    line = "transformers keeps block.0.wo in float32 and does not load it packed; add it to --ignore"
    assert refusals("bitsandbytes", spec_of(Nf4Grid(), "block.0.wo"), facts=facts) == [line]
    assert not refusals("bitsandbytes", spec_of(Nf4Grid(), "block.0.wi"), facts=facts)


def config_targets(*specs: Spec) -> list[list[str]]:
    config = CompressedTensors().config(specs, FACTS)
    return [group["targets"] for group in config["config_groups"].values()]


def test_compressed_tensors_groups_name_their_modules() -> None:
    four, eight = IntGrid(group_size=32), IntGrid(bits=8, group_size=32)
    assert config_targets(spec_of(four, "a"), expert(four)) == [["Linear"]]
    assert config_targets(spec_of(four, "a"), spec_of(four, "e", "embedding")) == [["Linear", "e"]]
    assert config_targets(spec_of(eight, "b"), spec_of(four, "a")) == [["a"], ["b"]]
    assert config_targets(spec_of(four, "a"), expert(eight, "x.experts.0.w1")) == [["a"], [EXPERTS]]
    both = config_targets(expert(four, "x.experts.0.w1"), expert(eight, "x.experts.0.w2"))
    assert both == [["x.experts.0.w1"], ["x.experts.0.w2"]]


FLAG = "yes, with CompressedTensorsConfig(dequantize=True)"
FOUR, EIGHT = IntGrid(group_size=32), IntGrid(bits=8, group_size=32)
ASYMMETRIC = IntGrid(group_size=32, symmetric=False)
LOADERS: list[tuple[str, list[Spec], Facts, str]] = [
    ("symmetric", [spec_of(FOUR)], FACTS, "yes"),
    ("3 bit", [spec_of(IntGrid(bits=3))], FACTS, "yes, compressed-tensors >= 0.18"),
    ("asymmetric", [spec_of(ASYMMETRIC)], FACTS, FLAG),
    ("embedding", [spec_of(FOUR), spec_of(FOUR, "e", "embedding")], FACTS, FLAG),
    ("T5", [spec_of(FOUR)], Facts(torch.bfloat16, initializes_by_name=True), FLAG),
    ("mixed", [spec_of(FOUR), spec_of(EIGHT, "b")], FACTS, "yes, without dequantize=True"),
    ("experts", [spec_of(EIGHT), expert(FOUR)], Facts(torch.bfloat16, moe=True), "yes"),
    (
        "mixed asymmetric",
        [spec_of(FOUR), spec_of(ASYMMETRIC, "b")],
        FACTS,
        "no: an asymmetric scheme needs dequantize=True, which takes one scheme only",
    ),
    (
        "raw experts",
        [spec_of(FOUR)],
        Facts(torch.bfloat16, raw_linears=("x.experts.0.w1",), moe=True),
        "no: it loads routed experts only when every one is packed, and x.experts.0.w1 is not",
    ),
    (
        "experts of two kinds",
        [expert(FOUR, "x.experts.0.w1"), expert(EIGHT, "x.experts.0.w2")],
        FACTS,
        "no: it takes one scheme for all routed experts",
    ),
]


@pytest.mark.parametrize(("specs", "facts", "line"), [c[1:] for c in LOADERS], ids=[c[0] for c in LOADERS])
def test_transformers_flag_is_told(specs: list[Spec], facts: Facts, line: str) -> None:
    assert CompressedTensors().runtimes(specs, facts)["transformers"] == line
