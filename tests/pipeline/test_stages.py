"""Several stages: what each goes on from, what is kept of them, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from folders import digests

import llmc
from llmc.errors import InputError
from llmc.models.checkpoint import Checkpoint
from llmc.pipeline import stages

WANDA: dict[str, Any] = {"method": "wanda", "pattern": "2:4"}
GPTQ: dict[str, Any] = {"method": "gptq", "bits": 4, "group_size": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stages")
    tiny_models.build("llama", place / "model")
    tiny_models.corpus(place)
    return place


def recipe(place: Path, file: Path, *parts: dict[str, Any], **more: Any) -> str:
    document = {
        "model": str(place / "model"),
        "stages": list(parts),
        "calibration": {"source": str(place / "corpus.txt"), "num_samples": 8, "sequence_length": 32},
        **more,
    }
    file.write_text(json.dumps(document))
    return str(file)


@pytest.mark.parametrize("formats", [["compressed-tensors"], ["gptq"], ["dense"], ["compressed-tensors", "dense"]])
def test_pruned_then_quantized_in_every_container(place: Path, tmp_path: Path, formats: list[str]) -> None:
    asked = recipe(place, tmp_path / "r.yaml", {**WANDA, "targets": ["*mlp*"]}, GPTQ, formats=formats)
    plan = llmc.plan(recipe=asked)
    llmc.run(asked, tmp_path / "out")
    folders = [tmp_path / "out"] if len(formats) == 1 else [tmp_path / "out" / name for name in formats]
    written = sum(f.stat().st_size for folder in folders for f in folder.glob("*.safetensors"))
    assert plan.weight_bytes == written
    for folder in folders:
        assert llmc.verify(folder, against=place / "model").ok
        encoded = Checkpoint(folder, encoded=True)
        rows = json.loads((folder / "llmc.json").read_text())["targets"]
        assert {row["method"] for row in rows} == {"gptq", "wanda, gptq"}
        for target in encoded.targets:
            if "mlp" in target.name:
                groups = encoded.matrix(target).view(target.shape[0], -1, 4)
                assert int((groups != 0).sum(-1).max()) <= 2
    assert not list(tmp_path.glob("*.llmc-stage*")) and not list(tmp_path.glob(".*stage*"))


def test_what_is_pruned_only_stays_values(place: Path, tmp_path: Path) -> None:
    asked = recipe(place, tmp_path / "r.yaml", WANDA, {**GPTQ, "ignore": ["*down_proj"]})
    llmc.run(asked, tmp_path / "out")
    assert llmc.verify(tmp_path / "out", against=place / "model").ok
    encoded = Checkpoint(tmp_path / "out", encoded=True)
    down = next(t for t in encoded.targets if "down_proj" in t.name)
    assert down.tensor not in encoded.packed and float((encoded.matrix(down) == 0).float().mean()) == 0.5


def test_pruning_alone_gives_a_plain_model(place: Path, tmp_path: Path) -> None:
    text = str(place / "corpus.txt")
    options: dict[str, Any] = {"calibration": text, "num_samples": 8, "sequence_length": 32}
    llmc.quantize(str(place / "model"), tmp_path / "out", method="wanda", options={"sparsity": "75%"}, **options)
    assert llmc.verify(tmp_path / "out", against=place / "model").ok
    model = Checkpoint(tmp_path / "out")
    shares = [float((model.matrix(t) == 0).float().mean()) for t in model.targets if t.block and t.kind != "embedding"]
    assert shares == pytest.approx([0.75] * len(shares))


def test_another_last_stage_goes_on_from_the_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recipe(place, tmp_path / "a.yaml", WANDA, GPTQ)
    second = recipe(place, tmp_path / "b.yaml", WANDA, {**GPTQ, "bits": 3})
    llmc.run(second, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(*args: Any, **kwargs: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("llmc.pipeline.run.with_rates", stop)
        with pytest.raises(StoppedError):
            llmc.run(first, tmp_path / "out")
    kept = next(tmp_path.glob("*llmc-stage-0*"))
    before = digests(kept)
    seen: list[str] = []
    original = stages.execute

    def watched(job: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(job, *args, **kwargs)
        seen.extend(str(path) for path in kept.rglob("*") if path.is_file())
        assert digests(kept) == before
        return result

    monkeypatch.setattr(stages, "execute", watched)
    llmc.run(second, tmp_path / "out")
    assert seen and digests(tmp_path / "out") == digests(tmp_path / "whole") and not kept.exists()


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        ([GPTQ, WANDA], {}, "wanda takes weights, and gptq has made codes of them; put wanda first"),
        ([WANDA, {"method": "trellis"}], {}, "trellis would not keep the zeros of wanda; use gptq or rtn"),
        ([GPTQ, GPTQ], {}, "is targeted by stages 0 and 1; give one of them an ignore"),
        ([WANDA], {"formats": ["gptq"]}, "no stage encodes anything; use format dense"),
        ([{**WANDA, "pattern": "2:7"}, GPTQ], {}, "the pattern of stage 0 (wanda) does not divide"),
        ([{**WANDA, "sparsity": 2}], {}, "sparsity: 2.0 is out of range"),
        ([{**GPTQ, "aim": 2}], {}, "aim: 2.0 is out of range"),
        ([{**GPTQ, "aim": 0.5, "propagate": "original"}], {}, "a layer that sees the original's inputs has no drift"),
    ],
)
def test_orders_and_values_that_cannot_be(
    place: Path, tmp_path: Path, parts: list[dict[str, Any]], more: dict[str, Any], message: str
) -> None:
    asked = recipe(place, tmp_path / "r.yaml", *parts, **more)
    with pytest.raises(InputError) as error:
        llmc.run(asked, tmp_path / "out")
    assert message in str(error.value) and not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("method", ["gptq", "rtn", "trellis"])
def test_aiming_brings_outputs_nearer_to_the_original(place: Path, tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {"calibration": str(place / "corpus.txt"), "num_samples": 32, "sequence_length": 64}
    options |= (
        {"bits_per_weight": 3.0, "options": {"rates": "equal"}}
        if method == "trellis"
        else {"bits": 2, "group_size": 16}
    )
    measured: dict[str, Any] = {
        "text": place / "corpus.txt",
        "context": 64,
        "max_tokens": 2000,
        "against": place / "model",
    }
    errors = []
    for aim in (0.0, 1.0):
        out = tmp_path / str(aim)
        llmc.quantize(str(place / "model"), out, method=method, aim=aim, **options)
        assert llmc.verify(out, against=place / "model").ok
        errors.append(list(llmc.evaluate(out, **measured).layer_error.values())[-1])
    assert errors[1] < errors[0]
    again = llmc.quantize(str(place / "model"), tmp_path / "again", method=method, aim=1.0, max_memory="2GB", **options)
    assert digests(again.out, "*.safetensors") == digests(tmp_path / "1.0", "*.safetensors")
