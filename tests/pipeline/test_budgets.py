"""Budgets end to end: bits per weight, bytes and a KL divergence are kept, refused in one line, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folders import digests

import llmc
from llmc.errors import LlmcError
from llmc.pipeline.budgets import CLOSE
from llmc.pipeline.execute import Execution

TINY: dict[str, Any] = {"calibration": "tiny:calibration", "num_samples": 16, "sequence_length": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budgets")
    tiny_models.build("llama", folder / "model", hidden_size=128, intermediate_size=256)
    tiny_models.corpus(folder)
    return folder


@pytest.fixture(scope="module")
def options(place: Path) -> dict[str, Any]:
    return {"model": str(place / "model"), "calibration": str(place / "corpus.txt"), **SHORT}


SHORT: dict[str, Any] = {"num_samples": 32, "sequence_length": 32}


def manifest(folder: Path) -> Any:
    return json.loads((folder / "llmc.json").read_text())


def weight_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def test_bits_per_weight_of_the_embedded_model(tmp_path: Path) -> None:
    result = llmc.quantize("tiny", tmp_path / "out", bits_per_weight=3.0, **TINY)
    assert result.folders["llmc"]["bits_per_weight"] == pytest.approx(3.0, rel=0.005)
    rows = manifest(tmp_path / "out")["targets"]
    rates = [row["bits_per_weight"] for row in rows]
    assert max(rates) - min(rates) > 0.3 and all(1.9 <= rate <= 5.1 for rate in rates)
    assert all(row["notes"]["relative_error"] > 0 for row in rows)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert llmc.verify(tmp_path / "out").ok


@pytest.mark.parametrize("size", [400_000, "500kB"])
def test_bytes_of_the_embedded_model(size: int | str, tmp_path: Path) -> None:
    """Embeddings take part, since they count."""
    llmc.quantize("tiny", tmp_path / "out", size=size, **TINY)
    most = size if isinstance(size, int) else 500_000
    assert 0.99 * most <= weight_bytes(tmp_path / "out") <= most
    assert any(row["target"].endswith("embed_tokens") for row in manifest(tmp_path / "out")["targets"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_more_bytes_than_all_could_use(options: dict[str, Any], tmp_path: Path) -> None:
    result = llmc.quantize(out=tmp_path / "out", size="1GiB", **options)
    assert 7.4 < result.folders["llmc"]["bits_per_weight"] <= 7.5


def test_rates_that_are_equal_need_no_survey(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmc.pipeline.run.with_rates", lambda job, *args, **kwargs: job)
    llmc.quantize(out=tmp_path / "plain" / "out", bits_per_weight=3.0, options={"rates": "equal"}, **options)
    monkeypatch.undo()
    result = llmc.quantize(out=tmp_path / "out", bits_per_weight=3.0, options={"rates": "equal"}, **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "plain" / "out")
    rates = [row["bits_per_weight"] for row in manifest(result.out)["targets"]]
    assert all(rate == pytest.approx(3.0, rel=0.01) for rate in rates)


def test_sharing_pays(options: dict[str, Any], place: Path, tmp_path: Path) -> None:
    """By the KL divergence, at equal bytes."""
    found = {}
    for rates in ("sensitivity", "equal"):
        llmc.quantize(out=tmp_path / rates, size=130_000, options={"rates": rates}, **options)
        report = llmc.evaluate(
            tmp_path / rates, text=place / "corpus.txt", against=place / "model", context=64, stride=64, max_tokens=2000
        )
        found[rates] = report.to_json()["kl"] if "kl" in report.to_json() else report.to_json()["figures"]["kl"]
    assert found["sensitivity"] < found["equal"]


def test_a_divergence_is_kept(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On sequences that no statistic saw; and not far below what is allowed."""
    judged = []

    def spy(*args: Any, **kwargs: Any) -> float:
        judged.append(judge(*args, **kwargs))
        return judged[-1]

    from llmc.pipeline import run as pipeline

    judge = pipeline._upper_kl
    monkeypatch.setattr("llmc.pipeline.run._upper_kl", spy)
    llmc.quantize(out=tmp_path / "out", max_kl=0.05, **options)
    within = [kl for kl in judged if kl <= 0.05]
    assert within and max(within) >= CLOSE * 0.05 / 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"size": "1MB", "max_kl": 0.1},
        "--size: two budgets are given; leave out --max-kl",
    ),
    (
        {"size": "1MB", "method": "gptq"},
        "--size: gptq has a size that its options give; use method trellis",
    ),
    (
        {"max_kl": 0.1, "method": "gptq"},
        "--max-kl: gptq has a size that its options give; use method trellis",
    ),
    (
        {"size": "1MB", "formats": ["dense"]},
        "--size: dense does not follow it; use format llmc alone",
    ),
    (
        {"bits_per_weight": 3.0, "entropy": True},
        "--entropy: format llmc is entropy coded already; leave it out",
    ),
    (
        {"max_kl": 0.1, "num_samples": 3},
        "3 calibration sequences leave too few for judging; use --num-samples 16 or more, or more text",
    ),
    (
        {"bits_per_weight": 9.0},
        "--bits-per-weight: bits_per_weight: 9.0 is out of range; use 0.25 to 7.5",
    ),
    ({"max_kl": 0.0}, "--max-kl: max_kl: 0.0 is out of range; use 1e-06 to 10.0"),
    ({"size": "much"}, "--size: not a size: 'much'; write it like 8GiB or 500MB"),
]


@pytest.mark.parametrize(("changes", "line"), REFUSED, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_refused_in_one_line(changes: dict[str, Any], line: str, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LlmcError) as caught:
        llmc.quantize(out=tmp_path / "out", **{**options, **changes})
    assert caught.value.exit_code == 2
    assert str(caught.value) == line
    assert not list(tmp_path.iterdir())


def test_a_size_that_is_too_small(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LlmcError, match="10,000 bytes cannot be reached: what is kept takes") as caught:
        llmc.quantize(out=tmp_path / "out", size=10_000, **options)
    assert caught.value.exit_code == 2 and caught.value.where == "--size"
    assert caught.value.fix.startswith("use at least ") and caught.value.fix.endswith(", or target more matrices")
    assert not list(tmp_path.iterdir())


def test_a_divergence_that_is_not_reached(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmc.pipeline.run._upper_kl", lambda *args, **kwargs: 1.0)
    with pytest.raises(LlmcError) as caught:
        llmc.quantize(out=tmp_path / "out", max_kl=0.05, **options)
    assert caught.value.message.startswith("a KL divergence of 0.05 was not reached: 1 at 7.")
    assert caught.value.where == "--max-kl" and caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_to_the_same_bytes(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the survey, then after it."""
    llmc.quantize(out=tmp_path / "whole" / "out", size=130_000, **options)
    write, calls = Execution._write, [0]

    def dying(self: Execution, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] in (5, 15):
            raise KeyboardInterrupt
        return write(self, *args)

    monkeypatch.setattr(Execution, "_write", dying)
    survey, partial = "out.llmc-survey.llmc-partial", "out.llmc-partial"
    for left in ([survey], [partial, survey]):
        with pytest.raises(KeyboardInterrupt):
            llmc.quantize(out=tmp_path / "cut" / "out", size=130_000, **options)
        assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == left
    llmc.quantize(out=tmp_path / "cut" / "out", size=130_000, **options)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert 18 < calls[0] < 25  # nothing that was finished is done again


def test_torch_threads_do_not_matter(options: dict[str, Any], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            llmc.quantize(out=tmp_path / str(threads) / "out", size=130_000, **options)
    finally:
        torch.set_num_threads(before)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
