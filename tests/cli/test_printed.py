"""What plan and quantize print: sizes people read, the method that was chosen, errors that rank methods rightly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import llmc
from llmc.calibration.data import CalibrationOptions, load_calibration
from llmc.calibration.mixture import load_mixture
from llmc.cli import execute
from llmc.pipeline.run import RunResult
from llmc.results import in_words, size

SMALL: dict[str, Any] = {"group_size": 32, "num_samples": 8, "sequence_length": 32}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB (1,000)"),
        (5_370_744, "5.37 MB (5,370,744)"),
        (999_999, "1 MB (999,999)"),
        (14_696_792_000, "14.7 GB (14,696,792,000)"),
        (3e15, "3,000 TB (3,000,000,000,000,000)"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_times() -> None:
    assert in_words((0.5, 61)) == "0.5 s to 61 s"
    assert in_words((95, 4000)) == "1.6 min to 67 min" and in_words((5400, 36000)) == "1.5 h to 10 h"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("printed") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.corpus(tmp_path_factory.mktemp("text")))


def cells(result: Any) -> dict[str, str]:
    return {row[0]: row[1] for table in result.tables() for row in table.rows if len(row) == 2}


def test_a_plan_says_what_will_be_done_and_about_how_long_it_takes(model: Path, text: str) -> None:
    plan = llmc.plan(str(model), method="gptq", calibration=text, **SMALL)
    shown = cells(plan)
    line = f"gptq, 4 bits, groups of 32; format compressed-tensors; calibrated on {Path(text).name}, 8 x 32 tokens"
    assert shown["method"] == plan.method == line
    assert shown["model.safetensors"] == size(plan.weight_bytes)
    assert plan.original_bytes == (model / "model.safetensors").stat().st_size
    assert shown["of the original files"] == f"{plan.weight_bytes / plan.original_bytes:.1%}"
    assert plan.seconds is not None and 0 < plan.seconds[0] < plan.seconds[1] < 3600
    assert shown["time on this machine, about"] == in_words(plan.seconds)
    assert plan.to_json()["seconds"] == list(plan.seconds)


def test_time_grows_with_the_work(text: str, tmp_path: Path) -> None:
    """A model of ten times the matrices, or many more tokens, is said to take longer; by how much is not tested."""
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6}
    large = tiny_models.build("llama", tmp_path / "large", **sizes)
    options: dict[str, Any] = {"method": "gptq", "calibration": text, **SMALL}
    few = llmc.plan(str(large), **options).seconds
    many = llmc.plan(str(large), **{**options, "num_samples": 100_000}).seconds
    assert few is not None and many is not None and many[0] > 2 * few[0]


def test_a_budget_says_who_reads_its_format(model: Path, text: str) -> None:
    plan = llmc.plan(str(model), size="120kB", calibration=text, num_samples=8, sequence_length=32)
    (note,) = [n for n in plan.notes if "format llmc" in n]
    assert "--format compressed-tensors" in note and "llmc export --format dense" in note
    assert "format llmc" in plan.method


def test_quantize_prints_errors_of_outputs(model: Path, text: str, tmp_path: Path) -> None:
    result = llmc.quantize(str(model), tmp_path / "gptq", method="gptq", calibration=text, **SMALL)
    rows = json.loads((tmp_path / "gptq" / "llmc.json").read_text())["targets"]
    mean = sum(row["notes"]["relative_error"] for row in rows) / len(rows)
    (table, *_) = result.tables()
    assert table.columns[-1] == "output error" and table.rows[0][-1] == f"{mean:.3%}"
    assert result.folders["compressed-tensors"]["mean_output_error"] == pytest.approx(mean)
    assert "SNR" not in str(result.tables())
    rounded = llmc.quantize(str(model), tmp_path / "rtn", group_size=32)
    assert rounded.tables()[0].rows[0][-1] == "not measured"


# Check


def test_sequences_beyond_are_those_that_come_next(text: str) -> None:
    tokenizer = tiny_models.byte_tokenizer()
    options = CalibrationOptions(text, num_samples=8, sequence_length=32)
    used = {tuple(row) for row in load_calibration(options, tokenizer, 256).token_ids.tolist()}
    beyond = [tuple(row) for row in load_calibration(options, tokenizer, 256, beyond=5).token_ids.tolist()]
    assert len(beyond) == 5 and not used & {*beyond}
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(32, generator=generator)  # four candidates for each that is drawn
    assert len(order[8:13]) == 5
    whole = CalibrationOptions(text, num_samples=10_000, sequence_length=32)
    assert len(load_mixture(whole, tokenizer, 256, beyond=5).token_ids) == 0


def test_a_check_measures_without_changing_anything(model: Path, text: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "gptq", "calibration": text, **SMALL}
    plain = llmc.quantize(str(model), tmp_path / "plain", **options)
    checked = llmc.quantize(str(model), tmp_path / "checked", **options, check=True)
    assert plain.check is None and checked.check is not None and checked.check.skipped == ""
    for name in ("model.safetensors", "README.md", "llmc.json"):
        one, other = (hashlib.sha256((tmp_path / f / name).read_bytes()).digest() for f in ("plain", "checked"))
        assert one == other
    assert checked.check.kl is not None and checked.check.interval is not None
    low, high = checked.check.interval
    assert 0 < low <= checked.check.kl <= high and checked.check.sequences == 16
    assert checked.to_json()["check"]["kl"] == checked.check.kl and "check" not in plain.to_json()
    (table,) = [t for t in checked.tables() if t.title == "Check"]
    assert table.rows[0][0] == "KL divergence, nats"
    wide = llmc.quantize(str(model), tmp_path / "w8", **{**options, "options": {"bits": 8}}, check=True).check
    assert wide is not None and wide.kl is not None and wide.kl < checked.check.kl / 10


def test_what_cannot_be_checked_is_said(model: Path, text: str, tmp_path: Path) -> None:
    def skipped(*arguments: Any, **options: Any) -> str:
        result: RunResult = llmc.quantize(*arguments, **options, check=True)
        assert result.check is not None and result.check.kl is None
        assert result.check.table().rows == (("not checked", result.check.skipped),)
        return result.check.skipped

    options: dict[str, Any] = {"calibration": text, "group_size": 32, "sequence_length": 32}
    assert skipped(str(model), tmp_path / "all", num_samples=10_000, **options).startswith(
        "the calibration text has no sequence beyond those it was calibrated on; give more text, or fewer --num-samples"
    )
    assert skipped(str(model), tmp_path / "rtn", group_size=32) == (
        "--check: there is no calibration text to draw from; add --calibration FILE"
    )
    bert = tiny_models.build("bert", tmp_path / "bert")
    assert skipped(str(bert), tmp_path / "encoder", num_samples=8, **options) == "it predicts no next token"


def test_the_command_line_checks_small_models_by_itself(
    model: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize = ["quantize", str(model), "--group-size", "32", "--json"]
    calibrate = ["--calibration", text, "--num-samples", "8", "--sequence-length", "32"]
    for name, more, checked in (("a", calibrate, True), ("b", [*calibrate, "--no-check"], False), ("c", [], False)):
        assert execute([*quantize, "-o", str(tmp_path / name), *more]) == 0
        assert ("check" in json.loads(capsys.readouterr().out)) == checked


def test_a_comparison_says_what_each_model_is(model: Path, text: str, tmp_path: Path) -> None:
    llmc.quantize(str(model), tmp_path / "a", method="gptq", calibration=text, **SMALL)
    llmc.quantize(str(model), tmp_path / "b", group_size=32, bits=8)
    measured: dict[str, Any] = {"text": text, "context": 64, "max_tokens": 300}
    compared: Any = llmc.compare([tmp_path / "a", tmp_path / "b", model], against=model, **measured).report
    shown = str(compared.notes)
    line = f"a: gptq, 4 bits, groups of 32; format compressed-tensors; calibrated on {Path(text).name}, 8 x 32 tokens"
    (of_a, of_b) = (row.report.matrix_error for row in compared.rows if row.label != model.name)
    targets = json.loads((tmp_path / "a" / "llmc.json").read_text())["targets"]
    noted = {row["target"]: row["notes"]["relative_error"] for row in targets}
    assert {name: found["output_error"] for name, found in of_a.items()} == noted
    assert all(set(found) == {"snr_db"} for found in of_b.values()) and set(of_a) == set(of_b)
    assert line in shown and "b: rtn, 8 bits, groups of 32; format compressed-tensors'" in shown
    for spoiled in ('{"format_version": 2, "recipe": {"stages": [{"bits": []}]}, "sizes": {}}', "[]", "{"):
        (tmp_path / "b" / "llmc.json").write_text(spoiled)
        assert "b: rtn" not in str(llmc.compare([tmp_path / "b"], against=model, **measured).report.notes)
