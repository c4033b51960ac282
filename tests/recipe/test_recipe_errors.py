"""Every wrong recipe, override and option, with the exact line the user sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llmc.errors import InputError, LlmcError, RecipeError, StorageError, UsageError
from llmc.eval.evaluation import evaluate
from llmc.eval.tasks.tasks import load_tasks
from llmc.pipeline.run import run
from llmc.recipe.options import from_options
from llmc.recipe.recipe import EvalOptions, from_dict, load_recipe, method_table, resolve_text

KEYS = (
    "model, stages, out, revision, calibration, formats, seed, device, compute_dtype, max_memory, allow_nonfinite, "
    "strict, size, max_kl, entropy, eval, gates, push"
)
METRICS = (
    "perplexity, perplexity_ratio, kl, kl_median, kl_p99, top1_agreement, weight_bytes, bits_per_weight, "
    "model_bits_per_weight, original_perplexity, original_weight_bytes, original_bits_per_weight, tokens, flip_rate, "
    "bits_per_byte, original_bits_per_byte, overhead_bits_per_weight"
)
FORMATS = "compressed-tensors, gptq, bitsandbytes, llmc, dense"
METHODS_THERE_ARE = "write `- method: rtn | gptq | trellis | wanda`"
TOP = "model: m\n"
RTN = TOP + "stages:\n  - method: rtn\n"
GPTQ = TOP + "calibration:\n  source: t.txt\nstages:\n  - method: rtn\n  - method: gptq\n"

FILES = {
    # keys
    RTN + "    bit: 4\n": "r.yaml:4: stage 0 (rtn): unknown key 'bit'; did you mean 'bits'?",
    RTN + "    group-size: 4\n": "r.yaml:4: stage 0 (rtn): unknown key 'group-size'; did you mean 'group_size'?",
    RTN + "    damping: 0.1\n": "r.yaml:4: stage 0 (rtn): unknown key 'damping'; "
    "choose one of: grid, bits, group_size, symmetric, scales, targets, ignore, aim",
    RTN + "format: dense\n": "r.yaml:4: unknown key 'format'; did you mean 'formats'?",
    RTN + "<<: {seed: 1}\n": f"r.yaml:4: unknown key '<<'; choose one of: {KEYS}",
    GPTQ + "    dampening: 1\n": "r.yaml:7: stage 1 (gptq): unknown key 'dampening'; did you mean 'damping'?",
    RTN + "calibration:\n  source: t.txt\n  samples: 3\n": "r.yaml:6: calibration: unknown key 'samples'; "
    "did you mean 'num_samples'?",
    RTN + "model: n\n": "r.yaml:4: key 'model' is given twice, first in line 1",
    RTN + "    bits: 4\n    bits: 3\n": "r.yaml:5: key 'bits' is given twice, first in line 4",
    RTN + "[a]: 1\n": "r.yaml:4: a key that is not text",
    # what is missing
    "stages: [{method: rtn}]": "r.yaml: missing key 'model'; add it, or give --set model=MODEL",
    TOP: "r.yaml: missing key 'stages'; add it, or give --set stages=[{method: rtn}]",
    TOP + "stages: []": "r.yaml:2: no stages; add one: `- method: rtn`",
    TOP + "stages: {method: rtn}": "r.yaml:2: stages must be a list, not a section; write `- method: rtn`",
    TOP + "stages:\n  - bits: 4": f"r.yaml:3: stage 0: missing key 'method'; {METHODS_THERE_ARE}",
    TOP + "stages:\n  - rtn": f"r.yaml:3: stage 0: missing key 'method'; {METHODS_THERE_ARE}",
    RTN + "calibration: {num_samples: 3}": "r.yaml:4: calibration: missing key 'source'; "
    "add it, or give --set calibration.source=SOURCE",
    RTN + "eval: {}": "r.yaml:4: eval: missing key 'text' or 'tasks'; add one, or give --set eval.text=FILE",
    TOP + "stages:\n  - method: gptq": "r.yaml:3: stage 0 (gptq): needs calibration text; add "
    "`calibration: {source: FILE_OR_DATASET}`, or give --set calibration.source=FILE_OR_DATASET",
    RTN
    + "gates: kl < 1": "r.yaml:4: gates need figures to check; add `eval: {text: FILE}`, or give --set eval.text=FILE",
    # names
    TOP + "stages:\n  - method: gptqq": "r.yaml:3: stage 0: unknown method 'gptqq'; did you mean 'gptq'?",
    TOP + "stages:\n  - method: 3": "r.yaml:3: stage 0: unknown method '3'; choose one of: rtn, gptq, trellis, wanda",
    RTN + "    grid: nf5\n": "r.yaml:4: stage 0 (rtn): grid: unknown value 'nf5'; choose one of: int, nf4",
    RTN + "    scales: best\n": "r.yaml:4: stage 0 (rtn): scales: unknown value 'best'; choose one of: absmax, mse",
    RTN + "formats: [dense, gtpq]\n": "r.yaml:4: formats: unknown value 'gtpq'; did you mean 'gptq'?",
    RTN + "formats: [dense, dense]\n": f"r.yaml:4: a format is given twice; choose from: {FORMATS}",
    RTN + "formats: []\n": f"r.yaml:4: no format; choose from: {FORMATS}",
    RTN + "device: gpu\n": "r.yaml:4: unknown device 'gpu'; use cpu, cuda or cuda:1",
    RTN + "compute_dtype: fp32\n": "r.yaml:4: compute_dtype: unknown value 'fp32'; "
    "choose one of: float32, float64, bfloat16",
    RTN + "push: {repo: a b}\n": "r.yaml:4: push: not a repository of the Hub: 'a b'; write it like user/name",
    # types
    RTN + "    bits: true\n": "r.yaml:4: stage 0 (rtn): bits must be a whole number, not true",
    RTN + "    bits: four\n": "r.yaml:4: stage 0 (rtn): bits must be a whole number, not 'four'",
    RTN + "    bits: 4.0\n": "r.yaml:4: stage 0 (rtn): bits must be a whole number, not 4.0",
    RTN + "    bits:\n": "r.yaml:4: stage 0 (rtn): bits must be a whole number, not null",
    RTN + "    bits: [4]\n": "r.yaml:4: stage 0 (rtn): bits must be a whole number, not a list",
    RTN + "    bits: 0x4\n": "r.yaml:4: stage 0 (rtn): bits must be a whole number, not '0x4'",
    RTN + f"    bits: {'9' * 5000}\n": "r.yaml:4: stage 0 (rtn): bits must be a whole number, not Infinity",
    RTN + "    symmetric: yes\n": "r.yaml:4: stage 0 (rtn): symmetric must be true or false, not 'yes'",
    RTN + "    symmetric: 1\n": "r.yaml:4: stage 0 (rtn): symmetric must be true or false, not 1",
    RTN + "    group_size: row\n": "r.yaml:4: stage 0 (rtn): group_size must be a whole number or channel, not 'row'",
    RTN + "    group_size: 1.5\n": "r.yaml:4: stage 0 (rtn): group_size must be a whole number or channel, not 1.5",
    RTN + "    targets: {a: b}\n": "r.yaml:4: stage 0 (rtn): targets must be text, not a section",
    RTN + "    targets: [a, 3]\n": "r.yaml:4: stage 0 (rtn): targets must be text, not 3; put it in quotes",
    GPTQ + "    damping: .nan\n": "r.yaml:7: stage 1 (gptq): damping must be a number, not '.nan'",
    GPTQ + "    damping: 1e999\n": "r.yaml:7: stage 1 (gptq): damping must be a finite number",
    GPTQ + "    damping: false\n": "r.yaml:7: stage 1 (gptq): damping must be a number, not false",
    RTN + "revision: 1234567\n": "r.yaml:4: revision must be text, not 1234567; put it in quotes",
    RTN + "eval: t.txt\n": "r.yaml:4: eval: must be a section with keys, not 't.txt'",
    # ranges
    RTN + "    bits: 9\n": "r.yaml:4: stage 0 (rtn): bits: 9 is out of range; use 2 to 8",
    RTN + "    group_size: -1\n": "r.yaml:4: stage 0 (rtn): group_size: -1 is out of range; use at least 1",
    GPTQ + "    damping: -0.1\n": "r.yaml:7: stage 1 (gptq): damping: -0.1 is out of range; use 0.0 to 10.0",
    RTN + "    grid: nf4\n    bits: 3\n": "r.yaml:3: stage 0 (rtn): grid nf4 has 4-bit codes, not 3; "
    "use bits 4 or grid int",
    RTN + "    grid: nf4\n    symmetric: false\n": "r.yaml:3: stage 0 (rtn): grid nf4 has no zero point; "
    "leave symmetric on or use grid int",
    RTN + "seed: -1\n": "r.yaml:4: seed: -1 is out of range; use 0 to 4294967295",
    RTN + "max_memory: lots\n": "r.yaml:4: not a size: 'lots'; write it like 8GiB or 500MB",
    RTN + "max_memory: true\n": "r.yaml:4: not a size: true; write it like 8GiB or 500MB",
    RTN + "calibration:\n  source: t.txt\n  num_samples: 0\n": "r.yaml:6: calibration: "
    "num_samples must be at least 1, not 0",
    RTN + "eval:\n  text: t.txt\n  stride: 900\n": "r.yaml:6: eval: stride must be at most the context 512, not 900",
    RTN + "eval: {text: t.txt, context: 1}\n": "r.yaml:4: eval: context: 1 is out of range; use at least 2",
    RTN + "gates:\n  - kl < 1\n  - kl == 1\n": "r.yaml:6: cannot read gate 'kl == 1'; "
    "write it like `perplexity_ratio < 1.02` or `weight_bytes <= 30% * original`",
    RTN + "gates: [ppl < 9]\n": f"r.yaml:4: gate 'ppl < 9': unknown metric 'ppl'; choose one of: {METRICS}",
    RTN + "eval: {text: t.txt}\ngates: task.arc > 0.5": "r.yaml:5: gate 'task.arc > 0.5': no task 'arc' is evaluated; "
    "add --task FILE, or `tasks: [FILE]` to `eval:`",
    RTN + "eval: {text: t.txt}\ngates: flip_rate < 1%": "r.yaml:5: gate 'flip_rate < 1%': no task is evaluated; "
    "add --task FILE, or `tasks: [FILE]` to `eval:`",
    RTN + "eval: {tasks: [d/arc.jsonl, piqa.jsonl]}\ngates:\n  - task.piqa > 0.5\n  - task.ark > 0.5": "r.yaml:7: gate "
    "'task.ark > 0.5': no task 'ark' is evaluated; did you mean 'arc'?",
    RTN + "eval: {tasks: arc.jsonl}\ngates: kl < 1": "r.yaml:5: gate 'kl < 1': no text is evaluated; "
    "add --text FILE, or `text: FILE` to `eval:`",
    RTN + "eval: {tasks: a.jsonl, limit: 0}": "r.yaml:4: eval: limit: 0 is out of range; use at least 1",
    # YAML
    "": "r.yaml: empty; a recipe has at least `model:` and `stages:`",
    "# only a comment\n": "r.yaml: empty; a recipe has at least `model:` and `stages:`",
    "- a\n": "r.yaml:1: not a recipe: no keys at the top; write `model: ...`, `stages: ...`",
    "just text": "r.yaml:1: not a recipe: no keys at the top; write `model: ...`, `stages: ...`",
    "a: [1,\nb: 2": "r.yaml:2: not YAML that recipes can use: expected ',' or ']', but got '<stream end>'",
    "a: 1\n\tb: 2": "r.yaml:2: not YAML that recipes can use: found character '\\t' that cannot start any token",
    "a: 1\n---\nb: 2": "r.yaml:2: not YAML that recipes can use: but found another document",
    "a: \0": "r.yaml: not YAML that recipes can use: special characters are not allowed",
    "a: &x 1\nb: *x": "r.yaml:2: not YAML that recipes can use: an alias; put text that begins with * in quotes",
    RTN + "    targets: *.q_proj\n": "r.yaml:4: not YAML that recipes can use: "
    "an alias; put text that begins with * in quotes",
    "a: !!python/object/apply:os.system [x]": "r.yaml:1: not YAML that recipes can use: a tag (!)",
    "[" * 100: "r.yaml:1: not YAML that recipes can use: more than 16 levels",
    "a: " + "x" * (1 << 17): "r.yaml: larger than 131072 bytes; is this a recipe?",
    "a: 1\nb: \x1b[31m": "r.yaml: not YAML that recipes can use: special characters are not allowed",
    RTN + '"\\e[31mx": 1\n': f"r.yaml:4: unknown key '\\x1b[31mx'; choose one of: {KEYS}",
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line_of(kind: type[LlmcError], call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("text", FILES)
def test_a_wrong_file(text: str) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8")
    assert line_of(RecipeError, load_recipe, "r.yaml") == FILES[text]
    assert RecipeError.exit_code == 2


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("bits", "cannot read this; write it like --set stages.0.bits=3"),
        ("=3", "cannot read this; write it like --set stages.0.bits=3"),
        ("stages..bits=3", "cannot read this; write it like --set stages.0.bits=3"),
        ("a" + ".a" * 9999 + "=3", "cannot read this; write it like --set stages.0.bits=3"),
        ("stages.0.bits=9", "bits: 9 is out of range; use 2 to 8"),
        ("stages.0.bits=four", "bits must be a whole number, not 'four'"),
        ("stages.0.bits=", "bits must be a whole number, not null"),
        ("stages.0.bit=3", "unknown key 'bit'; did you mean 'bits'?"),
        ("stages.2.bits=3", "no entry '2' in a list of 2; count from 0 to 1"),
        ("stages.first.bits=3", "no entry 'first' in a list of 2; count from 0 to 1"),
        ("stages.-1.bits=3", "no entry '-1' in a list of 2; count from 0 to 1"),
        ("stages.0.method.bits=3", "there is no 'bits' inside a value; shorten the path"),
        ("stage.0.bits=3", "unknown key 'stage'; did you mean 'stages'?"),
        ("stages.0.method=gtpq", "unknown method 'gtpq'; did you mean 'gptq'?"),
        ("stages.0.grid=nf5", "grid: unknown value 'nf5'; choose one of: int, nf4"),
        ("formats=gguf", f"formats: unknown value 'gguf'; choose one of: {FORMATS}"),
        ("formats=[dense", "not YAML that recipes can use: expected ',' or ']', but got '<stream end>'"),
        ("calibration=null", None),
        ("calibration.num_samples=0", "num_samples must be at least 1, not 0"),
        ("eval.context=64", "missing key 'text' or 'tasks'; add one, or give --set eval.text=FILE"),
        ("max_memory=much", "not a size: 'much'; write it like 8GiB or 500MB"),
        (
            "gates=kl",
            "cannot read gate 'kl'; write it like `perplexity_ratio < 1.02` or `weight_bytes <= 30% * original`",
        ),
    ],
)
def test_a_wrong_override(override: str, line: str | None) -> None:
    Path("r.yaml").write_text(GPTQ, encoding="utf-8")
    found = line_of(RecipeError, load_recipe, "r.yaml", [override])
    if line is None:
        assert found.startswith("r.yaml:6: stage 1 (gptq): needs calibration text; ")
    else:
        assert found == f"--set {override}: {line}"


def test_an_override_that_spoils_a_choice_of_the_file() -> None:
    Path("r.yaml").write_text(RTN + "    grid: nf4\n", encoding="utf-8")
    found = line_of(RecipeError, load_recipe, "r.yaml", ["stages.0.bits=3"])
    assert found == "--set stages.0.bits=3: grid nf4 has 4-bit codes, not 3; use bits 4 or grid int"


def test_what_is_not_a_file(tmp_path: Path) -> None:
    known = "choose one of: nf4, quickstart, rtn-w4, smallest, w3, w4a16-g128, w8a16"
    assert line_of(RecipeError, load_recipe, "quikstart") == "unknown recipe 'quikstart'; did you mean 'quickstart'?"
    assert line_of(RecipeError, load_recipe, "zzz") == f"unknown recipe 'zzz'; {known}"
    nothing = "no such recipe file; `llmc recipes` lists the recipes that ship"
    assert line_of(RecipeError, load_recipe, "no/such.yaml") == f"no/such.yaml: {nothing}"
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("folder", "pipe.yaml"):
        found = line_of(RecipeError, load_recipe, name)
        assert found == f"{name}: not a file; give a YAML file, or a name that `llmc recipes` lists"
    (tmp_path / "latin.yaml").write_bytes(b"model: m\nout: \xe9\n")
    assert line_of(RecipeError, load_recipe, "latin.yaml") == "latin.yaml:2: not UTF-8; convert the file to UTF-8"


def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("r.yaml").write_text(RTN, encoding="utf-8")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert line_of(StorageError, load_recipe, "r.yaml") == "r.yaml: cannot be read (Permission denied)"


def test_shipped_recipes_say_what_they_need() -> None:
    found = line_of(RecipeError, load_recipe, "w4a16-g128")
    assert found == "w4a16-g128.yaml: missing key 'model'; add it, or give --set model=MODEL"
    found = line_of(RecipeError, load_recipe, "w4a16-g128", ["model=m"])
    place = "w4a16-g128.yaml:11: calibration: "
    assert found == place + "missing key 'source'; add it, or give --set calibration.source=SOURCE"


GPTQ_KNOWN = "grid, bits, group_size, symmetric, scales, damping, act_order, slab, propagate"
OPTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"method": "trellis", "max_kl": 0.1},
        "--max-kl: there is no calibration text; add --calibration FILE_OR_DATASET",
    ),
    ({"chat_template": True}, "--chat-template: there is no calibration text; add --calibration FILE_OR_DATASET"),
    ({"calibration": []}, "--calibration: source names no text"),
    ({"method": "gtpq"}, "--method: unknown method 'gtpq'; did you mean 'gptq'?"),
    ({"bits": 9}, "--bits: bits: 9 is out of range; use 2 to 8"),
    ({"bits": True}, "--bits: bits must be a whole number, not true"),
    ({"group_size": 0}, "--group-size: group_size: 0 is out of range; use at least 1"),
    ({"group_size": "row"}, "--group-size: group_size must be a whole number or channel, not 'row'"),
    (
        {"act_order": True},
        "--act-order: rtn has no option 'act_order'; choose one of: grid, bits, group_size, symmetric, scales",
    ),
    ({"options": {"scale": "mse"}}, "-O scale=mse: rtn has no option 'scale'; did you mean 'scales'?"),
    (
        {"calibration": "t.txt", "options": {"zzz": 1}},
        f"-O zzz=1: gptq has no option 'zzz'; choose one of: {GPTQ_KNOWN}",
    ),
    ({"options": {"grid": "nf5"}}, "-O grid=nf5: grid: unknown value 'nf5'; choose one of: int, nf4"),
    ({"options": {"bits": "four"}}, "-O bits=four: bits must be a whole number, not 'four'"),
    ({"bits": 4, "options": {"bits": "3"}}, "-O bits=3: 'bits' is given twice; leave out --bits"),
    (
        {"bits": 3, "options": {"grid": "nf4"}},
        "-O grid=nf4: grid nf4 has 4-bit codes, not 3; use bits 4 or grid int",
    ),
    (
        {"options": {"grid": "nf4"}, "symmetric": False},
        "-O grid=nf4: grid nf4 has no zero point; leave symmetric on or use grid int",
    ),
    (
        {"calibration": "t.txt", "options": {"damping": "-1"}},
        "-O damping=-1: damping: -1.0 is out of range; use 0.0 to 10.0",
    ),
    ({"num_samples": 3}, "--num-samples: there is no calibration text; add --calibration FILE_OR_DATASET"),
    ({"calibration": "t.txt", "num_samples": 0}, "--num-samples: num_samples must be at least 1, not 0"),
    ({"calibration": "t.txt", "seed": -1}, "--seed: seed: -1 is out of range; use 0 to 4294967295"),
    ({"formats": ["gguf"]}, f"--format: formats: unknown value 'gguf'; choose one of: {FORMATS}"),
    ({"formats": ["dense", "dense"]}, f"--format: a format is given twice; choose from: {FORMATS}"),
    ({"device": "tpu"}, "--device: unknown device 'tpu'; use cpu, cuda or cuda:1"),
    (
        {"compute_dtype": "half"},
        "--compute-dtype: compute_dtype: unknown value 'half'; choose one of: float32, float64, bfloat16",
    ),
    ({"max_memory": "much"}, "--max-memory: not a size: 'much'; write it like 8GiB or 500MB"),
    ({"max_memory": 0}, "--max-memory: not a size: 0; write it like 8GiB or 500MB"),
]


@pytest.mark.parametrize(("options", "line"), OPTIONS)
def test_a_wrong_option(options: dict[str, Any], line: str) -> None:
    assert line_of(UsageError, from_options, "m", **options) == line


def test_plain_data_that_is_no_recipe() -> None:
    found = line_of(RecipeError, from_dict, {"model": "m", "stages": [{"method": "rtn", "bits": "4"}]})
    assert found == "recipe: stage 0 (rtn): bits must be a whole number, not '4'"


def test_unknown_names_elsewhere(tmp_path: Path) -> None:
    assert line_of(UsageError, method_table, "gtpq") == "unknown method 'gtpq'; did you mean 'gptq'?"
    found = line_of(InputError, resolve_text, "tiny:eval", tmp_path)
    assert found == "unknown embedded text 'tiny:eval'; did you mean 'tiny:evaluation'?"
    found = line_of(UsageError, load_tasks, ["tiny:recal"])
    assert found == "unknown embedded task 'tiny:recal'; did you mean 'tiny:recall'?"
    found = line_of(UsageError, evaluate, "m", text="tiny:evalution")
    assert found == "unknown embedded text 'tiny:evalution'; did you mean 'tiny:evaluation'?"


def test_an_unknown_embedded_task_of_a_recipe_file(tmp_path: Path) -> None:
    """The name stays what it was: it is not taken for a file beside the recipe."""
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: tiny\nstages: [{method: rtn}]\neval: {text: tiny:evalation, tasks: [tiny:story, tiny:histry]}\n"
    )
    assert load_recipe(str(file)).eval == EvalOptions("tiny:evalation", ("tiny:story", "tiny:histry"))
    assert line_of(UsageError, run, str(file), dry_run=True) == (
        "unknown embedded task 'tiny:histry'; did you mean 'tiny:story'?"
    )
