"""What the public functions share: their signatures, unknown options, and the bar where somebody looks."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import llmc
from llmc.embedded import tiny_model_path
from llmc.public import public
from llmc.recipe.options import from_options


def test_dir_shows_the_public_names() -> None:
    assert dir(llmc) == sorted(llmc.__all__)
    assert {"quantize", "plan", "run", "evaluate", "compare", "LlmcError"} <= set(dir(llmc))
    assert all(hasattr(llmc, name) for name in dir(llmc))


def test_signatures_have_every_option() -> None:
    wanted = {each.name: each for each in inspect.signature(from_options).parameters.values() if each.name != "model"}
    for function in (llmc.quantize, llmc.plan):
        found = inspect.signature(function).parameters
        assert {name: found[name] for name in wanted} == wanted
        assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in found.values())
    assert inspect.signature(llmc.compare).parameters["context"].default == 512
    assert "opener" not in inspect.signature(llmc.compare).parameters
    assert inspect.signature(llmc.push).parameters["base_model"].default is None


@pytest.mark.parametrize(
    ("function", "option", "line"),
    [
        ("quantize", "group_sise", "llmc.quantize: no option 'group_sise'; did you mean 'group_size'?"),
        ("plan", "methd", "llmc.plan: no option 'methd'; did you mean 'method'?"),
        ("run", "overides", "llmc.run: no option 'overides'; did you mean 'overrides'?"),
        ("compare", "agains", "llmc.compare: no option 'agains'; did you mean 'against'?"),
        ("evaluate", "txt", "llmc.evaluate: no option 'txt'; did you mean 'text'?"),
        ("push", "publik", "llmc.push: no option 'publik'; did you mean 'public'?"),
        ("lossless", "exact", "llmc.lossless: no option 'exact'; did you mean 'exact_files'?"),
        ("verify", "agianst", "llmc.verify: no option 'agianst'; did you mean 'against'?"),
    ],
)
def test_unknown_options_are_refused(function: str, option: str, line: str) -> None:
    with pytest.raises(llmc.LlmcError) as refused:
        getattr(llmc, function)("model", "out", **{option: 1})
    assert (str(refused.value), refused.value.exit_code) == (line, 2)


def quantized(out: Path, **options: Any) -> None:
    llmc.quantize(str(tiny_model_path()), out, group_size=32, **options)


def test_a_notebook_gets_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    quantized(tmp_path / "out")
    assert "quantize: 100%|" in capsys.readouterr().err


def test_no_bar_where_nobody_looks_or_one_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    quantized(tmp_path / "silent", progress=llmc.silent)
    seen: list[str] = []
    quantized(tmp_path / "own", progress=lambda label, done, total: seen.append(label))
    assert seen
    assert "%" not in capsys.readouterr().err


def test_what_is_called_inside_draws_no_bar_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))

    @public()
    def inner(*, progress: Any = None) -> bool:
        return progress is None

    @public()
    def outer(*, progress: Any = None) -> bool:
        progress("outer", 1, 1)
        return inner()

    assert outer()
    assert capsys.readouterr().err.count("outer: 100%") >= 1
    assert not inner()
