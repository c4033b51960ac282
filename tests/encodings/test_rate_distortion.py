"""The benchmarks of error against bytes: their bounds, what they count as stored, and their pages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DENSITIES = {
    "gaussian": lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    "laplace": lambda x: np.exp(-np.abs(x)) / 2,
    "student-t": lambda x: 0.375 * (1 + x * x / 4) ** -2.5,  # 4 degrees of freedom
}


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", DENSITIES)
def test_entropies_are_those_of_the_densities(name: str) -> None:
    """Against a sum over the density: x = sinh(t), so that the tails are in it."""
    from rate_distortion import differential_entropy

    t = np.linspace(-12, 12, 400_001)
    density, width = DENSITIES[name](np.sinh(t)), np.cosh(t) * (t[1] - t[0])
    seen = density > 0
    h = -(density[seen] * np.log2(density[seen]) * width[seen]).sum()
    assert (density * width).sum() == pytest.approx(1, abs=1e-6)
    assert differential_entropy(name) == pytest.approx(h, abs=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
def test_what_is_drawn_follows_the_density(name: str) -> None:
    from rate_distortion import draw

    values = np.sort(draw(name, 400).double().numpy().reshape(-1))
    t = np.linspace(-12, 12, 100_001)
    cumulated = np.cumsum(DENSITIES[name](np.sinh(t)) * np.cosh(t)) * (t[1] - t[0])
    distance = np.abs(np.interp(values, np.sinh(t), cumulated) - (np.arange(values.size) + 0.5) / values.size).max()
    assert distance < 1.95 / math.sqrt(values.size)  # Kolmogorov and Smirnov: once in a thousand seeds


def test_the_bound_of_normal_weights_is_half_a_log() -> None:
    from rate_distortion import bound, differential_entropy

    assert bound(differential_entropy("gaussian"), 1 / 16) == pytest.approx(2)
    assert bound(differential_entropy("gaussian") + 3, 64 / 16) == pytest.approx(2)  # eight times as wide
    assert bound(differential_entropy("gaussian"), 2) == 0


def test_bytes_are_those_of_codes_and_scales() -> None:
    from rate_distortion import Setting, draw, encode

    W = draw("gaussian", 256)
    _, stored, coded = encode(W, Setting("int", 3, 64))
    assert stored == 256 * 256 * 3 // 8 + 2 * 256 * 256 // 64
    assert coded is not None and coded < stored
    _, stored, _ = encode(W, Setting("int", 4, "channel"))
    assert stored == 256 * 256 // 2 + 2 * 256
    _, stored, _ = encode(W, Setting("nf4", 4, 64))
    assert stored == 256 * 256 // 2 + 4 * 256 * 256 // 64


def test_a_row_is_measured_from_what_is_read_back() -> None:
    from rate_distortion import Setting, draw, encode, measured

    from llmc.encodings.coding import trellis_stream

    setting = Setting("trellis", 2, 8)
    row = measured("gaussian", setting, 256, 1)
    W = draw("gaussian", 256)
    matrix, stored, coded = encode(W, setting)
    stream = trellis_stream.pack(matrix)
    back = trellis_stream.unpack(stream, (256, 256), torch.float32).dequantize().double()
    assert coded is None and row.coded is None and stream.size <= stored < stream.size + 64
    assert row.stored == 8 * stored / W.numel() <= 2.01
    assert row.error == pytest.approx(float((back - W).square().sum() / W.double().square().sum()))
    assert 0.05 < row.gap < 0.13


def test_rows_are_kept_and_the_page_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import rate_distortion

    rows, out = tmp_path / "rows.jsonl", tmp_path / "page"
    words = ["x", "--side", "128", "--source", "gaussian", "--states", "8", "--rates", "1", "2", "3", "4"]
    monkeypatch.setattr("sys.argv", [*words, "--grids", "trellis", "nf4", "--rows", str(rows), "--out", str(out)])
    rate_distortion.main()
    first = capsys.readouterr()
    rate_distortion.main()
    again = capsys.readouterr()
    assert first.err.count("gaussian: ") == 5 and again.err == ""
    page = out.with_suffix(".md").read_text()
    assert "| trellis, 8 states | 128 | 0.09 |" in page and "nf4 g64, 4 bits" in page
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
    assert len(rows.read_text().splitlines()) == 5


def test_matrices_of_a_model_are_held_against_their_own_variance(tmp_path: Path) -> None:
    from rate_distortion import bound, matrices
    from tiny_models import build

    found = list(matrices(str(build("gpt2", tmp_path)), 0, 3))
    assert 1 < len(found) <= 3
    for W, entropy in found:
        assert bound(entropy, float(W.double().square().mean()) / 16) == pytest.approx(2)


def test_vectors_that_are_as_far_off_as_the_mean_have_error_one() -> None:
    from encoder_error import distances

    true = np.random.default_rng(0).standard_normal((50, 8))
    assert distances(true, true) == pytest.approx((0, 0))
    mean = np.broadcast_to(true.mean(0), true.shape)
    assert distances(mean, true)[0] == pytest.approx(1)
    assert distances(3 * true, true)[1] == pytest.approx(0)
    assert distances(-true, true)[1] == pytest.approx(2)


def test_sentences_are_spread_over_the_text() -> None:
    from encoder_error import sentences

    text = " ".join(f"This is sentence number {i:04d} of a very long and dull text." for i in range(1000)) + " Short."
    found = sentences(text, 10)
    assert [each.split()[4] for each in found] == [f"{i:04d}" for i in range(0, 1000, 100)]
    assert len(sentences(text, 5000)) == 1000


def test_vectors_rows_are_kept(tmp_path: Path) -> None:
    from dataclasses import asdict

    from encoder_error import Row, kept

    rows = [Row(bits, "gptq", 3.1, 0.25, 0.1, 1.0) for bits in (2, 3)]
    file = tmp_path / "rows.jsonl"
    assert kept(None) == kept(file) == []
    file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    assert kept(file) == rows


def test_the_page_compares_with_the_best_baseline() -> None:
    from encoder_error import EQUAL, SENSITIVE, Row, report

    made: list[tuple[str, float]] = [("gptq a", 0.4), ("gptq b", 0.2), (EQUAL, 0.05), (SENSITIVE, 0.04)]
    rows = [Row(3, label, 3.1, error, 0.1, 1.0) for label, error in made]
    settings: dict[str, Any] = dict.fromkeys(("model", "calibration", "text", "sentences"), "x")
    settings |= {"num_samples": 1, "sequence_length": 1, "cast": 1e-6}
    document = {"machine": {"processor": "p", "cores": 1}, "settings": settings}
    page = report(json.loads(json.dumps(document)), rows)
    assert "| 3 | gptq b | 0.2 | 0.250 | 0.200 | 0.30 | yes |" in page
