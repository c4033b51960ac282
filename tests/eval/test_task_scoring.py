"""Likelihoods and judgements of tasks, against loops that take one item at a time and batch nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import build
from torch import Tensor

from llmc.embedded import tiny_model_path
from llmc.errors import LlmcError
from llmc.eval.measures.metrics import BATCH_TOKENS, Scored
from llmc.eval.tasks import scoring as task_scoring
from llmc.eval.tasks.judging import judge
from llmc.eval.tasks.scoring import Likelihood, Request, joined, leading_ids, log_likelihoods, requests
from llmc.eval.tasks.tasks import load_task
from llmc.models.open import open_model

MODELS = os.environ.get("LLMC_MODELS")
DATA = Path(os.environ.get("LLMC_DATA") or Path(MODELS or ".").parent / "data")

WORDS = ["river", "stone", "lamp", "and", "the", "a", "walks", "sings", "old", "under", "bright", "keeps", "to"]


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Contexts of very different length, with and without blanks at the border."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        context = " ".join(rng.choices(WORDS, k=rng.randint(0 if i % 7 == 0 else 1, 14)))
        made.append((context + rng.choice(["", " ", "\n", ":"]), " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))))
    return made


def one_by_one(model: Any, tokenizer: Any, context: str, continuation: str) -> Likelihood:
    """The same from the texts, without batches, padding or chunks."""
    if context.strip() and not context[-1].isspace():
        continuation = " " + continuation
    whole, head = context + continuation, context.rstrip()
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    border = len(tokenizer(head, add_special_tokens=False)["input_ids"]) if head else 0
    bos = tokenizer.bos_token_id
    if tokenizer("a")["input_ids"][0] == bos or border == 0:
        ids, border = [tokenizer.eos_token_id if bos is None else bos, *ids], border + 1
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    rows = logits[border - 1 : -1].log_softmax(-1)
    chosen = torch.tensor(ids[border:])
    return Likelihood(rows.gather(-1, chosen[:, None]).sum().item(), bool((rows.argmax(-1) == chosen).all()))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mistral", "mixtral", "gpt-neox"])
def test_likelihoods_equal_a_loop_over_items(name: str, tmp_path: Path) -> None:
    """Right padding without a mask: also with learned positions, sliding windows and routed experts."""
    model, tokenizer = open_model(build(name, tmp_path / name))
    exact = name != "mixtral"  # its grouped products have no float64
    model.to(torch.float64 if exact else torch.float32)
    texts = pairs(40)
    asked = requests(model, tokenizer, texts, [""] * 40, name)
    found = log_likelihoods(Scored(name, model), asked)
    for pair, mine in zip(texts, found, strict=True):
        expected = one_by_one(model, tokenizer, *pair)
        assert mine.total == pytest.approx(expected.total, abs=1e-9 if exact else 1e-4)
        assert mine.greedy == expected.greedy


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """A trained model whose tokenizer merges letters."""
    return open_model(tiny_model_path())


def test_a_trained_model_in_float32(tiny: tuple[Any, Any]) -> None:
    texts = pairs(30, seed=1)
    found = log_likelihoods(Scored("tiny", tiny[0]), requests(*tiny, texts, [""] * 30, "tiny"))
    for pair, mine in zip(texts, found, strict=True):
        assert mine.total == pytest.approx(one_by_one(*tiny, *pair).total, rel=1e-6, abs=1e-6)


def test_small_batches_and_chunks_change_nothing(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(*tiny, pairs(20), [""] * 20, "tiny")
    whole = log_likelihoods(Scored("tiny", tiny[0]), asked)
    monkeypatch.setattr(task_scoring, "BATCH_TOKENS", 1)
    monkeypatch.setattr(task_scoring, "CHUNK_ELEMENTS", {"cpu": 1})
    single = log_likelihoods(Scored("tiny", tiny[0]), asked)
    assert [each.total for each in whole] == pytest.approx([each.total for each in single], rel=1e-5)
    assert [each.greedy for each in whole] == [each.greedy for each in single]


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("The sky is", "blue", ("The sky is", " blue")),
        ("The sky is ", "blue", ("The sky is", " blue")),
        ("The sky is", " blue", ("The sky is", " blue")),
        ("Q: why?\n", "blue", ("Q: why?", "\nblue")),
        ("a \n", " b", ("a", " \n b")),
        ("", "blue", ("", "blue")),
        ("  ", "blue", ("", "  blue")),
    ],
)
def test_the_border(context: str, continuation: str, expected: tuple[str, str]) -> None:
    assert joined(context, continuation) == expected


class Words:
    """A tokenizer of one token per letter that merges `ab`, with or without BOS."""

    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __init__(self, begins: bool) -> None:
        self.begins = begins

    def __call__(self, text: str | list[str], add_special_tokens: bool = True, verbose: bool = True) -> Any:
        if isinstance(text, list):
            return {"input_ids": [self(each, add_special_tokens)["input_ids"] for each in text]}
        ids = [3 if piece == "\0" else ord(piece) for piece in text.replace("ab", "\0")]
        return {"input_ids": [1, *ids] if add_special_tokens and self.begins else ids}


def limited(positions: int | None) -> Any:
    config = SimpleNamespace(max_position_embeddings=positions, vocab_size=256)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config), device=torch.device("cpu"))


def test_tokens_of_the_harness_border() -> None:
    """Where a token spans the border, the continuation is what the whole has beyond as many tokens as the context."""
    (request,) = requests(limited(None), Words(False), [("xa ", "bcd")], ["f:1"], "m")
    assert request == Request(tuple(map(ord, "xa bcd")), 4, "f:1")
    made = task_scoring.requests(limited(None), Words(True), [("", "abc"), ("x", "ab")], ["f:1", "f:2"], "m")
    assert [(each.tokens, each.scored) for each in made] == [((1, 3, ord("c")), 2), ((1, ord("x"), ord(" "), 3), 2)]


def test_long_contexts_are_cut_from_the_left() -> None:
    for begins, kept in ((False, "456 xy"), (True, "56 xy")):
        made = requests(limited(5), Words(begins), [("123456", "xy"), ("6", "xy")], ["f:1", "f:2"], "m")
        start = (1,) if begins else ()
        assert made[0] == Request((*start, *map(ord, kept)), 3, "f:1", truncated=True)
        assert len(made[0].inputs) == 5
        assert not made[1].truncated
    with pytest.raises(LlmcError) as caught:
        requests(limited(5), Words(False), [("123456", "vwxyz")], ["f:1"], "m")
    assert str(caught.value) == "f:1: a continuation of 6 tokens exceeds the 5 positions of m"


def test_an_empty_context_begins_with_bos_or_eos() -> None:
    tokenizer = Words(False)
    assert requests(limited(9), tokenizer, [("", "x")], ["f:1"], "m")[0].tokens == (1, ord("x"))
    tokenizer.bos_token_id = None
    assert requests(limited(9), tokenizer, [("", "x")], ["f:1"], "m")[0].tokens == (2, ord("x"))
    tokenizer.eos_token_id = None
    with pytest.raises(LlmcError) as caught:
        requests(limited(9), tokenizer, [("", "x")], ["f:1"], "m")
    assert str(caught.value) == "f:1: an empty context, and the tokenizer of m has no token to begin a text with"


class Recording:
    """A model whose logits are a table, that notes what it was given."""

    device = torch.device("cpu")

    def __init__(self, table: Tensor) -> None:
        self.table = table  # [vocabulary in, vocabulary out]
        self.config = limited(None).config
        self.given: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor, use_cache: bool, logits_to_keep: int = 0) -> Any:
        logits = self.table[input_ids][:, -logits_to_keep:] if logits_to_keep else self.table[input_ids]
        self.given.append((*input_ids.shape, logits.shape[1]))
        return SimpleNamespace(logits=logits)

    def __call__(self, **inputs: Any) -> Any:
        return self.forward(**inputs)


def test_batches_stay_small_and_equal_inputs_run_once() -> None:
    model = Recording(torch.zeros(256, 256))
    asked = [Request((*([5] * n), end), 1) for n in range(3, 400) for end in (7, 8)]
    found = log_likelihoods(Scored("m", model), asked)
    assert sum(rows for rows, _, _ in model.given) == 397
    assert max(rows * longest for rows, longest, _ in model.given) <= BATCH_TOKENS
    assert len(model.given) < 60
    assert all(each.total == pytest.approx(-math.log(256)) and not each.greedy for each in found)
    model.given.clear()
    log_likelihoods(Scored("m", model), [Request((5,) * 900, 3), Request((5,) * 890, 4)])
    assert model.given == [(2, 899, 14)]  # logits from the first scored column of the shorter row on


def test_logits_that_are_not_finite_name_file_and_line() -> None:
    table = torch.zeros(256, 256)
    table[7] = math.nan
    with pytest.raises(LlmcError) as caught:
        log_likelihoods(Scored("bad", Recording(table)), [Request((5, 6, 9), 2, "f:1"), Request((5, 7, 9), 2, "f:2")])
    assert str(caught.value) == (
        "bad: its logits give no finite likelihood for f:2; "
        "look for NaN, Inf or masked weights with `llmc inspect`, or evaluate with dtype float32"
    )


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_multiple_choice_and_partial_scoring_equal_a_loop(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    texts = pairs(20, seed=3)
    options = [[text for _, text in pairs(3, seed=10 + i)] for i in range(20)]
    rows = [{"query": q, "choices": c, "gold": i % 3} for i, ((q, _), c) in enumerate(zip(texts, options, strict=True))]
    mine = judge(Scored("tiny", tiny[0]), tiny[1], load_task(write(tmp_path, *rows)))
    scores = [[one_by_one(*tiny, r["query"], c).total for c in r["choices"]] for r in rows]
    per_byte = [[s / len(c) for s, c in zip(ss, r["choices"], strict=True)] for ss, r in zip(scores, rows, strict=True)]
    for name, table in (("acc", scores), ("acc_norm", per_byte)):
        expected = [max(range(3), key=s.__getitem__) == r["gold"] for s, r in zip(table, rows, strict=True)]
        assert mine.correct[name].tolist() == expected
        assert 0 < sum(expected) < 20
    assert mine.correct["acc"].tolist() != mine.correct["acc_norm"].tolist()
    assert list(mine.correct) == ["acc_norm", "acc"]

    rows = [
        {"context_options": c, "continuation": text, "gold": 1} for (_, text), c in zip(texts, options, strict=True)
    ]
    mine = judge(Scored("tiny", tiny[0]), tiny[1], load_task(write(tmp_path, *rows)))
    scores = [[one_by_one(*tiny, c, r["continuation"]).total for c in r["context_options"]] for r in rows]
    assert mine.correct["acc"].tolist() == [max(range(3), key=s.__getitem__) == 1 for s in scores]
    assert mine.log_likelihood is not None
    assert mine.log_likelihood.tolist() == pytest.approx([s[1] for s in scores], rel=1e-5)


def greedy_loop(model: Any, tokenizer: Any, prompt: str, new: int) -> str:
    ids = leading_ids(tokenizer) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + new and "\n" not in tokenizer.decode(ids[start:]):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == model.generation_config.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True).split("\n")[0]


def test_cloze_and_short_answers_equal_a_greedy_loop(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    prompts = [context for context, _ in pairs(12, seed=5) if context.strip()]
    said = [greedy_loop(*tiny, prompt, 250) for prompt in prompts]
    rows = [{"question": p, "answers": ["?", f" {s.strip()}\n"]} for p, s in zip(prompts, said, strict=True)]
    rows[1]["answers"] = [said[1].upper()]
    rows[3]["answers"] = [said[3] + " and"]
    rows[5]["answers"] = [said[5].rstrip(".")]
    mine = judge(Scored("tiny", tiny[0]), tiny[1], load_task(write(tmp_path, *rows)))
    right = mine.correct["exact_match"].tolist()
    assert right == [i not in (3, 5) for i in range(len(rows))]

    clozes = [
        {"context": p.rstrip(), "continuation": s.split()[0] if i % 2 else "zebra"}
        for i, (p, s) in enumerate(zip(prompts, said, strict=True))
        if s.strip() and s[0] == " "
    ]
    found = judge(Scored("tiny", tiny[0]), tiny[1], load_task(write(tmp_path, *clozes)))
    assert found.correct["acc"].tolist() == [one_by_one(*tiny, *row.values()).greedy for row in clozes]
    assert 0 < found.correct["acc"].sum() < len(clozes)


def test_items_that_were_cut_are_counted(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "m")  # 128 positions, one token per byte
    model, tokenizer = open_model(folder)
    rows = [{"query": "a" * n, "choices": ["b", "cc"], "gold": 0} for n in (10, 126, 127, 500)]
    assert judge(Scored("m", model), tokenizer, load_task(write(tmp_path, *rows))).truncated == 2
    rows = [{"question": "a" * n, "answer": "b"} for n in (10, 96, 97, 300)]
    assert judge(Scored("m", model), tokenizer, load_task(write(tmp_path, *rows))).truncated == 2
    (row,) = ({"question": "a", "answer": "b" * 200},)
    with pytest.raises(LlmcError) as caught:
        judge(Scored("m", model), tokenizer, load_task(write(tmp_path, row)))
    assert str(caught.value) == (
        f"{tmp_path}/t.jsonl:1: an answer of up to 201 tokens does not fit into the 128 positions of m"
    )


def test_ids_beyond_the_embedding(tmp_path: Path) -> None:
    model, tokenizer = open_model(build("llama", tmp_path / "narrow", vocab_size=60))
    path = write(tmp_path, {"context": "a", "continuation": "b"})
    with pytest.raises(LlmcError, match=r"^narrow: its tokenizer makes token id "):
        judge(Scored("narrow", model), tokenizer, load_task(path))


def test_progress_ends_complete(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []
    path = write(tmp_path, *({"query": q, "choices": [c, "x"], "gold": 0} for q, c in itertools.islice(pairs(9), 5)))
    judge(Scored("tiny", tiny[0]), tiny[1], load_task(path), progress=lambda *args: seen.append(args))
    assert seen[-1] == ("t: tiny", 10, 10)


@pytest.mark.skipif(not MODELS, reason="LLMC_MODELS names no folder of trained models")
def test_public_tasks_equal_a_loop() -> None:
    """The files as they are; a model of this size is near chance in all of them."""
    model, tokenizer = open_model(Path(str(MODELS)) / "ref-7m")
    files = sorted((DATA / "tasks").glob("*.jsonl"))
    assert len(files) == 7
    for file in files:
        task = load_task(file, 8)
        found = judge(Scored("ref-7m", model), tokenizer, task)
        scores = [[one_by_one(model, tokenizer, *pair) for pair in item.pairs] for item in task.items]
        assert found.truncated == 0 and found.log_likelihood is not None
        gold = [each[item.gold] for each, item in zip(scores, task.items, strict=True)]
        assert found.log_likelihood.tolist() == pytest.approx([each.total for each in gold], rel=1e-5)
        if task.shape == "cloze":
            expected = [each.greedy for each in gold]
        else:
            expected = [
                max(each, key=lambda score: score.total) == right for each, right in zip(scores, gold, strict=True)
            ]
        assert found.correct["acc"].tolist() == expected
