"""Likelihoods of targets against a plain loop in float64, one pair at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build

import llmc
from llmc.errors import LlmcError
from llmc.eval.measures import metrics
from llmc.eval.measures import seq2seq as subject
from llmc.eval.measures.metrics import Scored
from llmc.eval.measures.seq2seq import open_seq2seq, score_pairs
from llmc.eval.tasks.text_pairs import TextPair

TEXTS = [("a lamp", "une lampe"), ("the old bridge over the river", "le vieux pont"), ("x", "y"), ("", "rien du tout")]
PAIRS = [TextPair(a or ".", b, f"t.jsonl:{i}") for i, (a, b) in enumerate(TEXTS, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("t5", tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return open_seq2seq(folder)[1]


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[Scored, Scored]:
    """A tiny T5 with noise on its weights, and as it was."""
    return noisy(open_seq2seq(folder)[0]), Scored("original", open_seq2seq(folder)[0])


def noisy(model: Any) -> Scored:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    return Scored("damaged", model)


def bart(seed: int) -> Scored:
    import transformers

    make: Any = transformers.BartConfig
    layers = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    widths = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    torch.manual_seed(seed)
    model: Any = transformers.BartForConditionalGeneration(make(vocab_size=256, **layers, **widths, **ends)).eval()
    with torch.no_grad():
        model.model.shared.weight.mul_(20)
    return Scored(f"bart{seed}", model)


def log_probabilities(model: Any, source: list[int], start: int, target: list[int]) -> list[np.ndarray]:
    """One more token of the target each time, `[vocab]` float64 after each."""
    found = []
    for count in range(len(target)):
        given = torch.tensor([[start, *target[:count]]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([source]), decoder_input_ids=given).logits[0, -1].double().numpy()
        found.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return found


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_sums_are_those_of_a_float64_loop(family: str, models: tuple[Scored, Scored], tokenizer: Any) -> None:
    candidate, original = models if family == "t5" else (bart(0), bart(1))
    start = {"t5": 0, "bart": 2}[family]
    seen: list[tuple[str, float, float]] = []
    sums = score_pairs(candidate, original, PAIRS, tokenizer, progress=lambda *a: seen.append(a))
    assert seen[-1] == ("evaluate", 4, 4)
    assert sums.kl is not None and sums.agree is not None and sums.original_nll is not None
    token_kl = []
    for i, pair in enumerate(PAIRS):
        source, target = (list(tokenizer(text)["input_ids"]) for text in (pair.first, pair.second))
        q, p = (log_probabilities(each.model, source, start, target) for each in (candidate, original))
        kl = [float((np.exp(a) * (a - b)).sum()) for a, b in zip(p, q, strict=True)]
        token_kl += kl
        assert sums.tokens[i] == len(target)
        assert sums.nll[i] == pytest.approx(-math.fsum(a[t] for a, t in zip(q, target, strict=True)), rel=1e-5)
        assert sums.original_nll[i] == pytest.approx(-math.fsum(a[t] for a, t in zip(p, target, strict=True)), rel=1e-5)
        assert sum(kl) > 1e-4 and sums.kl[i] == pytest.approx(sum(kl), rel=1e-3)
        assert sums.agree[i] == sum(a.argmax() == b.argmax() for a, b in zip(p, q, strict=True))
    assert sums.token_kl == pytest.approx(token_kl, rel=1e-2, abs=1e-5)


def test_the_loss_is_that_of_transformers(models: tuple[Scored, Scored], tokenizer: Any) -> None:
    sums = score_pairs(models[0], None, PAIRS, tokenizer)
    for i, pair in enumerate(PAIRS):
        ids, labels = (torch.tensor([tokenizer(text)["input_ids"]]) for text in (pair.first, pair.second))
        with torch.no_grad():
            loss = models[0].model(input_ids=ids, labels=labels).loss.item()
        assert sums.nll[i] / sums.tokens[i] == pytest.approx(loss, rel=1e-5)
    assert sums.kl is None and sums.token_kl is None


def test_sums_depend_neither_on_batches_nor_on_chunks(
    models: tuple[Scored, Scored], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_pairs(*models, PAIRS, tokenizer)
    monkeypatch.setattr(subject, "BATCH_TOKENS", 1)
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", {"cpu": 3 * 256})
    single = score_pairs(*models, PAIRS, tokenizer)
    for one, other in zip(vars(whole).values(), vars(single).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert [len(b) for b in subject._batches(subject._examples(models[0], PAIRS, tokenizer), 256)] == [1] * 4
    monkeypatch.setattr(subject, "BATCH_TOKENS", 60)
    batches = list(subject._batches(subject._examples(models[0], PAIRS, tokenizer), 256))
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3] and len(batches) == 2


def test_a_model_compared_with_itself_loses_nothing(models: tuple[Scored, Scored], tokenizer: Any) -> None:
    sums = score_pairs(models[1], models[1], PAIRS, tokenizer)
    assert sums.kl is not None and not sums.kl.any() and sums.agree is not None and (sums.agree == sums.tokens).all()


def test_compressed_folders_open_with_their_values(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    llmc.quantize(str(folder), tmp_path / "out", method="rtn", bits=4, group_size=16)
    llmc.export(tmp_path / "out", tmp_path / "dense", format="dense")
    both = [score_pairs(Scored("m", open_seq2seq(tmp_path / n)[0]), None, PAIRS, tokenizer) for n in ("out", "dense")]
    assert both[0].nll == pytest.approx(both[1].nll, rel=1e-4)
    original = score_pairs(Scored("m", open_seq2seq(folder)[0]), None, PAIRS, tokenizer)
    assert both[0].nll != pytest.approx(original.nll, rel=1e-3)


def refusal(candidate: Scored, original: Scored | None, pairs: list[TextPair], tokenizer: Any) -> str:
    with pytest.raises(LlmcError) as caught:
        score_pairs(candidate, original, pairs, tokenizer)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_pairs_that_cannot_be_scored(models: tuple[Scored, Scored], tokenizer: Any) -> None:
    long = [*PAIRS, TextPair("a", "b" * 41, "t.jsonl:5")]
    assert refusal(bart(0), None, long, tokenizer) == (
        "t.jsonl:5: a target of 41 tokens exceeds the 40 positions of bart0; shorten it"
    )
    assert refusal(models[0], None, [TextPair("", "b", "t.jsonl:1")], tokenizer) == (
        "t.jsonl:1: the tokenizer makes no token of the source"
    )
    assert refusal(models[0], None, [], tokenizer) == "damaged: no pairs to score"


def test_models_that_do_not_go_together(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    other = Scored("large", open_seq2seq(build("t5", tmp_path / "large", vocab_size=320))[0])
    small = Scored("small", open_seq2seq(folder)[0])
    assert refusal(small, other, PAIRS, tokenizer) == (
        "small: its vocabulary has 256 tokens and that of large 320; compare it with the model it was made from"
    )
    with torch.no_grad():
        small.model.shared.weight[tokenizer("p")["input_ids"][0]] = float("nan")
    for candidate, original in ((small, None), (Scored("good", open_seq2seq(folder)[0]), small)):
        assert refusal(candidate, original, PAIRS, tokenizer).startswith("small: its logits give no finite loss for t.")


def test_folders_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(LlmcError) as caught:
        open_seq2seq(build("llama", tmp_path / "llama"))
    assert str(caught.value) == (
        "llama: 'llama' is not an encoder-decoder model of text; measure a decoder on a text, an encoder by its vectors"
    )
