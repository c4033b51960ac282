"""Every verb hands what was typed to one public function of the library, and prints what comes back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llmc
from llmc.cli import VERBS, execute
from llmc.errors import LlmcError, VerifyError
from llmc.results import Table


@dataclass(frozen=True)
class Result:
    """What a verb of the library returns."""

    failure: LlmcError | None = None

    def to_json(self) -> dict[str, Any]:
        return {"answer": 42, "nothing": float("nan")}

    def tables(self) -> list[Table]:
        return [Table("the title", ("name", "value"), (("answer", "42"),))]


class Library:
    """Stands for the functions of `llmc` and keeps what they were called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.result: Any = Result()
        for name in (
            "quantize",
            "plan",
            "run",
            "inspect",
            "verify",
            "export",
            "push",
            "card",
            "evaluate",
            "lossless",
            "decompress",
            "compare",
        ):
            monkeypatch.setitem(vars(llmc), name, self.function(name))
        monkeypatch.setitem(vars(llmc), "recipe_uses", lambda: {"nf4": "for QLoRA", "quickstart": "the demo"})
        monkeypatch.setitem(vars(llmc), "recipe_text", lambda name: f"# {name}\nmodel: tiny\n")

    def function(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            options.pop("progress", None)
            self.calls.append((name, arguments, options))
            return self.result

        return call


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


EVERY_OPTION = (
    "--method gptq --bits 3 --group-size 64 -O damping=0.05 -O mse=true --asymmetric --act-order --targets *.q_proj "
    "--targets *.k_proj --ignore lm_head --calibration text.txt --num-samples 8 --sequence-length 64 --seed 0 "
    "--format gptq --format dense --device cpu --compute-dtype float64 --max-memory 8GiB --revision main "
    "--allow-nonfinite --entropy --strict --raw-text --chat-template --text-column talk --split dev"
)
EVERY_ARGUMENT = {
    "method": "gptq",
    "bits": 3,
    "group_size": 64,
    "options": {"damping": "0.05", "mse": "true"},
    "symmetric": False,
    "act_order": True,
    "targets": ["*.q_proj", "*.k_proj"],
    "ignore": ["lm_head"],
    "calibration": "text.txt",
    "num_samples": 8,
    "sequence_length": 64,
    "seed": 0,
    "formats": ["gptq", "dense"],
    "device": "cpu",
    "compute_dtype": "float64",
    "max_memory": "8GiB",
    "revision": "main",
    "allow_nonfinite": True,
    "entropy": True,
    "strict": True,
    "raw_text": True,
    "chat_template": True,
    "text_column": "talk",
    "split": "dev",
}
EVERY_SWITCH = ["--push", "u/r", "--dry-run", "--allow-unresolved", "--fresh", "--force"]
RUN_DEFAULTS = {
    "overrides": [],
    "push": None,
    "dry_run": False,
    "allow_unresolved": False,
    "fresh": False,
    "force": False,
}

CHECK = {"check": None}
"""Where that is cheap."""

CALLS: list[tuple[list[str], tuple[Any, ...], dict[str, Any]]] = [
    (["quantize", "M", "-o", "O"], ("M", "O"), CHECK),
    (["quantize", "M", "-o", "O", "--check", *EVERY_OPTION.split()], ("M", "O"), {**EVERY_ARGUMENT, "check": True}),
    (["quantize", "--fresh", "--force", "--out", "O", "M"], ("M", "O"), {"fresh": True, "force": True, **CHECK}),
    (["quantize", "M", "-o", "O", "--group-size", "channel"], ("M", "O"), {"group_size": "channel", **CHECK}),
    (
        ["plan", "M", *EVERY_OPTION.split(), "--force", "--fresh"],
        ("M",),
        {"recipe": None, "overrides": [], **EVERY_ARGUMENT},
    ),
    (["plan", "--recipe", "nf4", "--set", "seed=1"], (None,), {"recipe": "nf4", "overrides": ["seed=1"]}),
    (["run", "quickstart"], ("quickstart", None), RUN_DEFAULTS),
    (
        ["run", "r.yaml", "-o", "O", "--set", "stages.0.bits=3", "--set", "seed=1", *EVERY_SWITCH],
        ("r.yaml", "O"),
        {
            "overrides": ["stages.0.bits=3", "seed=1"],
            "push": "u/r",
            "dry_run": True,
            "allow_unresolved": True,
            "fresh": True,
            "force": True,
        },
    ),
    (["inspect", "O"], ("O",), {}),
    (["verify", "O"], ("O",), {"against": None}),
    (["verify", "O", "--against", "M"], ("O",), {"against": "M"}),
    (["export", "O", "--format", "dense", "-o", "P"], ("O", "P"), {"format": "dense", "force": False}),
    (["push", "O", "u/r"], ("O", "u/r"), {"public": False, "base_model": None, "dry_run": False}),
    (
        ["push", "O", "u/r", "--public", "--dry-run", "--base-model", "a/b"],
        ("O", "u/r"),
        {"public": True, "base_model": "a/b", "dry_run": True},
    ),
    (["card", "O", "--set", "license=mit", "--set", "language=en"], ("O", ["license=mit", "language=en"]), {}),
]


@pytest.mark.parametrize(("words", "arguments", "options"), CALLS)
def test_what_is_typed_reaches_the_library(
    library: Library, words: list[str], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert execute(words) == 0
    assert library.calls == [(words[0], arguments, options)]


@pytest.mark.parametrize("verb", ["quantize M -o O", "plan M", "run r", "inspect O", "verify O", "push O u/r"])
def test_json_is_one_document_and_nothing_else(library: Library, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert execute([*verb.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"answer": 42, "nothing": None}


def test_a_table_for_people(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["inspect", "O"]) == 0
    printed = capsys.readouterr()
    lines = [line.strip() for line in printed.out.splitlines() if line.strip()]
    assert lines[0] == "the title"
    assert lines[1].split() == ["name", "value"]
    assert lines[3].split() == ["answer", "42"]
    assert printed.err == ""


def test_a_result_that_amounts_to_a_failure_is_printed_first(
    library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    library.result = Result(VerifyError("hash differs", where="model.safetensors"))
    assert execute(["verify", "O", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "answer": 42,
        "nothing": None,
        "error": {"kind": "verify", "message": "hash differs", "where": "model.safetensors", "fix": ""},
    }
    assert printed.err == "error: model.safetensors: hash differs\n"
    assert execute(["verify", "O"]) == 1
    assert "the title" in capsys.readouterr().out


def test_quantize_without_data_says_what_gptq_needs(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "note: no --calibration: rounding to nearest with searched scales; "
        "gptq loses less and needs --method gptq --calibration FILE\n"
    )
    execute(["quantize", "M", "-o", "O"])
    assert capsys.readouterr().err == line
    execute(["quantize", "M", "-o", "O", "--method", "rtn"])
    assert capsys.readouterr().err == ""


def evaluation() -> Any:
    """The part of an EvalReport that the verb uses."""
    from llmc.eval.measures.samples import Sample

    table = Table("conditions", ("", "O"), (("perplexity", "9.5"),))
    sample = Sample("Once", compressed="upon", original="a time")
    return SimpleNamespace(
        tables=lambda: [table, sample.table()], to_json=lambda: {"perplexity": 9.5}, model="O", notes=()
    )


def kept() -> dict[str, Path]:
    """Where the command line has originals kept."""
    return {"cache": Path(os.environ["LLMC_CACHE"]) / "originals"}


def test_eval_passes_only_what_was_given(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    library.result = evaluation()
    assert execute(["eval", "O", "--text", "t.txt"]) == 0
    words = (
        "eval O --text t.txt --against M --context 64 --stride 32 --max-tokens 100 --prompt Once --device cpu --json"
    )
    capsys.readouterr()
    assert execute(words.split()) == 0
    assert json.loads(capsys.readouterr().out) == {"perplexity": 9.5}
    given = {"against": "M", "context": 64, "stride": 32, "max_tokens": 100, "prompt": "Once", "device": "cpu"}
    assert library.calls == [
        ("evaluate", ("O",), {"text": "t.txt", **kept()}),
        ("evaluate", ("O",), {"text": "t.txt", **kept(), **given}),
    ]


def test_eval_takes_tasks_one_by_one_and_with_commas(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d,e.jsonl").touch()  # a name that is there is taken as it is
    library.result = evaluation()
    words = ["eval", "O", "--task", "a.jsonl,b.jsonl", "--task", "c.jsonl", "--task", "d,e.jsonl", "--limit", "9"]
    assert execute(words) == 0
    given = {"tasks": ["a.jsonl", "b.jsonl", "c.jsonl", "d,e.jsonl"], "limit": 9}
    assert library.calls == [("evaluate", ("O",), {**given, **kept()})]


def test_eval_shows_the_samples_side_by_side(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    library.result = evaluation()
    execute(["eval", "O", "--text", "t.txt"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["perplexity", "9.5"] in lines
    assert lines.index(["original", "a", "time"]) < lines.index(["compressed", "upon"])


def test_recipes(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "recipes": ["nf4", "quickstart"],
        "uses": {"nf4": "for QLoRA", "quickstart": "the demo"},
    }
    assert execute(["recipes"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["quickstart", "the", "demo"] in lines


def test_a_recipe_is_printed_as_it_is(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["recipes", "nf4"]) == 0
    assert capsys.readouterr().out == "# nf4\nmodel: tiny\n"
    assert execute(["recipes", "nf4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recipe": "nf4", "text": "# nf4\nmodel: tiny\n"}


def test_methods(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {
        None: Table("methods", ("name", "what"), (("rtn", "rounding to nearest"),)),
        "rtn": Table("rtn", ("field", "default"), (("bits", "4"),)),
    }
    monkeypatch.setitem(vars(llmc), "method_table", tables.__getitem__)
    assert execute(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"methods": [{"name": "rtn", "what": "rounding to nearest"}]}
    assert execute(["methods", "rtn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"fields": [{"field": "bits", "default": "4"}]}


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_an_example_that_parses(
    library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    import shlex

    monkeypatch.setitem(vars(llmc), "method_table", lambda name: Table("", ("a",), ()))
    report = SimpleNamespace(notes=(), model="O", tables=list, to_json=lambda: {"kl": 0.01})
    compared = SimpleNamespace(report=report, tables=list, to_json=dict)
    library.result = {"eval": report, "compare": compared}.get(verb, Result())
    assert execute([verb, "--help"]) == 0
    examples = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith(f"    llmc {verb}")]
    assert examples
    for example in examples:
        assert execute(shlex.split(example)[1:]) == 0
