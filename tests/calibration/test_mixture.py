"""Calibration text of several sources, of conversations, and of none: what llmc carries."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

import llmc
from llmc.calibration.data import CalibrationOptions, load_calibration
from llmc.calibration.mixture import load_mixture, shares
from llmc.cli import execute
from llmc.embedded.names import weighted
from llmc.errors import CalibrationError, UsageError
from llmc.pipeline.plan import CARRIED_NOTE
from llmc.recipe.recipe import from_dict, load_recipe, to_dict

TOKENIZER = tiny_models.byte_tokenizer()
SMALL: dict[str, Any] = {"num_samples": 8, "sequence_length": 32}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_sequences_are_shared_by_largest_remainder(weights: list[int], count: int) -> None:
    got, total = shares(weights, count), sum(weights)
    exact = [Fraction(count * weight, total) for weight in weights]
    assert sum(got) == count and all(abs(a - b) < 1 for a, b in zip(got, exact, strict=True))
    up = [e - int(e) for e, g in zip(exact, got, strict=True) if g > int(e)]
    down = [e - int(e) for e, g in zip(exact, got, strict=True) if g == int(e)]
    assert not up or not down or min(up) >= max(down)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a" * 4000)
    (tmp_path / "b:3.txt").write_text("b" * 4000)
    (tmp_path / "odd.txt:2").write_text("c" * 4000)
    rows = [{"text": "d" * 40, "messages": [{"role": "user", "content": "e" * 60}]} for _ in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_weight_is_told_from_a_name(place: Path) -> None:
    assert weighted("a.txt") == ("a.txt", 1.0) and weighted("a.txt:2") == ("a.txt", 2.0)
    assert weighted("b:3.txt:0.5") == ("b:3.txt", 0.5) and weighted("b:3.txt") == ("b:3.txt", 1.0)
    assert weighted("odd.txt:2") == ("odd.txt:2", 1.0)
    assert weighted("user/set:en@train:2") == ("user/set:en@train", 2.0)


def test_every_source_has_its_share_all_over(place: Path) -> None:
    options = CalibrationOptions(("a.txt:2", "rows.jsonl"), num_samples=60, sequence_length=20)
    made = load_mixture(options, TOKENIZER, 256)
    letters = [TOKENIZER.decode(row.tolist())[5] for row in made.token_ids]
    assert (letters.count("a"), letters.count("d") + letters.count("!")) == (40, 20)
    assert 5 <= letters[:30].count("a") < 30 and made.source == "a.txt (40), rows.jsonl (20)"
    again = load_mixture(options, TOKENIZER, 256)
    assert torch.equal(made.token_ids, again.token_ids) and made.sha256 == again.sha256
    other = load_mixture(CalibrationOptions(options.source, 60, 20, seed=1), TOKENIZER, 256)
    assert not torch.equal(made.token_ids, other.token_ids)


def test_one_source_is_what_it_always_was(place: Path) -> None:
    one = load_calibration(CalibrationOptions("a.txt", 10, 20), TOKENIZER, 256)
    for source in ("a.txt", "a.txt:7", ("a.txt",)):
        assert load_mixture(CalibrationOptions(source, 10, 20), TOKENIZER, 256).sha256 == one.sha256


def test_a_weight_that_leaves_nothing(place: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_mixture(CalibrationOptions(("a.txt:100", "rows.jsonl:1"), 4, 20), TOKENIZER, 256)
    assert str(caught.value) == (
        "--calibration rows.jsonl: its weight leaves it no sequence; use more --num-samples, or a larger weight"
    )


def test_options_of_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several sources, one of them conversations: what is advised works."""
    model = tiny_models.build("llama", place / "model")
    capsys.readouterr()
    quantize = ["quantize", str(model), "-o", "out", "--group-size", "32", "--num-samples", "8"]
    quantize += ["--sequence-length", "32", "--calibration", "a.txt:3", "--calibration", "rows.jsonl"]
    assert execute([*quantize, "--chat-template"]) == 2
    assert capsys.readouterr().err == (
        "error: rows.jsonl: the tokenizer has no chat template; "
        "add chat_template.jinja to the model folder, or calibrate on plain text\n"
    )
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert execute([*quantize, "--chat-template", "--json"]) == 0
    manifest = json.loads((place / "out" / "llmc.json").read_text())
    assert manifest["calibration"]["source"] == "a.txt (6), rows.jsonl (2)"
    assert manifest["recipe"]["calibration"]["source"] == ["a.txt:3", "rows.jsonl"]
    assert execute([*quantize, "--force", "--text-column", "nothing"]) == 2
    line = "there is no column 'nothing'; choose one with --text-column: text, messages"
    assert capsys.readouterr().err.endswith(f"error: rows.jsonl:1: {line}\n")


def test_conversations_without_the_flag(place: Path) -> None:
    (place / "talks.jsonl").write_text(json.dumps({"conversations": [], "id": 1}))
    with pytest.raises(CalibrationError) as caught:
        load_calibration(CalibrationOptions("talks.jsonl"), TOKENIZER, 256)
    assert str(caught.value) == (
        "talks.jsonl:1: there is no column 'text'; add --chat-template --text-column conversations if its "
        "conversations are conversations, or choose one with --text-column: conversations, id"
    )


def test_a_recipe_takes_a_list(place: Path) -> None:
    (place / "inner").mkdir()
    (place / "inner" / "r.yaml").write_text(
        "model: m\nstages: [{method: gptq}]\n"
        "calibration: {source: [../a.txt:2, 'tiny:calibration:3', user/set@train]}\n"
    )
    recipe = load_recipe("inner/r.yaml")
    assert recipe.calibration is not None
    assert recipe.calibration.source == ("inner/../a.txt:2", "tiny:calibration:3", "user/set@train")
    data = to_dict(recipe)
    assert data["calibration"]["source"] == ["a.txt:2", "tiny:calibration:3", "user/set@train"]
    assert to_dict(from_dict(data)) == data


def test_without_text_llmc_takes_its_own_and_says_so(tmp_path: Path) -> None:
    model = tiny_models.build("llama", tmp_path / "model")
    result = llmc.quantize(str(model), tmp_path / "out", method="gptq", group_size=32, **SMALL)
    assert result.notes == (CARRIED_NOTE,)
    recipe = json.loads((tmp_path / "out" / "llmc.json").read_text())["recipe"]
    assert recipe["calibration"]["source"] == "tiny:calibration"
    assert llmc.quantize("tiny", tmp_path / "tiny", method="gptq", group_size=32, **SMALL).notes == ()
    assert llmc.quantize(str(model), tmp_path / "rtn", group_size=32).notes == ()
