"""Judge every setting by llmc's evaluation on the same tokens, and compare ours with the peers window by window."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import Difference, difference_of, set_threads
from quality_settings import LEADS, OURS, Setting

import llmc

FULL_EMBEDDING = 16
"""Bits: with fewer, KL is not of the block matrices alone."""


@dataclass(frozen=True)
class Judgement:
    """One setting on one text.

    Attributes:
        kl, perplexity: with their 95 % bootstrap intervals over windows.
        tokens, kl_sums: of each window: scored tokens, and the sum of KL over them, nats.
    """

    kl: float
    kl_interval: tuple[float, float]
    perplexity: float
    perplexity_interval: tuple[float, float]
    original_perplexity: float
    top1_agreement: float
    tokens: tuple[float, ...]
    kl_sums: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One setting: what it weighs, and how good it is.

    Attributes:
        result: `weight_bytes`, `block_bytes`, `embedding_bytes`, `versions`, `notes`, `cpu_s`; or `failure`.
        own_kl: mean KL(the tool's own forward || the dense folder as judged), nats; None of ours, judged as it is.
        judgements: name of the text -> figures.
    """

    setting: Setting
    result: Mapping[str, Any]
    block_weights: int
    embedding_weights: int
    own_kl: float | None = None
    judgements: Mapping[str, Judgement] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return "failure" in self.result

    @property
    def bits_per_weight(self) -> float:
        """Of the block matrices, params included."""
        return 8 * self.result["block_bytes"] / self.block_weights

    @property
    def embedding_bits(self) -> float:
        """Per weight of embedding and head, a tied one once."""
        return 8 * self.result["embedding_bytes"] / self.embedding_weights

    def to_json(self) -> dict[str, Any]:
        judged = {text: vars(judgement) for text, judgement in self.judgements.items()}
        return {"label": self.setting.label, **self.result, "own_kl": self.own_kl, "judged": judged}


@dataclass(frozen=True)
class Pair:
    """A peer and what ours does in at most the same bytes: KL of ours minus KL of the peer, by text."""

    peer: Row
    ours: Row
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Judge:
    """Judges settings; figures stay beside what they are of, and are taken from there when nothing changed."""

    options: argparse.Namespace
    block_weights: int
    embedding_weights: int

    def row(self, setting: Setting, result: Mapping[str, Any], folder: Path) -> Row:
        """The setting whose outputs are in `folder`."""
        weights = self.block_weights, self.embedding_weights
        if "failure" in result:
            return Row(setting, result, *weights)
        judgements, own = self._all_texts(folder, result["key"], setting.tool == OURS)
        return Row(setting, result, *weights, own, judgements)

    def _all_texts(self, folder: Path, key: str, ours: bool) -> tuple[dict[str, Judgement], float | None]:
        """Figures by name of the text, and how far the tool's own forward is from them, nats."""
        model = folder / ("own" if ours else "dense")
        file = folder / "judged.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if stored.get("key") != key:
            own = None if ours else own_forward_kl(folder, Path(self.options.cache) / "tokens.json")
            stored = {"key": key, "own_kl": own, "texts": {}}
        found = {}
        for text in self.options.text:
            conditions = f"{hashlib.sha256(Path(text).read_bytes()).hexdigest()} {self.options.max_tokens}"
            if conditions not in stored["texts"]:
                stored["texts"][conditions] = self._one_text(model, text)
                file.write_text(json.dumps(stored), encoding="utf-8")
            found[Path(text).name] = Judgement(**stored["texts"][conditions])
        return found, stored["own_kl"]

    def _one_text(self, model: Path, text: str) -> dict[str, Any]:
        options = self.options
        originals = Path(options.cache) / "originals"
        report = llmc.evaluate(model, text=text, against=options.model, max_tokens=options.max_tokens, cache=originals)
        return {
            "kl": report.kl,
            "kl_interval": report.intervals["kl"],
            "perplexity": report.perplexity,
            "perplexity_interval": report.intervals["perplexity"],
            "original_perplexity": report.original_perplexity,
            "top1_agreement": report.top1_agreement,
            "tokens": report.windows.tokens.tolist(),
            "kl_sums": [] if report.windows.kl is None else report.windows.kl.tolist(),
        }


def new_judge(options: argparse.Namespace) -> Judge:
    """Of `options.model`, with `options.threads`."""
    set_threads(options.threads)
    return Judge(options, *weights_of(Path(options.model)))


def own_forward_kl(folder: Path, tokens: Path) -> float:
    """Mean KL(the tool's own forward || the dense folder) over the checked tokens, nats."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    own = load_file(folder / "forward.safetensors")["logits"]  # [checked, vocabulary]
    ids = torch.tensor([json.loads(tokens.read_text(encoding="utf-8"))[0][: len(own)]])
    model = AutoModelForCausalLM.from_pretrained(str(folder / "dense"), dtype=torch.float32)
    with torch.no_grad():
        mine = model(ids).logits[0]
    p, q = own.double().log_softmax(-1), mine.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def weights_of(model: Path) -> tuple[int, int]:
    """Number of weights of the block matrices, and of embedding and head (a tied one once)."""
    from peers.dense import BLOCK, EMBEDDING

    from llmc.files.safetensors import read_folder

    shapes = {name: int(np.prod(entry.shape)) for name, entry in read_folder(model).items()}
    blocks, embedding = (sum(n for name, n in shapes.items() if kind.search(name)) for kind in (BLOCK, EMBEDDING))
    return blocks, embedding


def comparable(rows: Sequence[Row], size: str) -> list[Row]:
    """Of all that did not fail, those whose KL is of what `size` counts."""
    return [r for r in rows if not r.failed and (size == "weight_bytes" or r.embedding_bits >= FULL_EMBEDDING)]


def pairs(rows: Sequence[Row], size: str) -> Iterator[Pair]:
    """Every peer beside the largest of each leading line of ours in at most its bytes.

    The largest, not the best: that is known before anything is judged.

    Args:
        size: `weight_bytes`, or `block_bytes`: then only of rows with the embedding as it was.
    """
    fit = comparable(rows, size)
    for line in LEADS:
        mine = [row for row in fit if row.setting.line == line]
        for peer in fit:
            smaller = [row for row in mine if row.result[size] <= peer.result[size]]
            if peer.setting.tool == OURS or not smaller:
                continue
            ours = max(smaller, key=lambda row: row.result[size])
            yield Pair(peer, ours, {text: _difference(ours, peer, text) for text in peer.judgements})


def _difference(ours: Row, peer: Row, text: str) -> Difference:
    a, b = ours.judgements[text], peer.judgements[text]
    if a.tokens != b.tokens:
        raise ValueError(f"{ours.setting.label} and {peer.setting.label} were not judged on the same windows")
    return difference_of(np.array(a.tokens), np.array(a.kl_sums), np.array(b.kl_sums))
