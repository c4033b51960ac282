"""What a refusal or a short verb may import: by `sys.modules` after it, not by the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmc.embedded import tiny_model_path

HEAVY = (
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "tokenizers",
    "datasets",
    "accelerate",
    "safetensors",
    "compressed_tensors",
    "bitsandbytes",
    "numpy",
    "scipy",
    "sympy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "huggingface_hub",
    "jinja2",
    "tqdm",
    "rich",
)

CODE = """
import contextlib, io, json, sys
from llmc.cli import execute
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
    code = execute(sys.argv[2:])
print(json.dumps([code, said.getvalue(), [m for m in sys.argv[1].split() if m in sys.modules]]))
"""


def executed(*arguments: str, cwd: Path) -> tuple[int, str, set[str]]:
    """Exit code, stderr and the heavy modules that a command line leads to, in a process of its own."""
    command = [sys.executable, "-c", CODE, " ".join(HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True)
    code, said, heavy = json.loads(done.stdout)
    return code, said, set(heavy)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_model_path())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    (tmp_path / "text.txt").write_text("Once upon a time. " * 200)
    return tmp_path


HUB = {"huggingface_hub"}
"""Its constants say where downloads are kept."""

REFUSED: dict[str, tuple[str, set[str]]] = {
    "quantize model -o taken": (
        "taken: the output folder exists; add --force to replace it",
        set(),
    ),
    "quantize nosuchdir -o new": (
        "nosuchdir: no such folder; give a model folder or a Hub id like user/name",
        HUB,
    ),
    "plan ./nosuchdir": (
        "./nosuchdir: no such folder; give a model folder or a Hub id like user/name",
        HUB,
    ),
    "quantize model -o new --method gpqt": (
        "--method: unknown method 'gpqt'; did you mean 'gptq'?",
        set(),
    ),
    "run quickstrat -o new": (
        "unknown recipe 'quickstrat'; did you mean 'quickstart'?",
        set(),
    ),
    "quantize model -o new --method rtn -O scals=mse": (
        "-O scals=mse: rtn has no option 'scals'; did you mean 'scales'?",
        set(),
    ),
    "quantize model -o new --bits 99": (
        "--bits: bits: 99 is out of range; use 2 to 8",
        set(),
    ),
    "quantize model -o new --group-size -3": (
        "--group-size: cannot read '-3'; give a number of columns, or channel",
        set(),
    ),
    "quantize model -o new --format gguf": (
        "--format: formats: unknown value 'gguf'; choose one of: compressed-tensors, gptq, bitsandbytes, llmc, dense",
        set(),
    ),
    "plan model --device gpu": (
        "--device: unknown device 'gpu'; use cpu, cuda or cuda:1",
        set(),
    ),
    "quantize model -o model/inside": (
        "inside: the output is the input or lies inside it; choose another -o",
        set(),
    ),
    "push taken user/model": (
        "taken/README.md: there is no model card; write one, or quantize again",
        HUB,
    ),
    "eval model": (
        "--text: nothing to measure on; give --text FILE, --task FILE or both",
        set(),
    ),
    "eval ./nosuchdir --text text.txt": (
        "./nosuchdir: no such folder; give a model folder or a Hub id like user/name",
        HUB,
    ),
    "compare model ./nosuchdir --against model --text text.txt": (
        "./nosuchdir: no such folder; give a model folder or a Hub id like user/name",
        HUB,
    ),
    "quantise model": (
        "llmc: No such command 'quantise'; did you mean 'quantize'?",
        set(),
    ),
    "verify ./nosuchdir": (
        "./nosuchdir: no such folder; give a model folder or a Hub id like user/name",
        HUB,
    ),
    "lossless model -o taken": (
        "taken: the output folder exists; add --force to replace it",
        set(),
    ),
}
"""What is refused, how, and what may be imported for it."""


@pytest.mark.parametrize("arguments", REFUSED)
def test_refusals_come_before_heavy_imports(arguments: str, place: Path) -> None:
    line, allowed = REFUSED[arguments]
    code, said, heavy = executed(*arguments.split(), cwd=place)
    assert (code, said.splitlines()[-1]) == (2, f"error: {line}")
    assert heavy <= allowed
    assert not (place / "new").exists()


LIGHT: dict[str, set[str]] = {
    "recipes": {"rich"},
    "recipes --json": set(),
    "methods": {"rich"},
    "methods trellis --json": set(),
    "inspect model": {"rich"},
    "inspect model --json": set(),
}
"""Verbs that need no torch, and what they import."""


@pytest.mark.parametrize("arguments", LIGHT)
def test_light_verbs_import_no_torch(arguments: str, place: Path) -> None:
    code, said, heavy = executed(*arguments.split(), cwd=place)
    assert (code, heavy - LIGHT[arguments]) == (0, set()), said


EVALUATION = {"datasets", "pandas", "pyarrow", "matplotlib", "bitsandbytes", "compressed_tensors"}
"""What neither a plan nor rounding needs."""


@pytest.mark.parametrize("arguments", ["plan model --group-size 32", "quantize model -o new --group-size 32"])
def test_rounding_imports_nothing_for_texts_and_reports(arguments: str, place: Path) -> None:
    code, said, heavy = executed(*arguments.split(), cwd=place)
    assert code == 0, said
    assert not heavy & EVALUATION


def test_what_copies_tensors_imports_no_model_classes(place: Path) -> None:
    unneeded = EVALUATION | {"transformers.modeling_utils", "accelerate", "scipy"}
    for arguments in ("lossless model -o packed", "verify packed", "inspect packed", "decompress packed -o again"):
        code, said, heavy = executed(*arguments.split(), cwd=place)
        assert code == 0, said
        assert not heavy & unneeded, arguments
