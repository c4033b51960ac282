"""Recipes: what they hold once read, the way back to a file, and those that ship."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.calibration.data import CalibrationOptions
from llmc.compressors import METHODS
from llmc.compressors.gptq import Gptq
from llmc.compressors.rtn import Rtn
from llmc.errors import RecipeError
from llmc.recipe.options import from_options
from llmc.recipe.recipe import (
    EvalOptions,
    PushOptions,
    Recipe,
    Stage,
    find_recipe,
    from_dict,
    load_recipe,
    method_table,
    recipe_names,
    resolve_model,
    resolve_text,
    to_dict,
    to_yaml,
)
from llmc.recipe.schema import byte_count
from llmc.recipe.yaml_nodes import read_yaml

NEEDED = ["model=org/name", "calibration.source=text.txt"]

FULL = """\
model: org/name
revision: "1234567"
stages:
  - method: gptq
    bits: 3
    group_size: channel
    damping: 1e-2
    targets: ["*.q_proj", "*.k_proj"]
  - {method: rtn, bits: 8, ignore: lm_head}
calibration:
  source: user/data:part
  num_samples: 4
formats: [dense, gptq]
seed: 7
compute_dtype: float64
max_memory: 1.5GiB
eval: {text: held-out.txt, context: 64, stride: 32}
gates: kl < 0.05
push: {repo: user/small, public: true}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_field_is_read(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, FULL)) == Recipe(
        model="org/name",
        revision="1234567",
        stages=(
            Stage("gptq", Gptq(bits=3, group_size=None, damping=0.01), targets=("*.q_proj", "*.k_proj")),
            Stage("rtn", Rtn(bits=8), ignore=("lm_head",)),
        ),
        calibration=CalibrationOptions("user/data:part", num_samples=4, seed=7),
        formats=("dense", "gptq"),
        seed=7,
        compute_dtype="float64",
        max_memory=3 << 29,
        eval=EvalOptions(str(tmp_path / "held-out.txt"), context=64, stride=32),
        gates=("kl < 0.05",),
        push=PushOptions("user/small", public=True),
    )


def test_calibration_may_have_its_own_seed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, FULL), ["calibration.seed=3"])
    assert recipe.seed == 7
    assert recipe.calibration is not None
    assert recipe.calibration.seed == 3


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("stages.1.bits=3", lambda r: replace(r, stages=(r.stages[0], replace(r.stages[1], method=Rtn(bits=3))))),
        (
            "stages.1.ignore=*.o_proj",
            lambda r: replace(r, stages=(r.stages[0], replace(r.stages[1], ignore=("*.o_proj",)))),
        ),
        ("stages=[{method: rtn}]", lambda r: replace(r, stages=(Stage("rtn", Rtn()),))),
        ("formats=[dense]", lambda r: replace(r, formats=("dense",))),
        ("formats.1=bitsandbytes", lambda r: replace(r, formats=("dense", "bitsandbytes"))),
        ("push=null", lambda r: replace(r, push=None)),
        ("max_memory=500MB", lambda r: replace(r, max_memory=500_000_000)),
        ("revision=0123456", lambda r: replace(r, revision="0123456")),
        ("eval.prompt=a = b", lambda r: replace(r, eval=replace(r.eval, prompt="a = b"))),
        ("model=../other", lambda r: replace(r, model="../other")),
        ("out=here", lambda r: replace(r, out="here")),
    ],
)
def test_set(tmp_path: Path, override: str, change: Any) -> None:
    path = write(tmp_path, FULL)
    assert load_recipe(path, [override]) == change(load_recipe(path))


def test_set_makes_the_sections_it_needs(tmp_path: Path) -> None:
    path = write(tmp_path, "stages: [{method: rtn}]")
    recipe = load_recipe(path, ["model=m", "eval.text=t.txt", "eval.context=600"])
    assert recipe.eval == EvalOptions("t.txt", context=600)


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    text = "out: small\nstages: [{method: rtn}]\ncalibration: {source: t.jsonl}\neval: {text: ../e.txt}\n"
    path = write(tmp_path, f"model: models/a\n{text}")
    recipe = load_recipe(path)
    assert recipe.calibration is not None
    assert recipe.eval is not None
    found = (recipe.model, recipe.out, recipe.calibration.source, recipe.eval.text)
    assert found == tuple(f"{tmp_path}/{name}" for name in ("models/a", "small", "t.jsonl", "../e.txt"))
    assert load_recipe(write(tmp_path, f"model: org/a\n{text}")).model == "org/a"
    assert load_recipe(write(tmp_path, f"model: ./no/a\n{text}")).model == f"{tmp_path}/./no/a"
    monkeypatch.chdir(tmp_path)
    assert load_recipe("r.yaml").model == "./no/a"


def test_from_options_leaves_the_defaults_to_their_owners() -> None:
    assert from_options("m") == Recipe("m", (Stage("rtn", Rtn()),))
    gptq = Recipe("m", (Stage("gptq", Gptq()),), calibration=CalibrationOptions("t.txt"))
    assert from_options("m", calibration="t.txt") == gptq
    assert from_options(Path("m"), method="gptq", calibration=Path("t.txt"), act_order=False) == gptq


def test_from_options() -> None:
    recipe = from_options(
        "m",
        method="gptq",
        bits=3,
        group_size="channel",
        options={"damping": "5e-2", "slab": 64},
        symmetric=False,
        act_order=True,
        targets=["*.up_proj"],
        ignore=("a",),
        calibration="user/data",
        num_samples=3,
        sequence_length=9,
        seed=5,
        formats=["dense"],
        device="cuda:1",
        compute_dtype="bfloat16",
        max_memory=1000,
        revision="main",
        allow_nonfinite=True,
        entropy=True,
    )
    method = Gptq(bits=3, group_size=None, damping=0.05, slab=64, symmetric=False, act_order=True)
    assert recipe == Recipe(
        "m",
        (Stage("gptq", method, ("*.up_proj",), ("a",)),),
        calibration=CalibrationOptions("user/data", 3, 9, 5),
        seed=5,
        formats=("dense",),
        device="cuda:1",
        compute_dtype="bfloat16",
        max_memory=1000,
        revision="main",
        allow_nonfinite=True,
        entropy=True,
    )


def test_to_dict_hides_no_default_and_shows_no_path(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, FULL), [f"model={tmp_path}", f"calibration.source={tmp_path / 'c.txt'}", "out=o"]
    )
    data = to_dict(recipe)
    assert set(data) == {each.name for each in fields(Recipe)} - {"out"}
    assert set(data["stages"][1]) == {"method", "targets", "ignore", "aim"} | {each.name for each in fields(Rtn)}
    assert data["stages"][0]["group_size"] == "channel"
    assert data["model"] == tmp_path.name
    assert data["calibration"] == asdict(CalibrationOptions("c.txt", num_samples=4, seed=7))
    assert str(tmp_path.parent) not in to_yaml(recipe)


names = st.text(max_size=12).filter(
    lambda text: text not in ("", ".", "..") and not set(text) & set("/\0") and text.strip()
)
globs = st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple)
grid_options = {
    "bits": st.integers(2, 8),
    "group_size": st.none() | st.integers(1, 4096),
    "symmetric": st.booleans(),
    "scales": st.sampled_from(["absmax", "mse"]),
}
stages = st.one_of(
    st.builds(Stage, st.just("rtn"), st.builds(Rtn, **grid_options), globs, globs),
    st.builds(Stage, st.just("gptq"), st.builds(Gptq, **grid_options, damping=st.floats(0, 10)), globs, globs),
)
recipes = st.builds(
    Recipe,
    model=st.sampled_from(["tiny", "org/name", "name"]),
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    revision=st.none()
    | st.text(max_size=12)
    | st.sampled_from(["1e5", "017", "true", "null", "~", "1_0", "0x1", ".5", "*a"]),
    calibration=st.builds(CalibrationOptions, st.just("org/data"), st.integers(1, 9), column=st.none() | names),
    formats=st.permutations(["compressed-tensors", "gptq", "dense"]).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    max_memory=st.none() | st.integers(1, 2**50),
    eval=st.builds(EvalOptions, st.just("tiny:evaluation"), max_tokens=st.none() | st.integers(2, 9), prompt=st.text()),
    gates=st.lists(st.sampled_from(["kl < 0.05", "perplexity < 103% * original"])).map(tuple),
    push=st.none() | st.builds(PushOptions, st.just("user/name"), st.booleans()),
)


@given(recipes)
@settings(max_examples=60, deadline=None)
def test_round_trip(recipe: Recipe) -> None:
    assert from_dict(to_dict(recipe)) == recipe


@given(recipes)
@settings(max_examples=30, deadline=None)
def test_a_saved_recipe_loads_again(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("saved") / "saved.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8", newline="")
    assert load_recipe(str(path)) == recipe


@given(st.from_regex(r"[-+.0-9eE_xo~a-fA-F]{1,8}", fullmatch=True).filter(lambda text: text != "-"))
@settings(deadline=None)
def test_scalars_follow_yaml_1_2(text: str) -> None:
    """Against Python: what reads as a decimal number is one, whatever YAML 1.1 thinks."""
    value = read_yaml(f"[ {text} ]", "x").value[0].value
    number = None
    if "_" not in text and text[-1] not in "fF":
        try:
            number = float(text)
        except ValueError:
            number = None
    if number is not None:
        assert value == number
        assert isinstance(value, int) == text.lstrip("+-").isdigit()
    elif text != "~" and isinstance(value, int | float):
        pytest.fail(f"{text!r} is no number, and was read as {value!r}")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("500 MB", 500_000_000), ("1.5k", 1500), ("12", 12), ("7b", 7), ("2tib", 2 << 40)]
    + [(text, None) for text in ("", "0", "-1", "GB", "8XB", "8i", "1e3", "\u0661", "0.1", "9" * 40)],
)
def test_byte_count(text: str, size: int | None) -> None:
    assert byte_count(text) == size


def test_shipped_recipes_load() -> None:
    assert recipe_names() == ["nf4", "quickstart", "rtn-w4", "smallest", "w3", "w4a16-g128", "w8a16"]
    for name in recipe_names():
        recipe = load_recipe(name, [] if name == "quickstart" else NEEDED)
        assert from_dict(to_dict(recipe)) == recipe
        text = find_recipe(name).read_text(encoding="utf-8")
        assert text.startswith("# "), f"{name} does not say what it is for"
        assert f"llmc run {name} -o " in text


def test_shipped_recipes_are_what_their_names_say() -> None:
    loaded = {name: load_recipe(name, NEEDED) for name in recipe_names()}
    smallest = loaded.pop("smallest")
    assert (smallest.stages[0].name, smallest.formats) == ("trellis", ("llmc",))
    assert {name: (s.name, s.method.bits, s.method.group_size) for name, r in loaded.items() for s in r.stages} == {
        "nf4": ("rtn", 4, 64),
        "quickstart": ("gptq", 4, 32),
        "rtn-w4": ("rtn", 4, 128),
        "w3": ("gptq", 3, 64),
        "w4a16-g128": ("gptq", 4, 128),
        "w8a16": ("rtn", 8, None),
    }
    assert loaded["nf4"].formats == ("bitsandbytes",)
    assert loaded["nf4"].stages[0].method.grid == "nf4"


def test_quickstart_needs_nothing() -> None:
    recipe = load_recipe("quickstart")
    assert (recipe.model, recipe.stages[0].name) == ("tiny", "gptq")
    assert recipe.eval is not None
    assert recipe.gates


def test_recipes_are_found_in_an_installed_wheel(tmp_path: Path) -> None:
    """A wheel has recipes inside the package and nothing beside it."""
    source = Path(__file__).parents[2] / "src" / "llmc"
    package = tmp_path / "llmc"
    for path in source.rglob("*.py"):
        copy = package / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (package / "recipes").mkdir()
    (package / "recipes" / "only.yaml").write_text("model: m\nstages: [{method: rtn}]\n")
    # An editable install puts a finder of its own before the current folder.
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if f.__module__.startswith('_frozen_importlib')]\n"
    code += "from llmc.recipe.yaml_nodes import *; print(recipe_names(), find_recipe('only').parent.name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "['only'] recipes\n"


def test_embedded_names(tmp_path: Path) -> None:
    from llmc.embedded import tiny_model_path

    assert resolve_model("tiny") == str(tiny_model_path())
    assert resolve_model("./tiny") == "./tiny"
    assert resolve_text("user/data", tmp_path) == "user/data"
    assert Path(resolve_text("tiny:evaluation", tmp_path)) == tmp_path / "evaluation.txt"
    assert (tmp_path / "evaluation.txt").stat().st_size > 10_000


def test_gates_on_tasks_of_the_embedded_world(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    known = "model: tiny\nstages: [{method: rtn}]\neval: {tasks: [tiny:recall, tiny:copy]}\n"
    file.write_text(f"{known}gates: [task.recall >= 0.95 * original, task.copy > 0.5]\n")
    recipe = load_recipe(str(file))
    assert recipe.eval and recipe.eval.tasks == ("tiny:recall", "tiny:copy")
    assert to_dict(recipe)["eval"]["tasks"] == ["tiny:recall", "tiny:copy"]
    file.write_text(f"{known}gates: [task.recal > 0.5]\n")
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(file))
    assert refused.value.message == "gate 'task.recal > 0.5': no task 'recal' is evaluated"
    assert refused.value.fix == "did you mean 'recall'?"


def test_method_table() -> None:
    table = method_table()
    assert [row[0] for row in table.rows] == list(METHODS)
    rows = {row[0]: row for row in method_table("gptq").rows}
    assert list(rows) == [each.name for each in fields(Gptq)]
    assert rows["bits"] == ("bits", "integer", "4", "2 to 8", "width of one code")
    assert rows["group_size"][1:4] == ("integer or channel", "128", "at least 1")
    assert rows["act_order"][1:3] == ("true or false", "false")
    assert rows["propagate"][2:4] == ("quantized", "quantized, original")


@pytest.mark.parametrize(
    "text",
    [
        *["[" * 120_000, "{a: " * 30_000, "- " * 60_000, "? " * 60_000],
        "a: &x [1]\nb: [" + "*x, " * 30_000 + "]",
        "".join(f"k{i}: {{}}\n" for i in range(10_000)),
    ],
)
def test_bombs_are_refused_at_once(tmp_path: Path, text: str) -> None:
    from llmc.errors import RecipeError

    start = time.process_time()
    with pytest.raises(RecipeError):
        load_recipe(write(tmp_path, text))
    assert time.process_time() - start < 10


def test_examples_of_the_documentation_load(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "recipes.md"
    blocks = page.read_text(encoding="utf-8").split("```yaml\n")[1:]
    assert len(blocks) >= 2
    for block in blocks:
        load_recipe(write(tmp_path, block.split("```")[0]))


def test_yaml_is_what_others_read(tmp_path: Path) -> None:
    """The saved recipe means the same to a plain YAML reader."""
    recipe = load_recipe(write(tmp_path, FULL))
    assert yaml.safe_load(to_yaml(recipe)) == to_dict(recipe)
