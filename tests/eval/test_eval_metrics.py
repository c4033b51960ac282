"""Windows, per-window sums and intervals, each against an independent computation."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build
from torch import Tensor

from llmc.errors import LlmcError
from llmc.eval.measures import metrics
from llmc.eval.measures.metrics import Scored, score, windows
from llmc.eval.reports.intervals import paired_intervals

VOCABULARY = 256


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scored, Scored]:
    """A tiny Llama and a copy with noise on its weights."""
    from transformers import AutoModelForCausalLM

    folder = build("llama", tmp_path_factory.mktemp("tiny"))
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    damaged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in damaged.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    return Scored("damaged", damaged), Scored("original", original)


def token_ids(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(3))


def strided_loop(model: Any, ids: Tensor, context: int, stride: int) -> tuple[float, int]:
    """The loop of the transformers documentation: total loss and number of scored tokens."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        labels = ids[begin:end].clone()[None]
        labels[:, : -(end - previous)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        if scored:
            with torch.no_grad():
                total += model(ids[None, begin:end], labels=labels).loss.item() * scored
            count += scored
        previous = end
        if end == len(ids):
            break
    return total, count


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (64, 16), (64, 63), (128, 1), (2, 2), (128, 100)])
@pytest.mark.parametrize("tokens", [2, 65, 200])
def test_perplexity_is_that_of_the_usual_strided_loop(
    pair: tuple[Scored, Scored], context: int, stride: int, tokens: int
) -> None:
    ids = token_ids(tokens)
    total, count = strided_loop(pair[0].model, ids, context, stride)
    sums = score(pair[0], ids=ids, context=context, stride=stride)
    assert sums.tokens.sum() == count
    assert sums.nll.sum() == pytest.approx(total, rel=2e-6)
    assert sums.kl is None


@pytest.mark.parametrize(("context", "stride", "tokens"), [(8, 8, 40), (8, 3, 41), (5, 1, 20), (8, 8, 33), (9, 4, 9)])
def test_every_token_with_a_predecessor_is_scored_once(context: int, stride: int, tokens: int) -> None:
    found = list(windows(tokens, context, stride))
    scored = [t for w in found for t in range(w.first, w.end)]
    expected = [t for t in range(1, tokens) if stride < context or t % context]
    assert scored == expected
    assert all(w.start < w.first < w.end <= w.start + context for w in found)


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 20)])
def test_kl_and_agreement_equal_a_float64_oracle(pair: tuple[Scored, Scored], context: int, stride: int) -> None:
    ids = token_ids(150)
    sums = score(*pair, ids=ids, context=context, stride=stride)
    assert sums.kl is not None and sums.agree is not None and sums.original_nll is not None
    for i, window in enumerate(windows(len(ids), context, stride)):
        with torch.no_grad():
            q, p = (m.model(ids[None, window.start : window.end]).logits[0].double().numpy() for m in pair)
        rows = range(window.first - 1 - window.start, window.end - 1 - window.start)
        log_p = [p[r] - np.log(np.exp(p[r] - p[r].max()).sum()) - p[r].max() for r in rows]
        log_q = [q[r] - np.log(np.exp(q[r] - q[r].max()).sum()) - q[r].max() for r in rows]
        kl = math.fsum(float((np.exp(a) * (a - b)).sum()) for a, b in zip(log_p, log_q, strict=True))
        nll = -math.fsum(a[t] for a, t in zip(log_p, ids[window.first : window.end].tolist(), strict=True))
        assert kl / len(rows) > 1e-4
        assert sums.kl[i] == pytest.approx(kl, rel=1e-6, abs=1e-6)
        assert sums.original_nll[i] == pytest.approx(nll, rel=1e-6)
        assert sums.agree[i] == sum(p[r].argmax() == q[r].argmax() for r in rows)


def test_a_model_compared_with_itself_loses_nothing(pair: tuple[Scored, Scored]) -> None:
    sums = score(pair[1], pair[1], ids=token_ids(100), context=32, stride=32)
    assert sums.kl is not None and sums.agree is not None and sums.original_nll is not None
    assert not sums.kl.any()
    assert (sums.agree == sums.tokens).all() and (sums.nll == sums.original_nll).all()


def test_sums_depend_neither_on_batches_nor_on_chunks(
    pair: tuple[Scored, Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> metrics.WindowSums:
        return score(*pair, ids=token_ids(300), context=40, stride=25)

    whole = run()
    monkeypatch.setattr(metrics, "BATCH_TOKENS", 1)
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", {"cpu": 3 * VOCABULARY})
    single = run()
    assert len(whole.tokens) == len(single.tokens) == 12
    for one, other in zip(vars(whole).values(), vars(single).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


class Recording:
    """A model whose logits are a table, that notes how many tokens it was given at once."""

    device = torch.device("cpu")

    def __init__(self, table: Tensor) -> None:
        self.table = table  # [vocabulary in, vocabulary out]
        self.given: list[int] = []
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=table.shape[1]))

    def __call__(self, *, input_ids: Tensor, use_cache: bool) -> Any:
        self.given.append(input_ids.numel())
        return SimpleNamespace(logits=self.table[input_ids])


def test_a_batch_stays_small_however_long_the_text() -> None:
    model = Recording(torch.zeros(VOCABULARY, VOCABULARY))
    seen: list[tuple[str, float, float]] = []
    sums = score(
        Scored("m", model), ids=token_ids(50_000), context=100, stride=100, progress=lambda *args: seen.append(args)
    )
    assert max(model.given) <= metrics.BATCH_TOKENS
    assert seen[-1] == ("evaluate m", 50_000, 50_000)
    assert sums.nll.sum() == pytest.approx(49_500 * math.log(VOCABULARY))


def test_an_original_that_is_whole_bounds_the_batch(
    pair: tuple[Scored, Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its states are all its logits."""
    monkeypatch.setattr(metrics, "BATCH_LOGITS", 2 * 20 * VOCABULARY)
    whole = Recording(torch.zeros(VOCABULARY, VOCABULARY))
    score(pair[0], Scored("whole", whole), ids=token_ids(400), context=20, stride=20)
    assert pair[0].halves.head is not None and max(whole.given) == 2 * 20


def test_a_large_vocabulary_is_run_one_window_at_a_time() -> None:
    model = Recording(torch.zeros(1, 1).expand(VOCABULARY, 200_000))
    assert metrics._windows_per_batch(Scored("m", model), 512) == 1
    assert metrics._windows_per_batch(Scored("m", Recording(torch.zeros(1, 1000))), 512) == 8


def test_logits_that_are_not_finite_name_the_window_and_the_model() -> None:
    broken = torch.zeros(VOCABULARY, VOCABULARY)
    broken[7] = math.nan
    good, bad = Scored("good", Recording(torch.zeros(VOCABULARY, VOCABULARY))), Scored("bad", Recording(broken))
    ids = torch.full((100,), 3)
    ids[55] = 7
    for candidate, original in ((bad, None), (bad, good), (good, bad)):
        with pytest.raises(LlmcError) as caught:
            score(candidate, original, ids=ids, context=20, stride=20)
        assert str(caught.value) == (
            "bad: its logits give no finite loss in window 2 (tokens 40 to 59); "
            "look for NaN, Inf or masked weights with `llmc inspect`, or evaluate with dtype float32"
        )


def test_vocabularies_of_different_size() -> None:
    one, other = (Scored(f"v{n}", Recording(torch.zeros(VOCABULARY, n))) for n in (256, 320))
    with pytest.raises(LlmcError) as caught:
        score(one, other, ids=token_ids(40), context=20, stride=20)
    assert str(caught.value) == (
        "v256: its vocabulary has 256 tokens and that of v320 320; compare it with the model it was made from"
    )


def test_intervals_equal_a_loop_over_the_same_draws() -> None:
    sums = np.random.default_rng(5).random((30, 3))
    found = paired_intervals(
        sums, {"ratio": lambda s: s[:, 1] / s[:, 0], "mean": lambda s: s[:, 2]}, resamples=200, seed=9
    )
    draws = np.random.default_rng(9).integers(30, size=(200, 30))
    ratios = sorted(sum(sums[i][1] for i in row) / sum(sums[i][0] for i in row) for row in draws)
    assert found["ratio"] == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))
    assert list(found) == ["ratio", "mean"]


def test_intervals_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.eval.reports import intervals

    sums = np.random.default_rng(5).random((50, 2))
    whole = paired_intervals(sums, {"mean": lambda s: s[:, 0]})
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 170)
    assert paired_intervals(sums, {"mean": lambda s: s[:, 0]})["mean"] == pytest.approx(whole["mean"], rel=1e-13)


def test_one_window_has_no_interval() -> None:
    assert paired_intervals(np.ones((1, 2)), {"mean": lambda s: s[:, 0]}) == {}


def test_the_interval_of_a_paired_difference_covers_its_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(1000):
        shared = generator.normal(0, 10, size=80)  # what two models have in common on a window
        columns = np.stack([np.full(80, 1.0), shared + generator.normal(0.5, 1, size=80), shared], axis=1)
        found = paired_intervals(columns, {"d": lambda s: (s[:, 1] - s[:, 2]) / s[:, 0]}, resamples=400, seed=seed)
        low, high = found["d"]
        assert high - low < 1  # an unpaired interval would be about 6 wide
        covered += low <= 0.5 <= high
    assert 0.93 <= covered / 1000 <= 0.97
