"""Texts from Windows give the figures of the same text from elsewhere, and a note says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

import llmc
from llmc.cli import execute
from llmc.embedded.names import embedded_task, embedded_text
from llmc.eval.tasks.text_pairs import load_similarities
from llmc.files.line_ends import LineEnds

NOTE = "text.txt: line ends of Windows became \\n; --raw-text keeps the bytes"
BOTH = "text.txt: line ends of Windows became \\n and a byte order mark was dropped; --raw-text keeps the bytes"
TEXTS = st.text(alphabet="ab\r\n\ufeff", max_size=20)


def naive(text: str) -> str:
    return "\n".join(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\r"))


@given(st.lists(TEXTS, max_size=5))
def test_pieces_give_what_the_whole_gives(parts: list[str]) -> None:
    whole = "".join(parts)
    for raw in (False, True):
        ends, same = LineEnds(raw), LineEnds(raw)
        assert "".join(ends.parts(parts, "x")) == same.text(whole, "x") == (whole if raw else naive(whole))
        assert ends.found == same.found and bool(ends.notes()) == (not raw and whole != naive(whole))


def test_values_of_json_are_cleaned_inside() -> None:
    ends = LineEnds()
    value = {"a\r": ["x\r\ny", {"b": "\ufeffz"}], "n": 1, "none": None}
    assert ends.value(value, "f.jsonl") == {"a\r": ["x\ny", {"b": "z"}], "n": 1, "none": None}
    assert ends.notes() == (
        "f.jsonl: line ends of Windows became \\n and a byte order mark was dropped; --raw-text keeps the bytes",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("model") / "model")


def written(place: Path, text: str, *, end: str = "\n", mark: str = "") -> str:
    place.mkdir()
    (place / "text.txt").write_bytes((mark + text.replace("\n", end)).encode())
    return str(place / "text.txt")


TEXT = "One line of a text.\nAnother one, of the same.\n\nAnd a third.\n" * 60


def test_calibration_is_that_of_the_plain_text(model: Path, tmp_path: Path) -> None:
    weights, notes = {}, {}
    forms: dict[str, dict[str, str]] = {"plain": {}, "windows": {"end": "\r\n", "mark": "\ufeff"}, "mac": {"end": "\r"}}
    options: dict[str, Any] = {"method": "gptq", "group_size": 32, "num_samples": 8, "sequence_length": 32}
    for name, form in forms.items():
        text = written(tmp_path / name, TEXT, **form)
        result = llmc.quantize(str(model), tmp_path / f"{name}-out", calibration=text, **options)
        weights[name] = hashlib.sha256((tmp_path / f"{name}-out" / "model.safetensors").read_bytes()).hexdigest()
        notes[name] = result.notes
    assert len({*weights.values()}) == 1
    assert notes == {"plain": (), "windows": (BOTH,), "mac": (NOTE,)}
    raw = llmc.quantize(
        str(model), tmp_path / "raw", calibration=str(tmp_path / "windows" / "text.txt"), raw_text=True, **options
    )
    assert raw.notes == ()
    assert hashlib.sha256((tmp_path / "raw" / "model.safetensors").read_bytes()).hexdigest() != weights["plain"]


def test_rows_are_cleaned_too(model: Path, tmp_path: Path) -> None:
    rows = [line for line in TEXT.split("\n\n") if line]
    windows = [row.replace("\n", "\r\n") for row in rows]
    manifests = []
    for name, texts in (("plain", rows), ("windows", windows)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.jsonl").write_text("\ufeff" + "\r\n".join(json.dumps({"text": t}) for t in texts))
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / name / "t.parquet")
        for file in ("t.jsonl", "t.parquet"):
            out = tmp_path / f"{name}-{file}"
            options: dict[str, Any] = {"group_size": 32, "num_samples": 8, "sequence_length": 32}
            result = llmc.quantize(str(model), out, calibration=tmp_path / name / file, **options)
            assert len(result.notes) == (name == "windows") and all(n.startswith(file) for n in result.notes)
            manifests.append(json.loads((out / "llmc.json").read_text())["calibration"]["sha256"])
    assert len({*manifests}) == 1


def test_figures_are_those_of_the_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (embedded_text("tiny:evaluation") or b"").decode()[:3000]
    figures = {}
    cache = tmp_path / "cache"
    for name, form in (("plain", {}), ("windows", {"end": "\r\n", "mark": "\ufeff"})):
        options: dict[str, Any] = {"text": written(tmp_path / name, text, **form), "against": "tiny", "cache": cache}
        figures[name] = llmc.evaluate("tiny", **options)
    raw = llmc.evaluate("tiny", **options, raw_text=True)
    plain, windows = figures["plain"], figures["windows"]
    assert windows.perplexity == plain.perplexity and windows.text == plain.text and plain.notes == ()
    assert windows.notes == (BOTH,) and raw.notes == ()
    assert raw.perplexity > 1.5 * plain.perplexity and raw.text != plain.text
    assert execute(["eval", "tiny", "--text", str(options["text"])]) == 0
    assert capsys.readouterr().err == f"note: {BOTH}\n"
    page = tmp_path / "report.html"
    compare = ["compare", "tiny", "--against", "tiny", "--text", str(options["text"]), "--report", str(page)]
    assert execute(compare) == 0
    assert "line ends of Windows became" in page.read_text()


def test_tasks_and_pairs(tmp_path: Path) -> None:
    items = [json.loads(line) for line in (embedded_task("tiny:recall") or b"").splitlines()[:12]]
    reports = []
    for name, end in (("plain", "\n"), ("windows", "\r\n")):
        (tmp_path / name).mkdir()
        made = [json.dumps({k: f"{v}{end}" if k == "context" else v for k, v in item.items()}) for item in items]
        (tmp_path / name / "t.jsonl").write_text(end.join(made))
        reports.append(llmc.evaluate("tiny", tasks=[tmp_path / name / "t.jsonl"], cache=tmp_path / "cache"))
    assert reports[0].tasks[0].items == reports[1].tasks[0].items == 12
    assert {k: v for k, v in reports[0].tasks[0].to_json().items() if k != "sha256"} == {
        k: v for k, v in reports[1].tasks[0].to_json().items() if k != "sha256"
    }
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"sentence1": "a\r\nb", "sentence2": "\ufeffc", "score": 1.0}) + "\r\n")
    (pair,) = load_similarities(pairs)
    assert (pair.first, pair.second) == ("a\nb", "c")
    (pair,) = load_similarities(pairs, LineEnds(raw=True))
    assert (pair.first, pair.second) == ("a\r\nb", "\ufeffc")


def test_a_recipe_may_keep_the_bytes(model: Path, tmp_path: Path) -> None:
    text = written(tmp_path / "windows", TEXT, end="\r\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {model}\nstages: [{{method: rtn, group_size: 32}}]\n"
        f"eval: {{text: {text}, context: 32, stride: 32, raw_text: true}}\n"
    )
    kept: Any = llmc.run(str(recipe), tmp_path / "kept")
    cleaned: Any = llmc.run(str(recipe), tmp_path / "cleaned", overrides=["eval.raw_text=false"])
    (kept,), (cleaned,) = kept.evaluation.values(), cleaned.evaluation.values()
    assert kept.tokens > cleaned.tokens and kept.notes == () and cleaned.notes == (NOTE,)
