"""`compare`, its controls and gates, and evaluations of every kind of model, by the library and by the command line."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, corpus

import llmc
from llmc.cli import execute
from llmc.errors import LlmcError
from llmc.eval.reports.comparison import schema

SCORING: dict[str, Any] = {"context": 64, "stride": 64, "max_tokens": 1500}


def damaged(original: Path, copy: Path, factor: float) -> Path:
    shutil.copytree(original, copy)
    tensors = load_file(copy / "model.safetensors")
    for name in tensors:
        if name.endswith("up_proj.weight") or name.endswith("intermediate.dense.weight") or name.endswith("wi.weight"):
            tensors[name] *= factor
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, two quantized copies of it and a damaged one, and a text."""
    place = tmp_path_factory.mktemp("compare")
    original = build("llama", place / "original")
    for bits in (4, 3):
        llmc.quantize(str(original), place / f"w{bits}", method="rtn", bits=bits, group_size=64)
    damaged(original, place / "damaged", 0.5)
    corpus(place, words=600)
    return place


def compared(place: Path, *names: str, **options: Any) -> Any:
    folders = [place / name for name in names]
    given: dict[str, Any] = {"text": place / "corpus.txt", **SCORING, **options}
    return llmc.compare(folders, against=place / "original", **given)


def test_rows_are_by_size_and_equal_single_evaluations(place: Path) -> None:
    rows = compared(place, "damaged", "w4", "w3").report.rows
    assert [row.label for row in rows] == ["w3", "w4", "damaged"]
    for row in rows:
        alone = llmc.evaluate(
            place / row.label, against=place / "original", text=place / "corpus.txt", **SCORING
        ).to_json()
        assert row.report.to_json() == alone
    assert rows[2].dominated_by == "w4" and rows[2].resolved


def test_the_original_alone_is_its_own_evaluation(place: Path) -> None:
    original = compared(place, "w4").report.original.to_json()
    alone = llmc.evaluate(place / "original", text=place / "corpus.txt", **SCORING).to_json()
    assert original == alone


def test_controls_take_at_most_the_bytes_and_are_plain_rounding(place: Path) -> None:
    rows = {row.label: row for row in compared(place, "w4", "w3", control=True).report.rows}
    for bits in (4, 3):
        control = rows[f"rtn at the bytes of w{bits}"]
        mine = rows[f"w{bits}"]
        assert control.control_of == f"w{bits}"
        assert control.report.weight_bytes == mine.report.weight_bytes, "w is rtn itself"
        assert control.report.kl == mine.report.kl


def test_a_control_between_two_widths_mixes_them(place: Path, tmp_path: Path) -> None:
    from llmc.pipeline.controls import Controls

    controls = Controls(place / "original")
    low, high = controls._bytes(3, 0), controls._bytes(4, 0)
    steps = [controls._bytes(3, k) for k in range(len(controls.targets) + 1)]
    assert steps == sorted(set(steps)) and (steps[0], steps[-1]) == (low, high)
    budget = steps[3] + 1
    assert controls.write(budget, tmp_path / "control", None) == steps[3]
    assert (tmp_path / "control" / "model.safetensors").stat().st_size == steps[3]
    report = llmc.evaluate(tmp_path / "control", against=place / "original", text=place / "corpus.txt", **SCORING)
    kl = {bits: compared(place, f"w{bits}").report.rows[0].report.kl for bits in (3, 4)}
    assert report.kl and kl[4] < report.kl < kl[3]


def test_no_control_is_smaller_than_two_bits(place: Path, tmp_path: Path) -> None:
    from llmc.pipeline.controls import Controls

    controls = Controls(place / "original")
    with pytest.raises(LlmcError) as caught:
        controls.write(1000, tmp_path / "control", None)
    smallest = controls._bytes(2, 0)
    assert str(caught.value) == (
        f"original: no rtn control has 1,000 bytes: 2 bits take {smallest:,}; leave out --control"
    )


def test_models_of_one_name_are_told_apart(place: Path, tmp_path: Path) -> None:
    for parent in ("mine", "theirs"):
        shutil.copytree(place / "w4", tmp_path / parent / "out")
    names = [tmp_path / parent / "out" for parent in ("theirs", "mine")]
    rows = llmc.compare(names, against=place / "original", text=place / "corpus.txt", **SCORING).report.rows  # type: ignore[union-attr]
    assert [row.label for row in rows] == ["mine/out", "theirs/out"]
    assert [row.dominated_by for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["w4", "w4"], {}, "w4 is given twice; name each model once"),
        ([], {}, "no model to compare; llmc compare A B --against MODEL"),
        (["w4"], {"text": None}, "--text: nothing to measure on; give --text FILE, --task FILE or both"),
        (["w4"], {"text": None, "tasks": ["x.jsonl"], "degeneration": True}, "--degeneration: it needs a text; "),
        (["w4"], {"gates": ["kl << 1"]}, "cannot read gate 'kl << 1'; "),
        (["w4"], {"gates": ["flip_rate < 1"]}, "gate 'flip_rate < 1': no task is evaluated; "),
    ],
)
def test_refusals(place: Path, names: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcError) as caught:
        compared(place, *names, **options)
    assert str(caught.value).startswith(message) and caught.value.exit_code == 2


def test_gates_are_held_against_each_model_but_no_control(place: Path) -> None:
    kl = {row.label: row.report.kl for row in compared(place, "w3", "w4").report.rows}
    middle = (kl["w3"] + kl["w4"]) / 2
    result = compared(place, "w3", "w4", control=True, gates=[f"kl < {middle}"])
    assert [(gate.model, gate.outcome) for gate in result.gates] == [("w3", "failed"), ("w4", "passed")]
    assert result.failure is not None and "of w3 failed at" in str(result.failure)
    undecided = compared(place, "w4", gates=[f"kl < {kl['w4'] * 1.0001}"])
    assert [gate.outcome for gate in undecided.gates] == ["unresolved"] and undecided.failure is not None
    allowed = compared(place, "w4", gates=[f"kl < {kl['w4'] * 1.0001}"], allow_unresolved=True)
    assert allowed.gates[0].outcome == "unresolved" and allowed.failure is None


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = execute([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_line_writes_what_it_was_asked_for(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    files = ["--report", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "t.md"), "--plots", str(tmp_path / "p")]
    how = ["--context", "64", "--stride", "64", "--max-tokens", "1500", "--against", str(place / "original")]
    text = ["--text", str(place / "corpus.txt")]
    code, plain = run_json(
        capsys, "compare", str(place / "w4"), str(place / "w3"), *how, *text, *files, "--gate", "kl < 1e-9"
    )
    assert code == 1 and plain["error"]["kind"] == "gate"
    jsonschema.validate(plain, schema())
    assert [row["label"] for row in plain["rows"]] == ["w3", "w4"]
    assert "FAILED" in (tmp_path / "t.md").read_text()
    assert "<!doctype html>" in (tmp_path / "r.html").read_text().lower()
    assert {path.suffix for path in (tmp_path / "p").iterdir()} == {".svg", ".png"}
    code, plain = run_json(capsys, "eval", str(place / "w4"), *how, *text, "--gate", "kl < 100")
    assert code == 0 and plain["gates"] == [
        {
            "gate": "kl < 100",
            "passed": True,
            "outcome": "passed",
            "value": plain["kl"],
            "interval": plain["intervals"]["kl"],
        }
    ]
    code, again = run_json(capsys, "eval", str(place / "w4"), *how, *text, "--cache-size", "0", "--gate", "kl < 100")
    assert code == 0 and again == plain
    code, plain = run_json(capsys, "cache")
    assert code == 0 and [entry["model"] for entry in plain["entries"]] == ["original"]


@pytest.mark.parametrize(
    ("option", "path", "problem"),
    [
        ("--report", "missing/r.html", "its folder does not exist; make it first"),
        ("--markdown", ".", "it is a folder, not a file"),
        ("--plots", "file", "it is not a folder"),
        ("--plots", "file/plots", "it is not a folder"),
        ("--markdown", "pipe", "it is not a regular file"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, path: str, problem: str
) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    target = str(tmp_path / path) if path != "." else str(tmp_path)
    code = execute(["compare", str(place / "w4"), "--against", "nowhere", "--text", "x", option, target])
    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: {option} {target}: {problem}")


def test_one_file_for_two_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "r")
    code = execute(["compare", "a", "--against", "b", "--text", "x", "--report", target, "--markdown", target])
    assert code == 2
    assert capsys.readouterr().err == f"error: --markdown {target}: it is the file of --report too\n"


def test_figures_are_shown_where_their_file_cannot_be_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def full(path: Path, target: Path) -> Path:
        if path.name.startswith(".t.md."):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", full)
    how = ["--context", "64", "--max-tokens", "300", "--stride", "64", "--against", str(place / "original")]
    target = ["--text", str(place / "corpus.txt"), "--cache-size", "0", "--markdown", str(tmp_path / "t.md")]
    code, plain = run_json(capsys, "compare", str(place / "w4"), *how, *target)
    assert code == 3 and plain["error"]["message"] == "cannot be written: No space left on device"
    assert plain["rows"][0]["label"] == "w4" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["cache"], ["eval", "x", "--text", "y"]])
@pytest.mark.parametrize("name", ["", "file"])
def test_a_cache_that_is_no_folder_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    name: str,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert execute([*arguments, "--cache", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: --cache: not a folder: {name!r}; ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit: limit 0 leaves no item"),
        ({"device": "cuda:99"}, "--device: device 'cuda:99' is not available here"),
        ({"device": "cuda:x"}, "--device: device 'cuda:x' is not available here"),
    ],
)
def test_options_out_of_range_are_refused(place: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcError) as caught:
        llmc.evaluate(place / "w4", text=place / "corpus.txt", **options)
    assert str(caught.value).startswith(message) and caught.value.exit_code == 2


def test_bits_per_byte_need_no_common_tokenizer(place: Path, tmp_path: Path) -> None:
    """Another tokenizer cuts the same bytes otherwise: the total likelihood counts, not that of a token."""
    text = place / "corpus.txt"
    options: dict[str, Any] = {"context": 64, "stride": 64, "bits_per_byte": True, "text": text}
    report = llmc.evaluate("tiny", against=place / "original", **options)
    assert report.kl is None and report.perplexity_ratio is None
    for folder, found in (("tiny", report.bits_per_byte), (place / "original", report.original_bits_per_byte)):
        alone = llmc.evaluate(folder, text=text, context=64, stride=64)
        ids = tokens_of(folder, text)
        expected = math.log2(alone.perplexity or 0) * ids / len(text.read_bytes())
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("swapped", [False, True])
def test_bits_per_byte_of_a_part_are_of_the_bytes_that_its_tokens_cover(
    place: Path, tmp_path: Path, swapped: bool
) -> None:
    """Also where the other tokenizer needs fewer tokens for that part than `max_tokens`."""
    candidate, original = (place / "original", "tiny") if swapped else ("tiny", place / "original")
    options: dict[str, Any] = {"context": 64, "stride": 64, "bits_per_byte": True}
    text = place / "corpus.txt"
    report = llmc.evaluate(candidate, against=original, text=text, max_tokens=300, **options)
    covered = first_of(original, text, 300)
    (tmp_path / "part.txt").write_text(covered)
    alone = llmc.evaluate(candidate, text=tmp_path / "part.txt", **options)
    assert len(covered) < len(text.read_text())
    assert report.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-12)


def first_of(folder: str | Path, text: Path, tokens: int) -> str:
    from transformers import AutoTokenizer

    from llmc.embedded.names import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(str(folder)))
    ids = tokenizer(text.read_text())["input_ids"][:tokens]
    return tokenizer.decode(ids, skip_special_tokens=True)


def tokens_of(folder: str | Path, text: Path) -> int:
    from transformers import AutoTokenizer

    from llmc.embedded.names import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(str(folder)))
    return len(tokenizer(text.read_text())["input_ids"])


def test_logits_that_are_no_numbers_name_their_layer(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "original", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 4] = torch.nan
    save_file(tensors, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LlmcError) as caught:
        llmc.evaluate(tmp_path / "broken", against=place / "original", text=place / "corpus.txt", **SCORING)
    assert str(caught.value).startswith(
        "broken: its logits give no finite loss in window 0 (tokens 0 to 63); "
        "first in model.layers.1.self_attn.v_proj (weight is not finite); "
    )


def test_degeneration_is_counted_on_both_models(place: Path) -> None:
    comparison = compared(place, "damaged", degeneration=True, speed=True).report
    jsonschema.validate(comparison.to_json(), schema())
    row = comparison.rows[0].report
    assert row.speed is not None and row.speed["decode_tokens_per_s"] > 0 and row.speed["load_seconds"] > 0
    found = row.degeneration
    assert found is not None and found["prompts"] == 32
    assert found["repetition_rate_difference"] == pytest.approx(
        found["repetition_rate"] - found["original_repetition_rate"]
    )
    assert 0 <= found["distinct_1"] <= found["distinct_2"] <= found["distinct_3"] <= 1


def test_an_encoder_is_measured_by_its_vectors(tmp_path: Path) -> None:
    original = build("bert", tmp_path / "original")
    copy = damaged(original, tmp_path / "damaged", 0.7)
    text = corpus(tmp_path, words=400)
    report = llmc.evaluate(copy, against=original, text=text)
    assert report.kl is None and report.embeddings is not None
    found = report.embeddings
    assert 0 < found["cosine"] < 1 and -1 <= found["rank_correlation"] < 1
    same = llmc.evaluate(original, against=original, text=text).embeddings
    assert same is not None and same["cosine"] == pytest.approx(1) and same["rank_correlation"] == pytest.approx(1)
    comparison: Any = llmc.compare([copy], against=original, text=text).report
    jsonschema.validate(comparison.to_json(), schema())
    assert comparison.rows[0].report.embeddings == found
    pairs = tmp_path / "sts.jsonl"
    lines = [line for line in text.read_text().splitlines() if line.strip()][:20]
    items = [
        {"sentence1": a, "sentence2": b, "score": float(i)}
        for i, (a, b) in enumerate(zip(lines[::2], lines[1::2], strict=False))
    ]
    pairs.write_text("\n".join(map(json.dumps, items)))
    scored = llmc.evaluate(copy, against=original, pairs=pairs).embeddings
    assert scored is not None and scored["pairs"] == len(items) and scored["correlation"] is not None


def test_an_encoder_decoder_is_measured_on_pairs(tmp_path: Path) -> None:
    original = build("t5", tmp_path / "original")
    copy = damaged(original, tmp_path / "damaged", 0.5)
    words = corpus(tmp_path, words=300).read_text().split()
    pairs = tmp_path / "pairs.jsonl"
    items = [{"source": " ".join(words[i : i + 5]), "target": " ".join(words[i + 5 : i + 8])} for i in range(0, 160, 8)]
    pairs.write_text("\n".join(map(json.dumps, items)))
    report = llmc.evaluate(copy, against=original, pairs=pairs)
    assert report.kl and report.kl > 0 and report.perplexity and "kl" in report.intervals
    assert report.tokens == report.windows.tokens.sum() and len(report.windows.tokens) == len(items)
    alone = llmc.evaluate(original, pairs=pairs)
    assert alone.perplexity == pytest.approx(report.original_perplexity) and alone.kl is None
    result = llmc.compare([copy], against=original, pairs=pairs)
    assert result.report.rows[0].report.kl == report.kl  # type: ignore[union-attr]
    assert np.isfinite(result.report.original.perplexity)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {"tasks": ["x.jsonl"]}, "m is an encoder; give --text or --pairs"),
        ("t5", {"text": "corpus.txt"}, "--text: m is an encoder-decoder; give --pairs"),
        ("llama", {"pairs": "pairs.jsonl"}, "--pairs: m is a decoder; give --text or --task"),
    ],
)
def test_each_kind_of_model_says_what_it_can_be_measured_on(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    model = build(name, tmp_path / "m")
    corpus(tmp_path, words=50)
    (tmp_path / "x.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    given: dict[str, Any] = {
        key: [tmp_path / v for v in value] if isinstance(value, list) else tmp_path / value
        for key, value in options.items()
    }
    with pytest.raises(LlmcError) as caught:
        llmc.evaluate(model, **given)
    assert str(caught.value).endswith(message)


def test_kinds_are_not_mixed(place: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcError) as caught:
        llmc.evaluate(build("bert", tmp_path / "m"), against=place / "original", text=place / "corpus.txt")
    assert str(caught.value) == "m is an encoder and original is a decoder; compare models of one kind"
