"""Whole models through the official readers: what each container's `runtimes` promises of transformers holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from encodings_of import encode, target
from safetensors.torch import load_file, save_file

from llmc.encodings.encoded import Grid
from llmc.encodings.int_grid import IntGrid
from llmc.encodings.nf4_grid import Nf4Grid
from llmc.formats import CONTAINERS
from llmc.formats.container import Container, Facts, Spec

transformers = pytest.importorskip("transformers")

Pick = Callable[[str], Grid | None]
CLASSES = {
    "bert": "AutoModelForMaskedLM",
    "t5": "AutoModelForSeq2SeqLM",
    "whisper": "AutoModelForSpeechSeq2Seq",
}


@dataclass(frozen=True)
class Written:
    """A packed model, the same model dense, and what the container says of it."""

    packed: Path
    dense: Path
    architecture: str
    promise: str
    values: dict[str, torch.Tensor]


def write(folder: Path, architecture: str, container: Container, pick: Pick, dtype: torch.dtype) -> Written:
    """Build a tiny model, replace each matrix that `pick` names a grid for, and write it packed and dense."""
    source = tiny_models.build(architecture, folder / "packed", dtype=dtype)
    tensors = load_file(source / "model.safetensors")
    skeleton = skeleton_of(source, architecture)
    specs, stored, values = [], {}, {}
    for seed, (name, tensor) in enumerate(sorted(tensors.items())):
        module = name.removesuffix(".weight")
        grid = pick(module) if tensor.ndim == 2 and module != name else None
        if grid is None:
            stored[name] = tensor
            continue
        kind = kind_of(skeleton, module)
        rows, columns = tensor.shape[::-1] if kind == "conv1d" else tensor.shape
        spec = Spec(target(module, (rows, columns), dtype, kind), grid)
        encoded = encode(grid, (rows, columns), dtype, seed)
        specs.append(spec)
        stored |= container.pack(spec, encoded)
        decoded = encoded.dequantize(container.decoded_dtype(spec.target))
        values[name] = decoded.t().contiguous() if kind == "conv1d" else decoded
    facts = facts_of(skeleton, architecture, dtype, tensors, {s.target.name for s in specs})
    assert not container.refusals(specs, facts)
    shutil.copytree(source, folder / "dense")
    save(folder / "dense", tensors | values, None)
    save(source, stored, container.config(specs, facts))
    promise = container.runtimes(specs, facts)["transformers"]
    return Written(source, folder / "dense", architecture, promise, values)


def skeleton_of(source: Path, architecture: str) -> Any:
    config = transformers.AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        return getattr(transformers, CLASSES.get(architecture, "AutoModelForCausalLM")).from_config(config)


def kind_of(skeleton: Any, name: str) -> str:
    if ".experts." in name:
        return "expert"
    kinds = {torch.nn.Linear: "linear", torch.nn.Embedding: "embedding"}
    return kinds.get(type(skeleton.get_submodule(name)), "conv1d")


def facts_of(skeleton: Any, architecture: str, dtype: torch.dtype, tensors: Any, packed: set[str]) -> Facts:
    modules = dict(skeleton.named_modules())
    linears = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    disk = {name.removesuffix(".weight") for name, t in tensors.items() if name.endswith(".weight") and t.ndim == 2}
    disk = {name for name in disk if not isinstance(modules.get(name), torch.nn.Embedding)}
    return Facts(
        dtype,
        raw_linears=tuple(sorted((linears | disk) - packed)),
        moe=any(".experts." in name for name in disk),
        initializes_by_name=architecture == "t5",
        keep_float32=tuple(skeleton._keep_in_fp32_modules or ()),
    )


def save(folder: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any] | None) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


def load(folder: Path, architecture: str, **options: Any) -> Any:
    model_class = getattr(transformers, CLASSES.get(architecture, "AutoModelForCausalLM"))
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


@torch.no_grad()
def logits(model: Any, architecture: str) -> torch.Tensor:
    ids = torch.arange(1, 17).view(1, -1)
    if architecture == "whisper":
        sound = torch.randn(1, 16, 128, generator=torch.Generator().manual_seed(0)).to(model.dtype)
        return model(input_features=sound, decoder_input_ids=ids).logits
    return model(ids, **({"decoder_input_ids": ids} if architecture == "t5" else {})).logits


def loads(written: Written, **options: Any) -> bool:
    """transformers loads the folder without complaint and has every weight and logit of the dense model."""
    try:
        model = load(written.packed, written.architecture, **options)
        result = logits(model, written.architecture)  # decompresses
    except (RuntimeError, AttributeError, AssertionError):
        return False
    reference = load(written.dense, written.architecture)
    weights, expected = model.state_dict(), reference.state_dict()
    same = all(key in weights and torch.equal(weights[key], value) for key, value in expected.items())
    return same and torch.equal(result, logits(reference, written.architecture))


def by_name(rules: dict[str, Grid]) -> Pick:
    """The grid of the first rule whose key is part of the name."""
    return lambda name: next((grid for part, grid in rules.items() if part in name), None)


FOUR = IntGrid(bits=4, group_size=32)
EIGHT = IntGrid(bits=8, group_size=32)
THREE = IntGrid(bits=3, group_size=None)
ASYMMETRIC = IntGrid(bits=4, group_size=32, symmetric=False)

DEFAULT_ONLY, FLAG_ONLY, BOTH, NEITHER = (True, False), (False, True), (True, True), (False, False)
COMPRESSED: list[tuple[str, str, dict[str, Grid], tuple[bool, bool]]] = [
    ("4 bit, tied head", "llama", {"proj": FOUR}, BOTH),
    ("3 bit", "llama", {"proj": THREE}, BOTH),
    ("asymmetric", "llama", {"proj": ASYMMETRIC}, FLAG_ONLY),
    ("mixed bits", "llama", {"attn": EIGHT, "mlp": THREE}, DEFAULT_ONLY),
    ("untied head", "llama-untied", {"proj": FOUR, "lm_head": FOUR}, BOTH),
    ("embedding", "llama-untied", {"proj": FOUR, "embed_tokens": FOUR}, FLAG_ONLY),
    ("tied embedding", "llama", {"proj": FOUR, "embed_tokens": FOUR}, FLAG_ONLY),
    ("head named otherwise", "gpt-neox", {"layers": FOUR}, BOTH),
    ("tied decoder", "bert", {"encoder.layer": FOUR}, BOTH),
    *(("linear layers", name, {"layers": FOUR}, BOTH) for name in ("qwen3", "gemma", "mistral", "opt", "phi")),
    ("encoder-decoder", "whisper", {"fc": FOUR, "_proj": FOUR}, BOTH),
    ("initialized by name", "t5", {"Attention.q": FOUR, "Attention.k": FOUR, "Dense": FOUR}, FLAG_ONLY),
    ("experts", "mixtral", {"attn": FOUR, "experts": FOUR}, BOTH),
    ("experts of 3 bits", "qwen3-moe", {"attn": THREE, "experts": THREE}, BOTH),
    ("experts of their own scheme", "mixtral", {"attn": FOUR, "experts": EIGHT}, BOTH),
    ("experts of their own scheme", "qwen3-moe", {"attn": EIGHT, "experts": FOUR}, BOTH),
    ("raw experts", "mixtral", {"attn": FOUR}, NEITHER),
    ("some raw experts", "qwen3-moe", {"attn": FOUR, "up_proj": FOUR}, NEITHER),
    ("experts of two schemes", "mixtral", {"attn": FOUR, "w2": EIGHT, "experts": FOUR}, NEITHER),
]
PROMISES = {BOTH: "yes", DEFAULT_ONLY: "yes, without", FLAG_ONLY: "yes, with Compressed", NEITHER: "no: "}


@pytest.mark.parametrize(
    ("_label", "architecture", "rules", "truth"), COMPRESSED, ids=[f"{c[1]}-{c[0]}" for c in COMPRESSED]
)
def test_compressed_tensors(
    _label: str, architecture: str, rules: dict[str, Grid], truth: tuple[bool, bool], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    container = CONTAINERS.get("compressed-tensors")()
    written = write(tmp_path, architecture, container, by_name(rules), torch.bfloat16)
    flag = transformers.CompressedTensorsConfig(dequantize=True)
    assert (loads(written), loads(written, quantization_config=flag)) == truth
    assert written.promise.startswith(PROMISES[truth])
    assert truth != BOTH or "with" not in written.promise


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_compressed_tensors_in_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    container = CONTAINERS.get("compressed-tensors")()
    assert loads(write(tmp_path, "llama", container, by_name({"proj": THREE}), dtype))


BITSANDBYTES: list[tuple[str, dict[str, Grid], torch.dtype]] = [
    ("llama", {"proj": Nf4Grid(64)}, torch.bfloat16),
    ("llama", {"proj": Nf4Grid(64)}, torch.float16),
    ("llama", {"proj": Nf4Grid(64)}, torch.float32),
    ("llama-untied", {"attn": Nf4Grid(32), "mlp": Nf4Grid(64), "lm_head": Nf4Grid(64)}, torch.bfloat16),
    ("gpt2", {"c_": Nf4Grid(64)}, torch.bfloat16),
    ("bert", {"encoder.layer": Nf4Grid(64)}, torch.bfloat16),
    ("t5", {"Attention.q": Nf4Grid(64), "Dense.wi": Nf4Grid(64), "DenseReluDense.wi": Nf4Grid(64)}, torch.bfloat16),
    ("mixtral", {"attn": Nf4Grid(64)}, torch.bfloat16),
]


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """bitsandbytes' CPU decoder compiles anew for every shape; run it as it is written."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("architecture", "rules", "dtype"), BITSANDBYTES)
def test_bitsandbytes(architecture: str, rules: dict[str, Grid], dtype: torch.dtype, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    written = write(tmp_path, architecture, CONTAINERS.get("bitsandbytes")(), by_name(rules), dtype)
    model = load(written.packed, architecture)
    layers = {name: m for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert {f"{name}.weight" for name in layers} == set(written.values)
    for name, layer in layers.items():
        expected = written.values[f"{name}.weight"]
        decoded = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(decoded, expected.t() if architecture == "gpt2" else expected), name
    reference = logits(load(written.dense, architecture), architecture)
    in_brain = functional.has_avx512bf16()  # then it multiplies in bfloat16
    rounding = 0.01 * float(reference.abs().max()) if in_brain else 0.02
    assert torch.allclose(logits(model, architecture), reference, rtol=0.02, atol=rounding)
    assert written.promise == "yes, with bitsandbytes installed"


def test_gptq_folder_needs_optimum(tmp_path: Path) -> None:
    if transformers.utils.is_optimum_available():
        pytest.skip("optimum is installed")
    written = write(tmp_path, "llama", CONTAINERS.get("gptq")(), by_name({"proj": FOUR}), torch.bfloat16)
    assert written.promise == "yes, with optimum and gptqmodel installed"
    with pytest.raises(ImportError, match="optimum"):
        load(written.packed, "llama")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_dense_folder_is_an_ordinary_model(architecture: str, tmp_path: Path) -> None:
    rules = by_name({"proj": FOUR, "c_": FOUR, "experts": FOUR})
    assert loads(write(tmp_path, architecture, CONTAINERS.get("dense")(), rules, torch.bfloat16))
