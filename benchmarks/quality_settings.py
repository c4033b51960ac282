"""Which settings `quality_per_byte.py` measures: ours, and those of every peer. To add one, add a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OURS = "llmc"


@dataclass(frozen=True)
class Setting:
    """One point of the plot.

    Attributes:
        tool: `llmc`, or a key of `PEERS`.
        line: settings of one line of the plot differ in size alone.
        name: tells it from the others of its line.
        options: for the tool's driver; of ours `words`, the command line after `llmc quantize MODEL -o OUT`, or
            `stages`, those of a recipe for `llmc run`.
    """

    tool: str
    line: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.line} {self.name}"

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.label.lower()).strip("-")


@dataclass(frozen=True)
class Peer:
    """A tool in an environment of its own: the module that shows it is there, and the driver in `peers/`."""

    module: str
    driver: str
    settings: tuple[Setting, ...]


def ours(line: str, name: str, *words: str) -> Setting:
    """`llmc quantize MODEL -o OUT WORDS`; the calibration set is added to the words."""
    return Setting(OURS, line, name, {"words": words})


def our_recipe(line: str, name: str, *stages: Mapping[str, Any]) -> Setting:
    """`llmc run` of a recipe with these stages; model and calibration set are added."""
    return Setting(OURS, line, name, {"stages": stages})


def _act_order(bits: int) -> Setting:
    return ours("llmc gptq act-order", f"W{bits} g128", "--method", "gptq", "--bits", str(bits), "--act-order")


def _with_embedding(bits: int) -> Setting:
    blocks = {"method": "gptq", "bits": bits, "group_size": 128, "act_order": True}
    embedding = {"method": "rtn", "bits": bits, "group_size": 128, "targets": ["model.embed_tokens"]}
    return our_recipe("llmc gptq act-order, rtn embedding", f"W{bits} g128", blocks, embedding)


SIZES = (2.06, 2.39, 2.83, 3.12, 3.58, 4.22, 4.65, 5.32, 6.04, 6.88)
"""Megabytes of all weight files, most of them just below what a peer's take of ref-7m."""


def _sized(megabytes: float) -> Setting:
    return ours("llmc trellis, whole file", f"{megabytes} MB", "--size", str(round(megabytes * 1e6)))


OUR_SETTINGS = (
    *(ours("llmc gptq", f"W{b} g128", "--method", "gptq", "--bits", str(b)) for b in range(2, 7)),
    *(ours("llmc trellis", f"{b} bits", "--bits-per-weight", str(b)) for b in (2, 2.5, 3, 4, 5, 6)),
    *map(_sized, SIZES),
    *map(_act_order, range(2, 7)),
    *map(_with_embedding, range(3, 7)),  # compressed-tensors wants one width with a packed embedding
)

LEADS = ("llmc trellis, whole file", "llmc trellis", "llmc gptq act-order", "llmc gptq act-order, rtn embedding")
"""Lines of ours that every peer is compared with."""


def _gptq(tool: str, line: str, widths: tuple[int, ...], act_order: bool) -> tuple[Setting, ...]:
    dtype = "bfloat16" if tool == "llm-compressor" else "float32"  # that one would keep float32 scales as well
    shared = {"method": "gptq", "group_size": 128, "damping": 0.01, "dtype": dtype, "imports": None}
    return tuple(Setting(tool, line, f"W{b} g128", {**shared, "bits": b, "act_order": act_order}) for b in widths)


_LLM_COMPRESSOR = (
    *_gptq("llm-compressor", "llm-compressor GPTQ", (2, 3, 4, 6), False),
    *_gptq("llm-compressor", "llm-compressor GPTQ act-order", (2, 3, 4, 6), True),
)

_GPTQMODEL = (
    *_gptq("gptqmodel", "GPTQModel", (2, 3, 4, 8), False),
    *_gptq("gptqmodel", "GPTQModel act-order", (2, 3, 4, 8), True),
)

_K_QUANTS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
_I_QUANTS = ("IQ2_XXS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_S", "IQ4_XS")


def _llama_cpp(line: str, types: tuple[str, ...], embedding: str | None) -> tuple[Setting, ...]:
    return tuple(Setting("llama.cpp", line, name, {"type": name, "embedding": embedding}) for name in types)


_LLAMA_CPP = (
    *_llama_cpp("llama.cpp K-quants imatrix", _K_QUANTS, None),
    *_llama_cpp("llama.cpp K-quants imatrix, bf16 embedding", ("Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K"), "BF16"),
    *_llama_cpp("llama.cpp I-quants imatrix", _I_QUANTS, None),
    *_llama_cpp("llama.cpp I-quants imatrix, bf16 embedding", ("IQ2_XXS", "IQ2_M", "IQ3_S", "IQ4_XS"), "BF16"),
)

_HQQ = tuple(Setting("hqq", "HQQ", f"W{b} g64", {"bits": b, "group_size": 64}) for b in (2, 3, 4, 6, 8))

_LIGHT = {"iters": 50, "lr": 5e-3}  # auto-round-light, the tool's quick recipe
_AUTO_ROUND = tuple(
    Setting("auto-round", "AutoRound", f"W{b} g128", {"bits": b, "group_size": 128, "dtype": "float32", **_LIGHT})
    for b in (2, 3, 4)
)


def _nncodec(line: str, embedding: bool) -> tuple[Setting, ...]:
    steps = (-20, -24, -28, -32)  # about 2, 3, 4 and 5 bits
    return tuple(Setting("nncodec", line, f"qp {qp}", {"qp": qp, "embedding": embedding}) for qp in steps)


_NNCODEC = (*_nncodec("NNCodec", True), *_nncodec("NNCodec, bf16 embedding", False))

PEERS = {
    "llm-compressor": Peer("llmcompressor", "llm_compressor.py", _LLM_COMPRESSOR),
    "gptqmodel": Peer("gptqmodel", "gptq_model.py", _GPTQMODEL),
    "llama.cpp": Peer("llama_cpp", "llama_cpp_model.py", _LLAMA_CPP),
    "hqq": Peer("hqq", "hqq_model.py", _HQQ),
    "auto-round": Peer("auto_round", "auto_round_model.py", _AUTO_ROUND),
    "nncodec": Peer("nncodec", "nncodec_model.py", _NNCODEC),
}
