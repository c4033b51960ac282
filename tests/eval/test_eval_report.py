"""`evaluate` on folders: the report, its forms, and every refusal with its exact line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, byte_tokenizer, corpus

from llmc.errors import LlmcError
from llmc.eval.evaluation import evaluate
from llmc.eval.measures.tail import QUANTILES, binned
from llmc.eval.reports.intervals import paired_intervals
from llmc.eval.reports.report import EvalReport
from llmc.models.open import open_model
from llmc.results import size

MODELS = os.environ.get("LLMC_MODELS")
DATA = Path(os.environ.get("LLMC_DATA") or Path(MODELS or ".").parent / "data")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a damaged copy of it and a text."""
    place = tmp_path_factory.mktemp("eval")
    build("llama", place / "original")
    shutil.copytree(place / "original", place / "damaged")
    tensors = load_file(place / "damaged" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 0.5
    save_file(tensors, place / "damaged" / "model.safetensors", metadata={"format": "pt"})
    corpus(place, words=600)
    return place


@pytest.fixture(scope="module")
def report(place: Path) -> EvalReport:
    return evaluate(
        place / "damaged",
        text=place / "corpus.txt",
        against=place / "original",
        context=64,
        stride=32,
        max_tokens=1000,
        prompt="the old river",
    )


def test_json_has_the_contract_and_the_conditions(place: Path, report: EvalReport) -> None:
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["perplexity"] > 1 and plain["kl"] > 0 and 0 < plain["top1_agreement"] < 1
    assert plain["perplexity_ratio"] == pytest.approx(plain["perplexity"] / plain["original_perplexity"])
    assert plain["weight_bytes"] == (place / "damaged" / "model.safetensors").stat().st_size
    assert plain["bits_per_weight"] == plain["original_bits_per_weight"] == 16
    assert plain["model_bits_per_weight"] == 16
    assert (plain["context"], plain["stride"], plain["tokens"], plain["dtype"]) == (64, 32, 999, "float32")
    assert (plain["model"], plain["against"]) == ("damaged", "original")
    text = (place / "corpus.txt").read_bytes()
    tokenizer = (place / "original" / "tokenizer.json").read_bytes()
    assert plain["text"] == {"name": "corpus.txt", "sha256": hashlib.sha256(text).hexdigest()}
    assert plain["tokenizer"]["sha256"] == hashlib.sha256(tokenizer).hexdigest()
    figures = {"perplexity", "bits_per_byte", "perplexity_ratio", "kl", "kl_median", "kl_p99", "top1_agreement"}
    assert set(plain["intervals"]) == figures
    for name, (low, high) in plain["intervals"].items():
        assert low < plain[name] < high
    assert str(place) not in json.dumps(plain)


def test_the_tail_is_that_of_all_tokens(report: EvalReport) -> None:
    every, sums = report.windows.token_kl, report.windows.kl
    assert every is not None and sums is not None
    assert every.shape == (999,) and every.sum() == pytest.approx(sums.sum(), rel=1e-5)
    ordered = np.sort(every)
    assert (report.kl_median, report.kl_p99) == (ordered[499], ordered[989])  # the 500th and the 990th of 999
    kl = sums / report.windows.tokens
    assert [place["kl"] for place in report.worst] == sorted(kl, reverse=True)[:5]
    assert all(place["end"] - place["first"] in (32, 39, 63) and place["text"] for place in report.worst)


def test_intervals_of_quantiles_are_those_of_drawn_tokens() -> None:
    """Against a bootstrap that sorts all tokens of each draw."""
    generator = np.random.default_rng(1)
    tokens = np.full(40, 50.0)
    token_kl = (generator.lognormal(0, 1, (40, 1)) * generator.lognormal(0, 1, (40, 50))).astype(np.float32)
    counts, figures = binned(token_kl.reshape(-1), tokens)
    found = paired_intervals(counts, figures, resamples=2000)
    drawn = np.random.default_rng(0).integers(40, size=(2000, 40))  # the same draws
    for name, share in QUANTILES.items():
        exact = np.quantile(token_kl[drawn].reshape(2000, -1), share, axis=1, method="inverted_cdf")
        assert found[name] == pytest.approx(tuple(np.quantile(exact, [0.025, 0.975])), rel=0.02)


def test_figures_are_those_of_the_window_sums(report: EvalReport) -> None:
    sums = report.windows
    assert sums.kl is not None
    assert len(sums.tokens) == 31  # starts 0, 32, ..., 960: the last one reaches the end
    assert report.kl == pytest.approx(sums.kl.sum() / 999)
    assert report.perplexity == pytest.approx(float(torch.tensor(sums.nll.sum() / 999).exp()))


def test_the_same_call_gives_the_same_report(place: Path, report: EvalReport) -> None:
    again = evaluate(
        str(place / "damaged"),
        text=str(place / "corpus.txt"),
        against=str(place / "original"),
        context=64,
        stride=32,
        max_tokens=1000,
        prompt="the old river",
    )
    assert again == report


def test_samples_are_greedy_continuations(place: Path, report: EvalReport) -> None:
    (sample,) = report.samples
    assert sample.prompt == "the old river"
    for name, text in (("damaged", sample.compressed), ("original", sample.original)):
        model, tokenizer = open_model(place / name)
        ids = tokenizer("the old river").input_ids
        end = model.generation_config.eos_token_id
        start = len(ids)
        while len(ids) < start + 64 and ids[-1] != end:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_without_an_original(place: Path, report: EvalReport) -> None:
    alone = evaluate(place / "damaged", text=place / "corpus.txt", context=64, stride=32, max_tokens=1000)
    assert alone.perplexity == pytest.approx(report.perplexity, rel=1e-6)
    assert (alone.kl, alone.top1_agreement, alone.perplexity_ratio, alone.original_perplexity) == (None,) * 4
    assert set(alone.intervals) == {"perplexity", "bits_per_byte"}
    columns, rows = alone.table_rows()
    assert columns == ("", "damaged")
    assert [row[0] for row in rows] == ["perplexity", "weights", "bits/weight", "bits/weight, model"]


def test_a_model_against_itself(place: Path) -> None:
    same = evaluate(
        place / "original", text=place / "corpus.txt", against=place / "original", context=64, stride=64, max_tokens=500
    )
    assert (same.kl, same.top1_agreement, same.perplexity_ratio) == (0, 1, 1)
    assert same.intervals["kl"] == (0, 0)


def test_markdown_and_table(report: EvalReport) -> None:
    fixed = replace(
        report,
        perplexity=12.3456789,
        original_perplexity=12.0,
        perplexity_ratio=1.0288,
        kl=0.01234,
        top1_agreement=0.9,
        weight_bytes=1234567,
        bits_per_weight=4.125,
        intervals={"kl": (0.012, 0.013)},
    )
    lines = fixed.to_markdown().splitlines()
    assert lines[:4] == [
        "|  | original (original) | damaged |",
        "| --- | ---: | ---: |",
        "| perplexity | 12 | 12.346 |",
        "| perplexity ratio | 1 | 1.0288 |",
    ]
    assert "| KL divergence, nats | 0 | 0.01234 [0.012, 0.013] |" in lines
    assert "| bits/weight | 16 | 4.125 |" in lines
    assert "Intervals: 95 %, paired bootstrap over 31 windows." in lines
    assert any(line.startswith("- original: `") for line in lines)
    table = fixed.table()
    assert table.columns == ("", "original (original)", "damaged")
    assert ("weights", size(report.original_weight_bytes or 0), "1.23 MB (1,234,567)") in table.rows
    assert table.title.startswith("corpus.txt, 999 scored tokens, context 64, stride 32, tokenized by ")


def test_a_perplexity_beyond_floats_is_null_in_json(report: EvalReport) -> None:
    assert replace(report, perplexity=float("inf")).to_json()["perplexity"] is None


def test_an_opener_takes_the_place_of_the_reader(place: Path, report: EvalReport) -> None:
    opened: list[Path] = []

    def opener(folder: Path) -> tuple[Any, Any]:
        opened.append(folder)
        return open_model(place / "original" if folder.name == "damaged" else place / "damaged")

    swapped = evaluate(
        place / "damaged",
        text=place / "corpus.txt",
        against=place / "original",
        context=64,
        stride=32,
        max_tokens=1000,
        opener=opener,
    )
    assert opened == [place / "original", place / "damaged"]
    assert swapped.perplexity == pytest.approx(report.original_perplexity)


def test_progress_ends_complete(place: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    evaluate(
        place / "original",
        text=place / "corpus.txt",
        context=64,
        stride=64,
        max_tokens=300,
        progress=lambda *args: seen.append(args),
    )
    assert seen[-1] == ("evaluate original", 300, 300)


def refusal(*args: Any, code: int = 2, **options: Any) -> str:
    with pytest.raises(LlmcError) as caught:
        evaluate(*args, **options)
    assert caught.value.exit_code == code
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"context": 1}, "--context: context 1 leaves no token to score; use 2 or more"),
        (
            {"stride": 0},
            "--stride: stride 0 is not between 1 and the context 64; a stride beyond the context would skip tokens",
        ),
        (
            {"stride": 65},
            "--stride: stride 65 is not between 1 and the context 64; a stride beyond the context would skip tokens",
        ),
        (
            {"context": 129},
            "--context: context 129 exceeds the 128 positions of original; use at most 128",
        ),
        ({"max_tokens": 1}, "--max-tokens: max_tokens 1 leaves no token to score; use 2 or more"),
        ({"dtype": "int8"}, "--dtype: unknown dtype 'int8'; choose one of: float32, bfloat16, float16"),
        ({"device": "abacus"}, "--device: unknown device 'abacus'; use cpu, cuda or cuda:1"),
        ({"prompt": ""}, "--prompt: the prompt is empty"),
        (
            {"prompt": "a" * 65},
            "--prompt: a prompt of 65 tokens and 64 new ones exceed the model's 128 positions; shorten it to 64 tokens",
        ),
    ],
)
def test_options_out_of_range(place: Path, options: dict[str, Any], line: str) -> None:
    given: dict[str, Any] = {"context": 64, "stride": 64, "max_tokens": 200, **options}
    assert refusal(place / "original", text=place / "corpus.txt", **given) == line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(place: Path) -> None:
    line = "--device: device 'cuda' is not available here; use cpu"
    assert refusal(place / "original", text=place / "corpus.txt", device="cuda") == line


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read the text: No such file or directory"),
        (b"", "the text is empty; give a text of some thousand words"),
        (b" \n\t", "the text is empty; give a text of some thousand words"),
        (b"abc\xff", "not UTF-8 at byte 3; convert it to UTF-8"),
        (b"a", "the text has 1 token, and 2 are needed"),
    ],
)
def test_texts_that_cannot_be_used(place: Path, tmp_path: Path, content: bytes | None, problem: str) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert refusal(place / "original", text=text, context=64, stride=64) == f"{text}: {problem}"


def test_a_text_that_is_a_folder(place: Path) -> None:
    assert refusal(place / "original", text=place) == f"{place}: cannot read the text: Is a directory"


def test_tokenizers_that_differ(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "damaged", tmp_path / "other")
    tokenizer = byte_tokenizer()
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = vocabulary["model"]["vocab"]
    ids["e"], ids["z"] = ids["z"], ids["e"]
    saved = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    saved["model"]["vocab"] = ids
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(saved))
    text = tmp_path / "text.txt"
    text.write_text("a river of stone")
    assert refusal(tmp_path / "other", text=text, against=place / "original", context=8, stride=8) == (
        f"{text}: the tokenizers of other and original differ: token 5 of the text is not the same; "
        "compare a model with the one it was made from, leave out --against, or use --bits-per-byte"
    )


def test_vocabularies_of_different_size(place: Path, tmp_path: Path) -> None:
    build("llama", tmp_path / "wide", vocab_size=320)
    message = refusal(tmp_path / "wide", text=place / "corpus.txt", against=place / "original", context=64, stride=64)
    assert message == (
        "wide: its vocabulary has 320 tokens and that of original 256; compare it with the model it was made from"
    )


def test_token_ids_beyond_the_embedding(place: Path, tmp_path: Path) -> None:
    build("llama", tmp_path / "narrow", vocab_size=60)
    assert refusal(tmp_path / "narrow", text=place / "corpus.txt", context=64, stride=64, max_tokens=200) == (
        "narrow: its tokenizer makes token id 220, and the model has 60 tokens; "
        "use the tokenizer that the model was trained with"
    )


def test_weights_that_are_not_numbers(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "original", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    message = refusal(tmp_path / "broken", text=place / "corpus.txt", against=place / "original", context=64, stride=64)
    assert message.startswith("broken: its logits give no finite loss in window 0 (tokens 0 to 63); ")


def test_a_folder_that_does_not_exist(place: Path) -> None:
    message = refusal(place / "nowhere", text=place / "corpus.txt")
    assert message == f"{place / 'nowhere'}: no such folder; give a model folder or a Hub id like user/name"


@pytest.mark.skipif(not MODELS, reason="LLMC_MODELS names no folder of trained models")
def test_perplexity_of_a_trained_model_is_the_published_one() -> None:
    report = evaluate(
        Path(str(MODELS)) / "ref-7m",
        text=DATA / "novels-dev.txt",
        context=256,
        stride=256,
        max_tokens=65_536,
        raw_text=True,  # it was published with its byte order mark
    )
    assert report.tokens == 65_280
    assert report.perplexity == pytest.approx(40.88, abs=0.02)
    assert report.bits_per_weight == 16
