"""Repetition and distinct n-grams against brute force, greedy text against a loop without a cache."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import VOCABULARY, build
from torch import Tensor

from llmc.errors import LlmcError
from llmc.eval.measures import degeneration as subject
from llmc.eval.measures.degeneration import Degeneration, compare, continuations, degeneration, repeated_tokens

TOKENS = st.lists(st.integers(0, 2), max_size=24)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    folder = build("llama", tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids(count: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(5))


def naive_repeated(tokens: list[int]) -> int:
    """For each token, all runs of four that hold it, against all runs that begin before."""
    count = 0
    for t in range(len(tokens)):
        starts = [i for i in range(t - 3, t + 1) if i >= 0 and i + 4 <= len(tokens)]
        count += any(tokens[i : i + 4] == tokens[j : j + 4] for i in starts for j in range(i))
    return count


@given(TOKENS)
def test_repeated_tokens_are_those_of_brute_force(tokens: list[int]) -> None:
    assert repeated_tokens(tokens) == naive_repeated(tokens)


def counted(rows: list[list[int]]) -> Degeneration:
    table = np.array([[len(row), repeated_tokens(row), *subject._ngram_counts(row)] for row in rows], dtype=np.float64)
    return Degeneration(table[:, 0], table[:, 1], table[:, 2:5], table[:, 5:])


@given(st.lists(TOKENS, min_size=1, max_size=5), st.data())
def test_figures_are_those_of_brute_force(rows: list[list[int]], data: st.DataObject) -> None:
    others = data.draw(st.lists(TOKENS, min_size=len(rows), max_size=len(rows)))
    found = compare(counted(rows), counted(others))
    for name, texts in (("", rows), ("original_", others)):
        length = sum(len(text) for text in texts)
        if all(any(len(t) > 2 for t in each) for each in (rows, others)):
            repeated = sum(naive_repeated(text) for text in texts) / length
            assert found[f"{name}repetition_rate"] == pytest.approx(repeated)
        for n in (1, 2, 3):
            grams = [[text[i : i + n] for i in range(len(text)) if i + n <= len(text)] for text in texts]
            different = sum(sum(g not in each[:i] for i, g in enumerate(each)) for each in grams)
            value = found[f"{name}distinct_{n}"]
            assert value is None or value == pytest.approx(different / sum(map(len, grams)))
    if found["distinct_1"] is not None:
        assert found["distinct_1_difference"] == pytest.approx(found["distinct_1"] - found["original_distinct_1"])
    json.dumps(found, allow_nan=False)


def test_figures_without_an_original_and_without_text() -> None:
    found = compare(counted([[1] * 10, [1, 2, 3]]))
    assert found["repetition_rate"] == 9 / 13
    assert found["original_repetition_rate"] is found["repetition_rate_difference"] is None
    assert set(found["intervals"]) == {"repetition_rate", "distinct_1", "distinct_2", "distinct_3"}
    assert found["intervals"]["repetition_rate"] == [0, 0.9]
    nothing = compare(counted([[], []]))
    assert nothing["repetition_rate"] is None and nothing["intervals"] == {} and nothing["prompts"] == 2


def test_the_interval_of_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    loops = rng.integers(0, 60, 40)
    rows = [list(range(64 - n)) + [70] * n for n in loops]
    found = compare(counted(rows), counted([[*row[:-1], 99] for row in rows]))
    low, high = found["intervals"]["repetition_rate_difference"]
    alone = found["intervals"]["repetition_rate"]
    assert 0 < low <= found["repetition_rate_difference"] <= high
    assert high - low < (alone[1] - alone[0]) / 5


def naive_greedy(model: Any, head: Tensor, new: int, end: int) -> list[int]:
    row = head[None]
    for _ in range(new):
        with torch.no_grad():
            row = torch.cat([row, model(row, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    made = row[0, len(head) :].tolist()
    return made[: made.index(end)] if end in made else made


def test_continuations_are_those_of_a_loop(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = ids(60).view(6, 10)
    plain = [naive_greedy(model, head, 20, -1) for head in heads]
    end = plain[0][7]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end])
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    monkeypatch.setattr(model.generation_config, "no_repeat_ngram_size", 2)
    expected = [naive_greedy(model, head, 20, end) for head in heads]
    assert continuations(model, heads, 20) == expected
    assert len(expected[0]) == plain[0].index(end) < 20
    assert max(map(len, expected)) == 20


def test_prompts_are_the_heads_of_equal_parts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text, seen = ids(103), list[list[int]]()

    def fake(model: Any, heads: Tensor, new: int) -> list[list[int]]:
        seen.extend(heads.tolist())
        return [[7] * new for _ in heads]

    monkeypatch.setattr(subject, "continuations", fake)
    monkeypatch.setattr(subject, "BATCH_TOKENS", 40)
    steps: list[tuple[str, float, float]] = []
    found = degeneration(
        model, text, prompts=4, prompt_tokens=5, new_tokens=8, begin=(1,), progress=lambda *a: steps.append(a)
    )
    assert seen == [[1, *text[i : i + 5].tolist()] for i in (0, 25, 50, 75)]
    assert found.tokens.tolist() == [8] * 4 and found.repeated.tolist() == [7] * 4
    assert steps[0] == ("degeneration", 2, 4) and steps[-1] == ("degeneration", 4, 4)
    seen.clear()
    degeneration(model, torch.cat([torch.tensor([1]), text]), prompts=4, prompt_tokens=5, new_tokens=8, begin=(1,))
    assert seen[0] == [1, *text[:5].tolist()]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"prompts": 33}, "the text has 160 tokens, and 33 prompts of 5 need 165; give a longer text"),
        ({"prompts": 0}, "0 prompts of 5 tokens and 64 new ones leave nothing to count; use 1 or more of each"),
        ({"new_tokens": 0}, "32 prompts of 5 tokens and 0 new ones leave nothing to count; use 1 or more of each"),
        ({"new_tokens": 124}, "prompts of 5 tokens and 124 new ones exceed the model's 128 positions; use fewer"),
    ],
)
def test_what_cannot_be_continued(model: Any, options: dict[str, Any], line: str) -> None:
    with pytest.raises(LlmcError) as caught:
        degeneration(model, ids(160), **{"prompt_tokens": 5, **options})
    assert str(caught.value) == line
    assert caught.value.exit_code == 2
