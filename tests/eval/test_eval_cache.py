"""What is kept of an original: used when all it depends on is the same, and never when it is not as it was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, corpus

from llmc.errors import StorageError
from llmc.eval import subject as subjects
from llmc.eval.cache import ABOUT, DATA, Cache, contents
from llmc.eval.evaluation import evaluate
from llmc.eval.reports.report import EvalReport
from llmc.files.safetensors import load

SHAPES = {"a": (torch.float32, (3, 2)), "b": (torch.int64, (4,))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cached")
    build("llama", place / "original")
    shutil.copytree(place / "original", place / "damaged")
    tensors = load_file(place / "damaged" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 0.5
    save_file(tensors, place / "damaged" / "model.safetensors", metadata={"format": "pt"})
    corpus(place, words=300)
    items = [{"query": f"the {w}", "choices": ["river", "stone"], "gold": i % 2} for i, w in enumerate("abcdefgh")]
    (place / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    return place


def run(place: Path, cache: Path | None, **changes: Any) -> EvalReport:
    options: dict[str, Any] = {"text": place / "corpus.txt", "context": 64, "stride": 32, "max_tokens": 500, **changes}
    tasks = [place / "items.jsonl"]
    return evaluate(place / "damaged", against=place / "original", tasks=tasks, cache=cache, **options)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were opened."""
    names: list[str] = []
    real = subjects.open_model

    def note(folder: Path, **options: Any) -> tuple[Any, Any]:
        names.append(folder.name)
        return real(folder, **options)

    monkeypatch.setattr(subjects, "open_model", note)
    return names


def same(one: EvalReport, other: EvalReport) -> bool:
    return {**one.to_json(), "notes": 0} == {**other.to_json(), "notes": 0}


def test_a_second_candidate_does_not_open_the_original(place: Path, tmp_path: Path, opened: list[str]) -> None:
    first, second = run(place, tmp_path), run(place, tmp_path)
    assert opened == ["original", "damaged", "damaged"]
    assert same(first, second) and same(first, run(place, None))
    assert first.kl and first.layer_error["model.layers.0"] == 0 < first.layer_error["model.layers.1"]


@pytest.mark.parametrize("change", [{"stride": 64}, {"max_tokens": 400}, {"dtype": "bfloat16"}, {"limit": 5}])
def test_what_a_figure_depends_on_is_part_of_the_key(
    place: Path, tmp_path: Path, opened: list[str], change: dict[str, Any]
) -> None:
    run(place, tmp_path)
    changed = run(place, tmp_path, **change)
    assert opened == ["original", "damaged"] * 2
    assert same(changed, run(place, None, **change))


def test_an_original_with_other_weights_is_measured(place: Path, tmp_path: Path, opened: list[str]) -> None:
    shutil.copytree(place / "original", tmp_path / "original")
    run(place, tmp_path / "cache")
    tensors = load_file(tmp_path / "original" / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, tmp_path / "original" / "model.safetensors", metadata={"format": "pt"})
    options: dict[str, Any] = {"text": place / "corpus.txt", "context": 64, "stride": 32, "max_tokens": 500}
    evaluate(place / "damaged", against=tmp_path / "original", cache=tmp_path / "cache", **options)
    assert opened == ["original", "damaged"] * 2


@pytest.mark.parametrize("how", ["flip", "truncate", "version", "no data", "not json"])
def test_a_spoiled_entry_is_measured_again_and_a_note_says_so(
    place: Path, tmp_path: Path, opened: list[str], how: str
) -> None:
    clean = run(place, tmp_path)
    for about in tmp_path.glob(f"*/{ABOUT}"):
        spoil(about, how)
    again = run(place, tmp_path)
    assert opened == ["original", "damaged"] * 2
    assert same(clean, again)
    expected = {"version": "of format version 99, not 1", "not json": "not readable"}.get(how, "damaged")
    assert len(again.notes) == 2 and all(
        note.startswith("cache: the entry ") and expected in note and note.endswith("removed, and measured again")
        for note in again.notes
    )
    assert not run(place, tmp_path).notes


def spoil(about: Path, how: str) -> None:
    data = about.parent / DATA
    if how == "version":
        about.write_text(json.dumps({**json.loads(about.read_text()), "format_version": 99}))
    elif how == "not json":
        about.write_text("{")
    elif how == "no data":
        data.unlink()
    else:
        content = bytearray(data.read_bytes())
        content[-1] ^= 1
        data.write_bytes(content if how == "flip" else content[:-1])


@pytest.mark.parametrize(
    ("name", "change"),
    [("generation_config.json", {"eos_token_id": 5}), ("tokenizer_config.json", {"add_prefix_space": True})],
)
def test_an_original_of_other_settings_is_measured(
    place: Path, tmp_path: Path, opened: list[str], name: str, change: dict[str, Any]
) -> None:
    original = shutil.copytree(place / "original", tmp_path / "original")
    options: dict[str, Any] = {"tasks": [place / "items.jsonl"], "cache": tmp_path / "cache"}
    evaluate(place / "damaged", against=original, **options)
    (original / name).write_text(json.dumps({**json.loads((original / name).read_text()), **change}))
    evaluate(place / "damaged", against=original, **options)
    assert opened == ["original", "damaged"] * 2


def test_the_head_that_is_kept_is_that_of_the_model_which_was_opened(place: Path, tmp_path: Path) -> None:
    """An opener may give a model other settings than its folder says."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 16,
    }
    torch.manual_seed(3)
    config = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=5.0)
    shutil.copytree(place / "original", tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "m")

    def sharper(folder: Path) -> tuple[Any, Any]:
        model, tokenizer = subjects.open_model(folder)
        model.config.final_logit_softcapping = 0.01
        return model, tokenizer

    text = place / "corpus.txt"
    report = evaluate(
        tmp_path / "m", against=tmp_path / "m", text=text, max_tokens=300, context=64, opener=sharper, stride=64
    )
    assert report.kl == 0 and report.perplexity == report.original_perplexity


def test_an_entry_that_makes_room_for_the_next_is_still_read(place: Path, tmp_path: Path) -> None:
    plain = run(place, tmp_path / "all")
    states = max(entry["bytes"] for entry in contents(tmp_path / "all").to_json()["entries"])
    tight = run(place, tmp_path / "tight", cache_limit=states + 1)
    assert same(tight, plain) and not tight.notes
    assert [entry["kind"] for entry in contents(tmp_path / "tight").to_json()["entries"]] == ["task"]


def test_what_exceeds_the_limit_is_not_kept(place: Path, tmp_path: Path, opened: list[str]) -> None:
    report = run(place, tmp_path, cache_limit=10_000)
    assert same(report, run(place, None))
    assert report.notes == ("original: its states exceed the cache's 10,000 bytes: not kept",)
    assert contents(tmp_path).to_json()["bytes"] <= 10_000


def fill(cache: Cache, number: int) -> None:
    with cache.writing({"n": number}, {"kind": "test", "model": f"m{number}"}, SHAPES) as writer:
        writer.write("a", torch.full((2, 2), float(number)), 1)
        writer.write("b", torch.arange(4) + number)


def test_entries_hold_what_was_written_and_the_oldest_make_room(tmp_path: Path) -> None:
    import os

    probe = Cache(tmp_path / "probe", 1 << 20)
    fill(probe, 0)
    size = probe.entries()[0].bytes
    cache = Cache(tmp_path / "cache", 3 * size)
    for number in range(3):
        fill(cache, number)
        os.utime(next((tmp_path / "cache").glob(f"*/{ABOUT}")), (number, number))
    for number in range(3):
        kept = cache.find({"n": number})
        assert kept is not None
        os.utime(kept.folder / ABOUT, (100 - number, 100 - number))
    fill(cache, 3)
    assert cache.find({"n": 2}) is None, "the longest unused"
    found = cache.find({"n": 1})
    assert found is not None
    tensors = {name: load(entry) for name, entry in found.tensors().items()}
    assert tensors["a"].tolist() == [[0, 0], [1, 1], [1, 1]] and tensors["b"].tolist() == [1, 2, 3, 4]
    assert sum(kept.bytes for kept in cache.entries()) <= 3 * size


def test_of_two_writers_of_one_entry_the_first_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    with cache.writing({"n": 1}, {"kind": "second"}, SHAPES):
        with cache.writing({"n": 1}, {"kind": "first"}, SHAPES):
            assert len(list(tmp_path.iterdir())) == 2, "neither removed what the other is writing"
        assert cache.clear() == 1 and len(list(tmp_path.iterdir())) == 1
        fill(cache, 1)
    kept = cache.find({"n": 1})
    assert kept is not None and kept.about["kind"] == "test"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_removal_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    fill(cache, 1)
    next(tmp_path.glob(f"*/{ABOUT}")).unlink()
    fill(cache, 1)
    assert cache.find({"n": 1}) is not None


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from llmc.eval.cache import Cache
with Cache(Path(sys.argv[1]), 1 << 20).writing({}, {}, {"a": (torch.float32, (3,))}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert [path.name.split(".")[1][:7] for path in tmp_path.iterdir()] == ["partial"]
    fill(Cache(tmp_path, 1 << 20), 1)
    assert [path.parent for path in tmp_path.glob(f"*/{ABOUT}")] == list(tmp_path.iterdir())


def test_what_is_no_entry_stays(tmp_path: Path) -> None:
    for name in ("mine", "x.partial-y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ABOUT).write_text('{"bytes": 9, "about": {}, "format_version": 1, "sha256": ""}')
    cache = Cache(tmp_path, 400)
    fill(cache, 1)
    assert cache.clear() == 1 and len(cache.entries()) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "x.partial-y"]


def test_a_failed_measurement_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    with pytest.raises(ZeroDivisionError), cache.writing({}, {}, SHAPES):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught, Cache(tmp_path / "file" / "cache", 1 << 20).writing({}, {}, SHAPES):
        pass
    assert "the cache cannot be written: Not a directory" in str(caught.value)


def test_contents_say_what_is_held_and_can_be_removed(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path)
    held = contents(tmp_path)
    plain = held.to_json()
    assert [entry["kind"] for entry in plain["entries"]] == ["task", "text"]
    assert plain["bytes"] == sum((path.stat().st_size) for path in tmp_path.glob(f"*/{DATA}"))
    assert held.tables()[0].rows[-1][0] == "2 entries"
    cleared = contents(tmp_path, clear=True)
    assert cleared.removed == 2 and not cleared.entries and not list(tmp_path.iterdir())


def test_a_text_is_tokenized_once_where_the_tokenizers_are_the_same_files(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmc.eval import conditions, measurement, original

    asked: list[str] = []

    def note(settings: Any, subject: Any) -> torch.Tensor:
        asked.append(subject.name)
        return conditions.token_ids(settings, subject)

    monkeypatch.setattr(original, "token_ids", note)
    monkeypatch.setattr(measurement, "token_ids", note)
    run(place, tmp_path)
    run(place, tmp_path)
    assert asked == ["original"]
    shutil.copytree(place / "damaged", tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    options: dict[str, Any] = {"text": place / "corpus.txt", "context": 64, "stride": 32, "max_tokens": 500}
    evaluate(tmp_path / "other", against=place / "original", cache=tmp_path, **options)
    assert asked == ["original", "other"]
