"""Configs and recipes of strangers: nothing is run, fetched or sent because a file says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from spoiled import Command, change_config, copy

import llmc
from llmc.errors import LlmcError, UnsupportedError
from llmc.models.config import safe_config

RTN = ("--method", "rtn", "--group-size", "32")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unsafe")
    tiny_models.corpus(folder)
    return tiny_models.build("llama", folder / "model")


ASKS: list[tuple[dict[str, Any], str]] = [
    ({"attn_implementation": "evil/attn"}, "attn_implementation"),
    ({"_attn_implementation": "evil/attn@v2:fast"}, "_attn_implementation"),
    ({"attn_implementation": "flash_attention_2"}, "attn_implementation"),  # fetched where it is not installed
    ({"attn_implementation": {"text_config": "sdpa", "vision_config": "evil/attn"}}, "attn_implementation"),
    ({"experts_implementation": "sonicmoe"}, "experts_implementation"),
    ({"text_config": {"deep": [{"_attn_implementation_internal": "evil/attn"}]}}, "_attn_implementation_internal"),
    ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "auto_map"),
    ({"vision_config": {"trust_remote_code": True}}, "trust_remote_code"),
]


@pytest.mark.parametrize(("changes", "key"), ASKS, ids=range(len(ASKS)))
def test_no_config_makes_a_reader_fetch_or_run_code(intact: Path, tmp_path: Path, changes: Any, key: str) -> None:
    model = copy(intact, tmp_path / "model")
    change_config(model, **changes)
    with pytest.raises(LlmcError) as caught:
        safe_config(model)
    assert caught.value.exit_code == 2
    assert key in str(caught.value)


VERBS: list[tuple[str, ...]] = [
    ("plan", "{model}", *RTN),
    ("quantize", "{model}", "-o", "{out}", *RTN),
    ("eval", "{model}", "--text", "{text}"),
    ("compare", "{model}", "--against", "{intact}", "--text", "{text}"),
    ("export", "{model}", "--format", "dense", "-o", "{out}"),
]


@pytest.mark.parametrize("words", VERBS, ids=[v[0] for v in VERBS])
def test_every_verb_that_opens_a_model_refuses(command: Command, intact: Path, tmp_path: Path, words: Any) -> None:
    model = copy(intact, tmp_path / "model")
    change_config(model, attn_implementation="evil/attn")
    text = intact.parent / "corpus.txt"
    outcome = command(*(w.format(model=model, out=tmp_path / "out", text=text, intact=intact) for w in words))
    assert outcome.code == 2
    assert "evil/attn" in outcome.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resident", ["dense", "compressed"])
def test_loading_refuses(intact: Path, tmp_path: Path, resident: str) -> None:
    llmc.lossless(intact, tmp_path / "coded")
    change_config(tmp_path / "coded", attn_implementation="evil/attn")
    with pytest.raises(LlmcError, match="evil/attn"):
        llmc.load(tmp_path / "coded", resident=resident)


def test_built_in_implementations_are_taken(command: Command, intact: Path, tmp_path: Path) -> None:
    model = copy(intact, tmp_path / "model")
    change_config(model, attn_implementation="eager", experts_implementation=None)
    assert command("quantize", model, "-o", tmp_path / "out", *RTN).code == 0


def test_auto_map_of_an_architecture_of_transformers(command: Command, intact: Path, tmp_path: Path) -> None:
    """Its code is never run, its own class used, and the copy names no code."""
    model = copy(intact, tmp_path / "model")
    (model / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change_config(model, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    assert command("quantize", model, "-o", tmp_path / "out", *RTN).code == 0
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not list((tmp_path / "out").rglob("modeling_own.py"))
    assert command("verify", tmp_path / "out", "--against", model).code == 0
    assert not (tmp_path / "ran").exists()


ASKED = "push: the recipe uploads the model to stranger/loot"
ADVICE = "add --push stranger/loot if it shall, else --set push=null"
CONSENT = [((), f"{ASKED}; {ADVICE}"), (("--push", "me/mine"), f"{ASKED}, not to me/mine; {ADVICE}")]


@pytest.mark.parametrize(("words", "line"), CONSENT, ids=["unasked", "another"])
def test_a_recipe_uploads_only_where_the_command_line_says(
    command: Command, intact: Path, tmp_path: Path, words: Any, line: str
) -> None:
    recipe = tmp_path / "r.yaml"
    stages = "[{method: rtn, group_size: 32}]"
    recipe.write_text(f"model: {intact}\nstages: {stages}\npush: {{repo: stranger/loot}}\n")
    outcome = command("run", recipe, "-o", tmp_path / "out", *words)
    assert (outcome.code, outcome.line) == (2, f"error: {line}")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]
    assert command("run", recipe, "-o", tmp_path / "out", "--set", "push=null").code == 0  # the advice works
    assert command("run", recipe, "--dry-run").code == 0


NAMED: list[dict[str, Any]] = [
    {"cache_implementation": "hybrid"},
    {"_attn_implementation_autoset": True},
    {"attn_implementation": {"text_config": "sdpa", "vision_config": None}},
    {"loss_implementation": "mine"},
]


@pytest.mark.parametrize("changes", NAMED, ids=range(len(NAMED)))
def test_what_only_sounds_like_code_is_taken(intact: Path, tmp_path: Path, changes: Any) -> None:
    model = copy(intact, tmp_path / "model")
    change_config(model, **changes)
    assert safe_config(model) is not None


MORE: list[dict[str, Any]] = [
    {"cache_implementation": "evil/cache"},
    {"text_config": {"use_kernels": True}},
    {"kernel_config": {"RMSNorm": "evil/norm:RMSNorm"}},
    {"quantization_config": {"quant_method": "eetq"}},
    {"attn_implementation": "paged|evil/attn"},
    {"attn_implementation": ["evil/attn"]},
]


@pytest.mark.parametrize("changes", MORE, ids=range(len(MORE)))
def test_more_that_would_be_fetched(intact: Path, tmp_path: Path, changes: Any) -> None:
    model = copy(intact, tmp_path / "model")
    change_config(model, **changes)
    with pytest.raises(UnsupportedError):
        safe_config(model)


def test_transformers_hooks_refuse_before_a_kernel_is_fetched(
    intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from_pretrained` after `import llmc.hf`, with nothing of llmc around it."""
    import transformers
    from transformers.integrations import hub_kernels

    import llmc.hf

    asked: list[Any] = []
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *names, **options: asked.append(names))
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    llmc.lossless(intact, tmp_path / "coded")
    change_config(tmp_path / "coded", attn_implementation="evil/attn")
    with pytest.raises(UnsupportedError, match="evil/attn"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
    assert not asked


@pytest.mark.parametrize("method", ["fp8", "mxfp4", "metal"])
def test_kernels_of_quantized_weights_are_not_fetched(method: str) -> None:
    """transformers is told to decode them, which takes none."""
    from llmc.models.classes import decoding

    options = decoding({"quantization_config": {"quant_method": method}})
    assert options["quantization_config"].dequantize is True
    assert decoding({"quantization_config": {"quant_method": "gptq"}}) == decoding({}) == {}


def test_inspect_runs_nothing_and_says_what_others_refuse(command: Command, intact: Path, tmp_path: Path) -> None:
    model = copy(intact, tmp_path / "model")
    change_config(model, attn_implementation="evil/attn")
    outcome = command("inspect", model)
    assert outcome.code == 0
    assert "other verbs refuse it" in outcome.out
    assert "evil/attn" in outcome.out
