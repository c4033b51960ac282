"""Artifacts changed in one place and sealed again as a forger would: `verify --against` names what matters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import llmc

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from mutations import artifacts, small_model

        place = tmp_path_factory.mktemp("mutations")
        model = small_model(place / "model")
        return model, artifacts(place, model)


def test_untouched_artifacts_are_verified(made: tuple[Path, dict[str, Path]]) -> None:
    model, kinds = made
    assert {kind: llmc.verify(folder, model).problems for kind, folder in kinds.items()} == dict.fromkeys(kinds, ())


@pytest.mark.parametrize("count", [54, pytest.param(700, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_every_change_that_matters_is_named(made: Any, tmp_path: Path, count: int) -> None:
    from mutations import judged, mutants

    model, kinds = made
    outcomes = [
        (kind, mutation, judged(folder, model, mutation))
        for kind, folder, mutation in mutants(kinds, count, count, tmp_path)
    ]
    assert len(outcomes) == count
    assert [each for each in outcomes if each[1].matters and each[2] != "named"] == []
    others = [each for each in outcomes if not each[1].matters and "no decoded value" not in each[1].kind]
    assert [each for each in others if each[2] != "listed"] == []


def test_a_forger_who_has_the_original(made: Any, tmp_path: Path) -> None:
    """He can say of other values how far they are from the original: that is what is printed then."""
    from mutation_kinds import recode
    from mutations import forge, reseal

    model, kinds = made
    folder = tmp_path / "forged"
    shutil.copytree(kinds["dense"], folder)
    recode(folder, "model.layers.0.mlp.up_proj.weight", lambda tensor: tensor * 1.25)
    reseal(folder)
    assert "model.layers.0.mlp.up_proj" in llmc.verify(folder, model).problems[0]
    forge(folder, model)
    result = llmc.verify(folder, model)
    assert result.problems == ()
    assert result.worst is not None and result.worst[0] == "model.layers.0.mlp.up_proj"
    assert result.worst[1] < 13


def test_a_matrix_of_noise_is_a_difference_whatever_is_recorded(made: Any, tmp_path: Path) -> None:
    from mutation_kinds import recode
    from mutations import forge, reseal

    model, kinds = made
    folder = tmp_path / "forged"
    shutil.copytree(kinds["dense"], folder)
    recode(folder, "model.layers.0.mlp.up_proj.weight", torch.randn_like)
    reseal(folder)
    forge(folder, model)
    (problem,) = llmc.verify(folder, model).problems
    assert problem.endswith("its errors are larger than its values")
