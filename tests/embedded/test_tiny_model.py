"""The embedded model, from its stored weights: it reads, it knows, and its script makes it again."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from llmc.embedded import tiny_model_path, write_texts
from llmc.embedded.world import Choice, Kind, build_world, documents, drills, questions

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_tiny.py"
WINDOW = 512


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_path(), local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_path(), local_files_only=True, dtype=torch.float32)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("the training script is in the repository only")
    spec = importlib.util.spec_from_file_location("train_tiny", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_model_is_a_small_bfloat16_llama_with_grouped_queries_and_a_tied_head() -> None:
    folder = tiny_model_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    assert "lm_head.weight" not in tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    linears = [tensor for name, tensor in tensors.items() if name.endswith("_proj.weight")]
    assert all(tensor.shape[1] % 128 == 0 for tensor in linears)


def test_tokenizer_gives_any_text_back(tokenizer: Any) -> None:
    for text in (*documents(build_world(), "evaluation", count=20), "naïve Zoë — 你好 🙂\t x\n\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0


def _losses(model: Any, ids: Tensor) -> Tensor:
    """Negative log-likelihood of all but the first token of each row, nats, [rows, length - 1]."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].double()
    return -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def test_held_out_perplexity_is_below_a_third_of_a_unigram_models(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    text = write_texts(tmp_path)["evaluation"].read_text()
    ids = torch.tensor(tokenizer(text)["input_ids"])
    rows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)[:40]
    perplexity = math.exp(_losses(model, rows).mean())
    seen = Counter(tokenizer("\n\n".join(documents(build_world(), "train", characters=1_000_000)))["input_ids"])
    total = sum(seen.values()) + len(tokenizer)
    unigram = math.exp(
        -sum(math.log((seen[i] + 1) / total) for i in rows[:, 1:].flatten().tolist()) / rows[:, 1:].numel()
    )
    print(f"perplexity {perplexity:.3f}, unigram {unigram:.1f}")
    assert perplexity < unigram / 3
    assert perplexity > 1.3, "nothing left to lose by quantization"


def _accuracy(model: Any, tokenizer: Any, kind: Kind, count: int) -> float:
    return (
        sum(_chosen(model, tokenizer, item) == item["gold"] for item in questions(build_world(), kind, count)) / count
    )


def _chosen(model: Any, tokenizer: Any, item: Choice) -> int:
    """The choice with the highest log-likelihood per character."""
    query = tokenizer(item["query"])["input_ids"]
    tails = [tokenizer(f" {choice}")["input_ids"] for choice in item["choices"]]
    width = max(map(len, tails))
    rows = torch.tensor([query + tail + [0] * (width - len(tail)) for tail in tails])
    losses = _losses(model, rows)[:, len(query) - 1 :]
    scores = [
        float(loss[: len(tail)].sum()) / len(choice)
        for loss, tail, choice in zip(losses, tails, item["choices"], strict=True)
    ]
    return scores.index(min(scores))


@pytest.mark.parametrize(
    ("kind", "count", "least"),
    [
        ("recall", 420, 0.95),
        ("multi_hop", 100, 0.9),
        ("copy", 100, 0.95),
        ("in_context", 200, 0.45),
        ("story", 200, 0.5),
    ],
)
def test_model_answers(model: Any, tokenizer: Any, kind: Kind, count: int, least: float) -> None:
    accuracy = _accuracy(model, tokenizer, kind, count)
    print(f"{kind} {accuracy:.3f}")
    assert accuracy >= least  # chance is 0.25


def test_knowledge_is_in_the_weights(model: Any, tokenizer: Any) -> None:
    """Recall is not in the form of the questions: the same shape with random weights answers at chance."""
    torch.manual_seed(0)
    untrained = LlamaForCausalLM(model.config)
    assert _accuracy(untrained, tokenizer, "recall", 210) < 0.4


def test_greedy_text_goes_on_with_a_fact(model: Any, tokenizer: Any) -> None:
    world = build_world()
    right = 0
    for person in world.people:
        prompt = tokenizer(f"{person.name} lives in", return_tensors="pt")
        told = tokenizer.decode(model.generate(**prompt, do_sample=False, max_new_tokens=8)[0])
        right += world.value(person.name, "lives_in") in told
    assert right >= 0.9 * len(world.people)


def test_stored_tokenizer_is_the_scripts(script: ModuleType, tokenizer: Any) -> None:
    text = list(documents(build_world(script.SEED), "train", count=script.VOCABULARY_DOCUMENTS))
    again = json.loads(script.train_tokenizer(text).to_str())
    stored = json.loads((tiny_model_path() / "tokenizer.json").read_text())
    assert stored["model"] == again["model"]


def test_batches_use_every_row_once_and_follow_the_phases(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PHASES", (("drills", 2, 64), ("documents", 1, 128), ("documents", 2, 256)))
    monkeypatch.setattr(script, "STEP_TOKENS", 256)
    streams = {"drills": torch.arange(2000), "documents": torch.arange(10_000, 12_000)}
    batches = list(script.batches(streams))
    assert [tuple(rows.shape) for rows in batches] == [(4, 65), (4, 65), (2, 129), (1, 257), (1, 257)]
    first, second = (torch.cat([rows.flatten() for rows in part]).sort().values for part in (batches[:2], batches[2:]))
    assert torch.equal(first, streams["drills"][: 8 * 65])
    assert torch.equal(second, streams["documents"][: 2 * 129 + 2 * 257])


def test_the_script_makes_as_much_text_as_it_uses(script: ModuleType, tokenizer: Any) -> None:
    """By the length of tokens in the beginning of each text, with 5 % to spare."""
    world = build_world(script.SEED)
    for name, characters in script.CHARACTERS.items():
        sample = 300_000
        text = documents(world, "train", characters=sample) if name == "documents" else drills(world, name, sample)
        per_token = sample / len(script.token_stream(tokenizer.backend_tokenizer, list(text)))
        used = sum(
            steps * script.STEP_TOKENS * (1 + 1 / length) for kind, steps, length in script.PHASES if kind == name
        )
        assert 0 < used * per_token < 0.95 * characters, name


def test_training_again_gives_the_same_bits(
    script: ModuleType, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = list(drills(build_world(script.SEED), "copying", 60_000))
    steps, length = 3, 64
    monkeypatch.setattr(script, "PHASES", (("copying", steps, length),))
    streams = {"copying": script.token_stream(tokenizer.backend_tokenizer, text)}
    weights = []
    for _ in range(2):
        torch.manual_seed(script.SEED)
        fresh = LlamaForCausalLM(script.configuration())
        before = fresh.model.embed_tokens.weight.detach().clone()
        script.train(fresh, script.batches(streams), steps)
        assert not torch.equal(before, fresh.model.embed_tokens.weight)
        weights.append(fresh.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
